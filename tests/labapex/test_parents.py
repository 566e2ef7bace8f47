"""Models that a job starts from, on the client's side: a folder that `pull` made is sent along and named by its certificate."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.labapex.certified import WEIGHTS_FILE, a_bundle
from tests.labapex.memory_platform import TOKEN, URL, MemoryPlatform

from labapex.certificate import certificate_digest
from labapex.client import Client
from labapex.client.parents import collect
from labapex.errors import UsageError
from labapex.protocol.spec import JobSpec, parse_spec

JOB = "6b0e6e4e-4a0b-4dd6-8d3a-1f6f3c1de0a1"


def spec(*origins: str) -> JobSpec:
    return parse_spec({"script": "train.py", "data": "data", "epochs": 3, "budget": 10, "start_from": list(origins)})


@pytest.fixture
def pulled(tmp_path: Path) -> Path:
    folder = tmp_path / "pulled"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS_FILE)
    (folder / "certificate.json").write_text(a_bundle().model_dump_json())
    return folder


def test_a_job_and_a_certificate_are_named_as_they_are(job_folder: Path) -> None:
    asked = spec(JOB, "ab" * 32)
    sent, files = collect(job_folder, asked)
    assert (sent, files.models) == (asked, {})


def test_a_single_start_needs_no_list() -> None:
    assert parse_spec({"script": "t.py", "epochs": 1, "budget": 1, "start_from": JOB}).start_from == (JOB,)


def test_a_folders_weights_are_uploaded_and_its_certificate_named(
    platform: MemoryPlatform, user_home: Path, job_folder: Path, pulled: Path
) -> None:
    client = Client(URL, TOKEN, transport=platform.transport, sleep=lambda s: None)
    told: list[tuple[int, int]] = []
    job = client.submit(spec(str(pulled)), job_folder, lambda done, total: told.append((done, total)))
    assert job.spec.start_from == (certificate_digest(a_bundle().envelope.body()),)
    assert WEIGHTS_FILE in platform.blobs.values()
    assert told[-1][0] == told[-1][1] > len(WEIGHTS_FILE)


def test_a_folder_is_looked_for_beside_the_jobs_file(job_folder: Path, pulled: Path) -> None:
    pulled.rename(job_folder / "before")
    assert len(collect(job_folder, spec("before"))[1].models) == 1


def test_weights_that_are_not_the_certified_ones_are_never_sent(job_folder: Path, pulled: Path) -> None:
    (pulled / "model.safetensors").write_bytes(WEIGHTS_FILE + b"!")
    with pytest.raises(UsageError, match=r"start_from: .*is not the certified one"):
        collect(job_folder, spec(str(pulled)))


@pytest.mark.parametrize("name", ["certificate.json", "model.safetensors"])
def test_a_folder_without_one_of_the_two_files_is_no_start(job_folder: Path, pulled: Path, name: str) -> None:
    (pulled / name).unlink()
    with pytest.raises(UsageError, match=f"there is no .*{name}.*labapex pull"):
        collect(job_folder, spec(str(pulled)))


def test_a_certificate_that_is_none_is_told(job_folder: Path, pulled: Path) -> None:
    (pulled / "certificate.json").write_text("{}")
    with pytest.raises(UsageError, match=r"start_from: .*envelope"):
        collect(job_folder, spec(str(pulled)))
