"""Which build of torch fits a driver. The drivers are told, not there: not run on a GPU."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from tests import wheels
from tests.nvml import traces
from tests.nvml.stub import Play

from labapex import nvml
from labapex.protocol.canonical import canonical
from labapex.protocol.devices import Device
from labapex_worker import builds, devices, packages
from labapex_worker.builds import Build
from labapex_worker.cli import examination
from labapex_worker.config import Config, Home
from labapex_worker.identity import Identity


def gpu(driver: str | None) -> Device:
    return Device(kind="cuda", name="NVIDIA A100", driver=driver)


@pytest.mark.parametrize(
    ("driver", "cuda"),
    [
        ("580.65.06", 13), ("600.1", 13), ("579.99", 12), ("550.54.14", 12), ("525.60.13", 12), ("524.0", 11),
        ("450.80.02", 11), ("449.9", None), ("", None), ("unknown", None),
    ],
)  # fmt: skip
def test_a_driver_runs_the_builds_of_its_family_of_cuda_and_older_ones(driver: str, cuda: int | None) -> None:
    assert builds.family(driver) == cuda


@pytest.mark.parametrize(
    ("driver", "build", "good", "said"),
    [
        ("550.54", Build("2.13.0+cu130", "13.0"), False, "install one of cu12*, or a newer driver"),
        ("550.54", Build("2.9.1+cu128", "12.8"), True, "is built for CUDA 12.8"),
        ("580.65", Build("2.9.1+cu128", "12.8"), True, "builds for CUDA 13 (cu13*) and older"),
        ("580.65", Build("2.13.0+cpu", None), False, "does not use the GPU: install one of cu13*"),
        ("580.65", None, False, "no torch is installed"),
        ("400.1", Build("2.13.0+cu130", "13.0"), False, "need 450 or newer"),
        (None, Build("2.13.0+cu130", "13.0"), False, "driver unknown"),
    ],
    ids=["too-new", "its-own", "older", "cpu", "none", "old-driver", "silent-driver"],
)
def test_a_build_that_does_not_run_is_told_with_what_does(
    driver: str | None, build: Build | None, good: bool, said: str
) -> None:
    fits, detail = builds.fits(gpu(driver), build)
    assert fits is good
    assert said in detail


@pytest.mark.parametrize("line", ["cuda: Optional[str] = '13.0'", "cuda = '13.0'"])
def test_a_build_is_read_from_its_own_words_and_not_imported(tmp_path: Path, line: str) -> None:
    (tmp_path / "torch").mkdir()
    text = f"raise SystemExit('imported')\n__version__ = '2.13.0+cu130'\n{line}\nhip = None\n"
    (tmp_path / "torch" / "version.py").write_text(text)
    assert builds.installed([tmp_path / "none", tmp_path]) == Build("2.13.0+cu130", "13.0")


def test_the_torch_that_runs_these_tests_is_read_as_what_it_is() -> None:
    import torch

    assert builds.installed([Path(torch.__file__).parents[1]]) == Build(str(torch.__version__), torch.version.cuda)


def test_a_host_without_torch_is_told_that_jobs_bring_it_and_later_which(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    empty = Config(platform="https://x", worker=UUID(int=7), name="x", root=bytes(32), site_packages=(tmp_path,))
    home.save(empty)
    Identity.create(home.key)
    found = {finding.what: finding for finding in examination.examine(home)}
    assert (found["torch"].good, found["torch"].required) == (False, False)
    assert found["torch"].detail == f"none in {tmp_path}: jobs bring the platform's, if it supplies one"
    torch, wheels_of = wheels.supplied(wheels.a_torch(tmp_path))
    packages.store(home, empty).make(torch.packages, wheels_of)
    home.torch.write_bytes(canonical(torch))
    found = {finding.what: finding for finding in examination.examine(home)}
    assert (found["torch"].good, found["torch"].detail) == (True, "2.13.0+tests, supplied by the platform")
    assert found["torch's files"].good


def test_check_has_a_line_on_the_build_where_there_is_a_gpu(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_driver", nvml.Driver())
    monkeypatch.setattr(devices, "_seen", {})
    play(traces.H200)
    found = {finding.what: finding for finding in examination.examine(Home(tmp_path))}
    assert found["torch build"].required is False
    assert found["torch build"].detail.startswith("driver 580.95.05 runs builds for CUDA 13 (cu13*) and older; ")
