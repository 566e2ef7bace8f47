"""`inspect` says what a file is, and never more than is proven of it."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import wheels
from tests.labapex.authority import Authority
from tests.labapex_runner.jobs import Made, make
from tests.labapex_worker import fake_executable
from typer.testing import CliRunner

from labapex.errors import MalformedInput, UsageError
from labapex.trust import fingerprint
from labapex_worker.cli import app
from labapex_worker.config import Config, Home
from labapex_worker.inspection import Report, report
from labapex_worker.trust import Memory, save

NOW = 1_900_000_000.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("job"), {"train.py": b"print()", "data/x": b"y"})


def look(made: Made, path: Path | None = None, now: float = NOW) -> Report:
    return report(path or made.path, made.trust, made.worker, now)


def test_a_good_file_is_told_with_who_vouches_for_it(made: Made) -> None:
    found, terms = look(made), made.manifest.contract
    assert (found.trusted, found.problem) == (True, None)
    assert (found.job, found.lease, found.worker) == (terms.job, terms.lease, made.worker)
    assert (found.script, found.epochs, found.iterations_per_epoch, found.checkpoint_every) == ("train.py", 1, 4, 2)
    assert found.size == made.path.stat().st_size
    assert found.sections == 3
    assert found.runner.digest == made.manifest.runner
    assert found.signer is not None
    assert found.signer.key == found.manifest_key == made.manifest.key
    assert found.signer.root == fingerprint(made.trust.root)


def test_an_altered_file_is_not_trusted_though_its_signature_is_good(made: Made, tmp_path: Path) -> None:
    whole = bytearray(made.path.read_bytes())
    whole[10] ^= 1
    (tmp_path / "bent").write_bytes(whole)
    found = look(made, tmp_path / "bent")
    assert not found.trusted
    assert found.signer is not None, "the manifest itself is genuine"
    assert "the runner is not what the platform signed" in (found.problem or "")


def test_an_expired_file_is_not_trusted(made: Made) -> None:
    found = look(made, now=float(made.manifest.expires_at))
    assert not found.trusted
    assert "expired" in (found.problem or "")


def test_a_file_for_another_worker_or_from_another_platform_is_not_trusted(made: Made) -> None:
    found = report(made.path, made.trust, uuid4(), NOW)
    assert "made for worker" in (found.problem or "")
    stranger = report(made.path, Authority().trust, made.worker, NOW)
    assert (stranger.trusted, stranger.signer) == (False, None)
    nobody = report(made.path, None, None, NOW)
    assert (nobody.trusted, nobody.signer) == (False, None)
    assert "trusts no platform" in (nobody.problem or "")


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_that_was_cut_is_none(made: Made, tmp_path: Path, data: st.DataObject) -> None:
    whole = made.path.read_bytes()
    (tmp_path / "cut").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(MalformedInput):
        look(made, tmp_path / "cut")


def test_a_torch_that_the_platform_gives_is_told(made: Made, tmp_path: Path) -> None:
    assert look(made).torch is None
    torch, _ = wheels.supplied(wheels.a_torch(tmp_path))
    file = tmp_path / "executable"
    file.write_bytes(
        fake_executable.make(
            tmp_path, authority=Authority(), worker=uuid4(), lease=uuid4(), job=uuid4(), plan={}, torch=torch
        )
    )
    assert look(made, file).torch == torch.build
    said = CliRunner().invoke(app, ["inspect", str(file), "--home", str(tmp_path / "none")], env={"COLUMNS": "200"})
    assert f"2.13.0+tests from the platform, build {torch.build.digest}" in said.output


def test_what_is_no_file_is_not_waited_for(made: Made, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent", Path("/dev/zero")):
        with pytest.raises(UsageError):
            look(made, path)


def test_the_command_ends_with_1_for_what_this_host_would_not_start(made: Made, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    typed = ["inspect", str(made.path), "--home", str(home.path)]
    said = CliRunner().invoke(app, typed)
    assert said.exit_code == 1
    assert "not trusted" in said.output
    home.save(Config(platform="https://x", worker=made.worker, name="x", root=made.trust.root, site_packages=()))
    save(home.trust, Memory(pinned=made.trust.root, trust=made.trust))
    said = CliRunner().invoke(app, typed)
    assert said.exit_code == 0, said.output
    for shown in (str(made.manifest.contract.lease), made.manifest.key, made.manifest.runner, "1, 4, 2"):
        assert shown in said.output
