from __future__ import annotations

import base64
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from tests.labapex.cli.conftest import Labapex
from tests.labapex.memory_platform import Chapter, MemoryPlatform

from labapex.protocol.spec import JobSpec
from labapex.protocol.states import JobState

SPEC = JobSpec.model_validate({"script": "train.py", "epochs": 3, "budget": 10})


@pytest.fixture
def job(labapex: Labapex, platform: MemoryPlatform) -> UUID:
    """A verified job."""
    added = platform.add(SPEC).id
    assert labapex("logs", "-f", added).code == 0
    return added


@pytest.fixture
def pulled(labapex: Labapex, job: UUID, tmp_path: Path) -> Path:
    folder = tmp_path / "result"
    assert labapex("pull", job, "-o", folder).code == 0
    return folder


def test_pull_prints_the_digest_and_where_the_weights_lie(labapex: Labapex, job: UUID, tmp_path: Path) -> None:
    result = labapex("pull", job, "-o", tmp_path / "out", "--json")
    assert Path(result.json["weights"]).read_bytes().startswith(b"safetensors")
    assert len(result.json["digest"]) == 64


def test_verify_needs_nobody_with_a_file_and_a_key(
    labapex: Labapex, platform: MemoryPlatform, pulled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABAPEX_TOKEN")
    monkeypatch.delenv("LABAPEX_URL")
    platform.seen.clear()
    key = base64.b64encode(platform.public_key).decode()
    result = labapex("verify", pulled / "verdict.json", "--key", key, "--weights", pulled / "model.safetensors")
    assert result.code == 0
    assert "signed by the key you gave" in result.err
    assert "verified" in result.out
    assert platform.seen == []


def test_verify_with_the_platforms_own_key_needs_no_login(
    labapex: Labapex, pulled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABAPEX_TOKEN")
    assert labapex("verify", pulled / "verdict.json").code == 0


@pytest.mark.parametrize("spelling", ["base64", "base64url", "hex", "file", "json"])
def test_a_key_may_be_spelled_as_people_have_it(
    labapex: Labapex, platform: MemoryPlatform, pulled: Path, tmp_path: Path, spelling: str
) -> None:
    key = platform.public_key
    text = {
        "base64": base64.b64encode(key).decode(),
        "base64url": base64.urlsafe_b64encode(key).decode(),
        "hex": key.hex(),
        "file": str(tmp_path / "key"),
        "json": str(tmp_path / "key"),
    }[spelling]
    encoded = base64.b64encode(key).decode()
    (tmp_path / "key").write_text(f'{{"key_id": "k1", "public_key": "{encoded}"}}' if spelling == "json" else encoded)
    assert labapex("verify", pulled / "verdict.json", "--key", text).code == 0


def test_a_key_that_is_none_is_a_usage_error(labapex: Labapex, pulled: Path) -> None:
    assert labapex("verify", pulled / "verdict.json", "--key", "abc").code == 2


def test_a_changed_verdict_file_is_refused(labapex: Labapex, pulled: Path) -> None:
    file = pulled / "verdict.json"
    file.write_text(file.read_text().replace('"verified_epochs": 3', '"verified_epochs": 4'))
    result = labapex("verify", file)
    assert result.code == 1
    assert "signature does not match" in result.err


def test_a_file_that_is_no_verdict_is_refused(labapex: Labapex, pulled: Path) -> None:
    (pulled / "verdict.json").write_text("{}")
    assert labapex("verify", pulled / "verdict.json").code == 1
    assert labapex("verify", pulled / "missing.json").code == 2


def test_other_weights_than_the_verdicts_are_refused(labapex: Labapex, pulled: Path) -> None:
    (pulled / "model.safetensors").write_bytes(b"other")
    result = labapex("verify", pulled / "verdict.json", "--weights", pulled / "model.safetensors")
    assert (result.code, "not the file that the verdict names" in result.err) == (1, True)


def test_a_rejected_verdict_verifies_as_a_document_and_exits_104(labapex: Labapex, platform: MemoryPlatform) -> None:
    platform.rejected_by = "replay"
    platform.story = [Chapter(JobState.REJECTED)]
    job = platform.add(SPEC).id
    labapex("logs", "-f", job)
    result = labapex("verify", job)
    assert result.code == 104
    assert "The signature is good" in result.err
    assert labapex("pull", job).code == 104


def test_a_job_without_a_verdict_exits_101(labapex: Labapex, platform: MemoryPlatform) -> None:
    assert labapex("verify", platform.add(SPEC).id).code == 101


def test_weights_that_were_exchanged_on_the_way_are_not_kept(
    labapex: Labapex, platform: MemoryPlatform, job: UUID, tmp_path: Path
) -> None:
    platform.faults.extend([None] * 4 + [lambda request: httpx.Response(200, content=b"evil")])
    assert labapex("pull", job, "-o", tmp_path / "out").code == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_receipts_list_where_the_credits_went(labapex: Labapex, platform: MemoryPlatform, job: UUID) -> None:
    out = labapex("receipts").out
    assert str(job)[:8] in out
    assert "paid by verified epoch" in out
    assert labapex("receipts", job, "--json").json[0]["paid"] == 5_000_000


def test_a_job_that_held_no_money_has_a_line_that_says_so(labapex: Labapex, platform: MemoryPlatform) -> None:
    platform.story = [Chapter(JobState.REFUSED, reason="no such file")]
    labapex("logs", "-f", platform.add(SPEC).id)
    assert "refused: no money was held" in labapex("receipts").out
