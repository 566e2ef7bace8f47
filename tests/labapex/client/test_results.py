"""What a judged job leaves: nothing gets its name that was not checked."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from tests.labapex.client.submitted import SPEC, finished
from tests.labapex.memory_platform import (
    Chapter,
    MemoryPlatform,
    broken,
    happy_story,
)

from labapex.client import Client, check_verdict
from labapex.errors import (
    NotFinished,
    Tampered,
    VerificationRejected,
)
from labapex.protocol.states import JobState


def test_pull_writes_the_weights_and_the_verdict_that_names_them(
    platform: MemoryPlatform, client: Client, tmp_path: Path
) -> None:
    job = finished(platform, client)
    pulled = client.pull(job, tmp_path / "result")
    assert pulled.weights.read_bytes() == platform.weights
    assert pulled.size == len(platform.weights)
    found = sorted(path.name for path in (tmp_path / "result").iterdir())
    assert found == ["certificate.json", "model.safetensors", "verdict.json"]


def test_other_weights_than_the_verdict_names_never_get_a_name(
    platform: MemoryPlatform, client: Client, tmp_path: Path
) -> None:
    job = finished(platform, client)
    platform.faults.extend([None] * 4 + [lambda request: httpx.Response(200, content=b"stolen model")])
    with pytest.raises(Tampered, match="not those that the verdict names"):
        client.pull(job, tmp_path / "result")
    assert list((tmp_path / "result").iterdir()) == []


def test_a_download_that_breaks_off_begins_again(platform: MemoryPlatform, client: Client, tmp_path: Path) -> None:
    job = finished(platform, client)
    platform.faults.extend([None] * 4 + [broken])
    assert client.pull(job, tmp_path).weights.read_bytes() == platform.weights


def test_a_verdict_signed_by_another_key_is_refused(platform: MemoryPlatform, client: Client, tmp_path: Path) -> None:
    job = finished(platform, client)
    with pytest.raises(Tampered, match="signature"):
        client.pull(job, tmp_path, key=b"\x01" * 32)


def test_a_verdict_about_another_job_is_refused(platform: MemoryPlatform, client: Client, tmp_path: Path) -> None:
    mine, other = finished(platform, client), finished(platform, client)
    signed = platform.verdict(platform.jobs[other].view)
    platform.faults.append(lambda request: httpx.Response(200, content=signed.model_dump_json()))
    with pytest.raises(Tampered, match="verdict of another job"):
        client.checked_verdict(mine)


def test_a_changed_verdict_fails_its_signature(platform: MemoryPlatform, client: Client) -> None:
    signed = client.verdict(finished(platform, client))
    changed = signed.model_copy(update={"verdict": signed.verdict.model_copy(update={"verified_epochs": 99})})
    assert check_verdict(signed, platform.public_key) == signed.verdict
    with pytest.raises(Tampered):
        check_verdict(changed, platform.public_key)


def test_a_rejected_job_has_nothing_to_pull(platform: MemoryPlatform, client: Client, tmp_path: Path) -> None:
    platform.rejected_by = "replay"
    platform.story = [*happy_story()[:-1], Chapter(JobState.REJECTED, reason="replay failed")]
    with pytest.raises(VerificationRejected, match="rule 'replay'"):
        client.pull(finished(platform, client), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_job_that_goes_on_has_no_verdict_yet(platform: MemoryPlatform, client: Client) -> None:
    with pytest.raises(NotFinished):
        client.verdict(platform.add(SPEC).id)
