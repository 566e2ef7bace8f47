"""A judged job's proof, brought by the real client over a real socket."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.labapex_server.gateway.server import serving
from tests.labapex_server.gateway.stage import Run
from tests.labapex_server.scenes import finished, opened

from labapex.cli import results
from labapex.client import Client
from labapex.errors import NotFinished, NotFound, Tampered, UsageError
from labapex.proof import folder
from labapex.protocol.verdict import Verdict
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.lib import keys
from labapex_server.marketplace.models import Lease
from labapex_server.verification import evidence, judgement
from labapex_server.verification import services as verification
from labapex_server.verification.models import OpenedState


def client(url: str, user: User) -> Client:
    return Client(url, accounts.issue_token(user, name="test"))


def judged(run: Run) -> Verdict:
    """A verdict on the opened run, without the replay, which other tests look at."""
    finished(run)
    opened(run)
    lease = Lease.objects.select_related("job").get(pk=run.lease.pk)
    drawn = lease.challenge
    seen = judgement.evidence(lease, evidence.read(lease), pev_percent=10, segments=drawn.segments)
    verdict = judgement.verdict(
        lease, seen, drawn=drawn.audit_segments, opened=drawn.indices, shown_bytes=0, weights=None
    )
    assert verification.issue(lease, verdict)
    return verdict


def test_the_proof_of_a_job_is_a_whole_folder_with_what_was_opened(run: Run, researcher: User, tmp_path: Path) -> None:
    verdict = judged(run)
    with serving() as url, client(url, researcher) as mine:
        manifest = mine.proof(run.lease.job_id, tmp_path / "proof", keys.verdict_public_key())
    proof = folder.read(tmp_path / "proof")
    assert proof.manifest == manifest
    assert manifest.proof_root == verdict.proof_root
    assert proof.contract == Lease.objects.get(pk=run.lease.pk).terms
    assert list(proof.losses) == run.executable.losses
    assert proof.states == {state.index for state in OpenedState.objects.filter(lease=run.lease)}
    assert proof.asked is not None
    assert set(proof.asked.indices) == proof.states
    assert proof.verdict is not None
    assert proof.verdict.verdict == verdict
    assert [folder.code_text(proof, part) for part in proof.files.code] == [b"print('training')\n"]
    assert proof.environment is not None


def test_a_rejected_job_has_a_proof_too_by_command_with_what_there_is_of_it(
    run: Run, researcher: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(run)
    lease = Lease.objects.select_related("job").get(pk=run.lease.pk)
    verification.challenge(lease)
    verification.reject_late(lease)
    with serving() as url, client(url, researcher) as mine:
        monkeypatch.setattr(
            results, "connect", lambda url: mine
        )  # the command leaves its connection to the process's end
        results.pull(str(run.lease.job_id), proof=tmp_path / "proof", json=True)
    proof = folder.read(tmp_path / "proof")
    assert proof.states == frozenset()
    assert json.loads(capsys.readouterr().out)["proof_root"] == proof.manifest.proof_root


def test_nobody_else_gets_it_and_nobody_before_the_verdict(
    run: Run, researcher: User, other_researcher: User, tmp_path: Path
) -> None:
    with serving() as url:
        with client(url, researcher) as mine, pytest.raises(NotFinished):
            mine.proof(run.lease.job_id, tmp_path / "proof")
        judged(run)
        with client(url, other_researcher) as other, pytest.raises(NotFound):
            other.proof(run.lease.job_id, tmp_path / "proof")
        with client(url, researcher) as mine, pytest.raises(UsageError, match="exists already"):
            mine.proof(run.lease.job_id, tmp_path)
    assert list(tmp_path.glob("proof")) == []


def test_a_proof_of_states_that_changed_on_disk_never_gets_its_name(run: Run, researcher: User, tmp_path: Path) -> None:
    judged(run)
    state = OpenedState.objects.filter(lease=run.lease).first()
    assert state is not None
    state.path.write_bytes(state.path.read_bytes() + b"x")
    with serving() as url, client(url, researcher) as mine, pytest.raises(Tampered, match="size"):
        mine.proof(run.lease.job_id, tmp_path / "kept" / "proof")
    assert list((tmp_path / "kept").iterdir()) == []
