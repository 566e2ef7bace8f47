"""`pull` brings a certificate, and `verify` believes it only as a whole."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.labapex.certified import MemoryLog, a_statement
from tests.labapex.cli.conftest import Labapex
from tests.labapex.memory_platform import MemoryPlatform

from labapex.certificate import MAX_BUNDLE, CertificateBundle, check
from labapex.protocol.canonical import parse
from labapex.protocol.spec import JobSpec

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


def both(platform: MemoryPlatform) -> str:
    keys = platform.platform_keys
    return f"{base64.b64encode(keys.verdict).decode()},{base64.b64encode(keys.log).decode()}"


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def test_a_pulled_certificate_is_verified_without_asking_anyone(
    labapex: Labapex, platform: MemoryPlatform, pulled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABAPEX_TOKEN")
    monkeypatch.delenv("LABAPEX_URL")
    platform.seen.clear()
    weights = pulled / "model.safetensors"
    result = labapex("verify", pulled / "certificate.json", "--weights", weights, "--key", both(platform))
    assert result.code == 0, result.err
    assert "signed under the keys you gave, entry 2 of 3" in result.err
    assert "Ada Lovelace" in result.out
    assert platform.seen == []


@pytest.mark.parametrize("spelling", ["pair", "hex", "file"])
def test_both_keys_may_be_given_as_text_or_as_the_platforms_own_answer(
    labapex: Labapex, platform: MemoryPlatform, pulled: Path, tmp_path: Path, spelling: str
) -> None:
    keys = platform.platform_keys
    (tmp_path / "keys").write_text(keys.model_dump_json())
    text = {"pair": both(platform), "hex": f"{keys.verdict.hex()},{keys.log.hex()}", "file": str(tmp_path / "keys")}
    assert labapex("verify", pulled / "certificate.json", "--key", text[spelling]).code == 0
    assert labapex("verify", pulled / "verdict.json", "--key", text[spelling]).code == 0
    job = next(iter(platform.jobs))
    assert labapex("pull", job, "-o", tmp_path / "again", "--key", text[spelling]).code == 0


def test_one_key_alone_is_not_enough_for_a_certificate(
    labapex: Labapex, platform: MemoryPlatform, pulled: Path
) -> None:
    result = labapex("verify", pulled / "certificate.json", "--key", base64.b64encode(platform.public_key).decode())
    assert (result.code, "KEY,LOG_KEY" in result.err) == (2, True)


def test_without_keys_the_platform_also_proves_that_its_log_only_grew(
    labapex: Labapex, platform: MemoryPlatform, pulled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABAPEX_TOKEN")
    platform.log.fill(5)
    result = labapex("verify", pulled / "certificate.json")
    assert result.code == 0
    assert "8 entries today and only grew" in result.err


def test_a_log_that_was_rewritten_or_cut_since_is_found_out(
    labapex: Labapex, platform: MemoryPlatform, pulled: Path
) -> None:
    kept = list(platform.log.leaves)
    platform.log.leaves = [*kept[:2], b"never here", *kept[3:]]
    assert labapex("verify", pulled / "certificate.json").code == 104
    platform.log.leaves = kept[:2]
    result = labapex("verify", pulled / "certificate.json")
    assert (result.code, "taken out" in result.err) == (104, True)


def test_other_weights_than_the_certified_are_refused(labapex: Labapex, platform: MemoryPlatform, pulled: Path) -> None:
    (pulled / "model.safetensors").write_bytes(b"other")
    result = labapex(
        "verify", pulled / "certificate.json", "--weights", pulled / "model.safetensors", "--key", both(platform)
    )
    assert (result.code, "not the certified one" in result.err) == (104, True)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["inclusion"].update(index=0),
        lambda document: document["inclusion"]["hashes"].pop(),
        lambda document: document.update(checkpoint=document["checkpoint"].replace("\n3\n", "\n4\n")),
        lambda document: document["envelope"].update(payload="e30="),
        lambda document: document.pop("checkpoint"),
        lambda document: document.update(format=2),
        lambda document: document.update(envelope=[]),
    ],
)
def test_a_changed_certificate_exits_104(
    labapex: Labapex, platform: MemoryPlatform, pulled: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    rewrite(pulled / "certificate.json", change)
    result = labapex("verify", pulled / "certificate.json", "--key", both(platform))
    assert (result.code, "does not hold" in result.err) == (104, True)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, "null", "\x00"])
def test_a_file_of_that_name_that_is_none_is_refused(
    labapex: Labapex, platform: MemoryPlatform, tmp_path: Path, content: str
) -> None:
    (tmp_path / "certificate.json").write_text(content)
    assert labapex("verify", tmp_path / "certificate.json", "--key", both(platform)).code in {1, 104}


def test_json_prints_the_whole_statement(labapex: Labapex, platform: MemoryPlatform, pulled: Path) -> None:
    result = labapex("verify", pulled / "certificate.json", "--key", both(platform), "--json")
    document = json.loads(result.out)
    assert document["statement"]["predicateType"] == "urn:labapex:certificate:v1"
    assert (document["index"], document["log"]["size"]) == (2, 3)


def test_what_a_certificate_says_cannot_write_to_the_terminal(
    labapex: Labapex, platform: MemoryPlatform, tmp_path: Path
) -> None:
    log = MemoryLog(verdict_key=platform.key.private_bytes_raw())
    log.fill(1)
    bundle = log.bundle(*log.enter(a_statement(name="model\x1b]0;gotcha\x07\x1b[2J")))
    (tmp_path / "certificate.json").write_text(bundle.model_dump_json())
    result = labapex("verify", tmp_path / "certificate.json", "--key", both(platform))
    assert (result.code, "\x1b" in result.out) == (0, False)


def test_a_certificate_of_another_job_or_verdict_is_never_kept(
    labapex: Labapex, platform: MemoryPlatform, job: UUID, tmp_path: Path
) -> None:
    other = platform.add(SPEC).id
    labapex("logs", "-f", other)
    platform.certificate(platform.jobs[other].view)
    platform.entered[job] = platform.entered[other]
    result = labapex("pull", job, "-o", tmp_path / "out")
    assert (result.code, "another job" in result.err) == (1, True)
    assert not (tmp_path / "out").exists()


def test_a_platform_without_certificates_still_gives_the_weights(
    labapex: Labapex, platform: MemoryPlatform, job: UUID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(view: object) -> object:
        from tests.labapex.memory_platform import problem

        return problem(404, "not-found", "this job has no certificate")

    handle = platform._job
    monkeypatch.setattr(
        platform, "_job", lambda job, what, request: none(job) if what == "certificate" else handle(job, what, request)
    )
    assert labapex("pull", job, "-o", tmp_path / "out", "--json").json["certificate"] is None


def test_a_certificate_that_the_log_takes_back_holds_no_more(
    labapex: Labapex, platform: MemoryPlatform, pulled: Path
) -> None:
    assert "the platform states that none revokes it" in labapex("verify", pulled / "certificate.json").err
    bundle = parse(CertificateBundle, (pulled / "certificate.json").read_bytes(), limit=MAX_BUNDLE)
    platform.revoke(check(bundle, platform.platform_keys))
    result = labapex("verify", pulled / "certificate.json")
    assert result.code == 104
    assert "revoked 2027-01-15T08:00:00+00:00: iterations 20 to 24 are false" in result.err
    offline = labapex("verify", pulled / "certificate.json", "--key", both(platform))
    assert offline.code == 0  # it was certified once, and nobody was asked what became of it


def test_a_revocation_that_the_log_does_not_hold_is_no_revocation(
    labapex: Labapex, platform: MemoryPlatform, pulled: Path
) -> None:
    bundle = parse(CertificateBundle, (pulled / "certificate.json").read_bytes(), limit=MAX_BUNDLE)
    certificate = check(bundle, platform.platform_keys)
    platform.revoke(certificate)
    platform.revocations[certificate.digest] = bundle
    assert "error: the certificate does not hold" in labapex("verify", pulled / "certificate.json").err
