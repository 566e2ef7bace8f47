"""The challenge in rounds: a chunk first, the states that it leads to, what is in doubt; and the platform killed in between."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.labapex_server.gateway.stage import Host, Run, a_run, a_state, queued_job
from tests.labapex_server.scenes import finished, opened, stand_in

from labapex.errors import Tampered
from labapex.proof import doubts as doubting
from labapex.proof import folder, parcel
from labapex.proof.chunks import Measured
from labapex.proof.evidence import Evidence, Further
from labapex.proof.shown import look
from labapex.protocol.states import JobState
from labapex.protocol.verdict import Verdict
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict, Missing, Refused
from labapex_server.marketplace.models import Lease
from labapex_server.pipeline import stages
from labapex_server.pipeline.sweep import sweep
from labapex_server.verification import evidence, proofs
from labapex_server.verification import services as verification
from labapex_server.verification.models import Challenge, OpenedState, Replay, VerdictRecord


def nothing() -> None:
    """A beat that is always fine."""


@pytest.fixture(autouse=True)
def _stand_in(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(settings, monkeypatch)


@pytest.fixture
def run(rig: Host, researcher: User) -> Run:
    """A run whose parameters have one chunk."""
    made = a_run(queued_job(researcher, layout=True), rig)
    finished(made)
    return made


def lease_of(run: Run) -> Lease:
    return verification.finished_lease(Job.objects.get(pk=run.lease.job_id))


def answer(run: Run, content: bytes | None = None) -> Challenge:
    """Hand in a chunk of every state, and let the platform take its next step."""
    lease = lease_of(run)
    verification.accept_chunks(lease, 0, io.BytesIO(run.executable.answer() if content is None else content))
    return verification.challenge(lease)


def verdict() -> Verdict:
    return Verdict.model_validate(VerdictRecord.objects.get().document)


# -- round 0: the chunk ------------------------------------------------------------------------------------------------


def test_no_state_is_drawn_before_every_kept_state_has_shown_its_chunk(run: Run) -> None:
    asked = verification.challenge(lease_of(run))
    assert (asked.round, asked.chunk, asked.waiting, asked.indices, asked.nonce) == (0, 0, True, [], "")
    assert asked.wanted == list(range(len(run.lease.terms.leaf_steps())))
    assert verification.challenge(lease_of(run)) == asked
    with pytest.raises(Missing):
        verification.accept_state(lease_of(run), 0, io.BytesIO(a_state()))
    drawn = answer(run)
    assert (drawn.round, drawn.waiting) == (1, True)
    assert drawn.chunk_nonce == asked.chunk_nonce != drawn.nonce
    assert {0, len(asked.wanted) - 1} <= set(drawn.indices) == set(drawn.wanted)


def test_an_answer_that_comes_twice_is_read_once_and_another_chunk_or_length_is_refused(run: Run) -> None:
    lease = lease_of(run)
    verification.challenge(lease)
    with pytest.raises(Missing):
        verification.accept_chunks(lease, 1, io.BytesIO(run.executable.answer()))
    for wrong in (run.executable.answer()[:-1], run.executable.answer() + b"x"):
        with pytest.raises(Refused):
            verification.accept_chunks(lease, 0, io.BytesIO(wrong))
    assert verification.accept_chunks(lease, 0, io.BytesIO(run.executable.answer()))
    assert not verification.accept_chunks(lease, 0, io.BytesIO(b""))
    drawn = verification.challenge(lease)
    assert not verification.accept_chunks(lease, 0, io.BytesIO(b""))
    assert verification.challenge(lease) == drawn


def test_a_platform_that_is_killed_between_the_rounds_goes_on_where_it_was(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, rung = lease_of(run), []
    monkeypatch.setattr("labapex_server.pipeline.conveyor.ring", lambda job, state: rung.append(state) or True)
    verification.challenge(lease)
    sweep()
    assert rung == [], "it is the worker's turn"
    verification.accept_chunks(lease, 0, io.BytesIO(run.executable.answer()))
    assert rung == [JobState.CHALLENGED], "nobody has to wait for the sweep"
    Job.objects.update(rung_at=None)
    sweep()
    assert rung == [JobState.CHALLENGED] * 2
    assert stages.work(lease.job_id, JobState.CHALLENGED, stages.challenge)
    assert Challenge.objects.get().round == 1
    Job.objects.update(rung_at=None)
    sweep()
    assert len(rung) == 2


def test_a_chunk_with_one_other_bit_is_rejected_with_its_leaf_and_nothing_more_is_asked_for(run: Run) -> None:
    verification.challenge(lease_of(run))
    false = bytearray(run.executable.answer())
    false[-1] ^= 1
    answer(run, bytes(false))
    assert Job.objects.get().state == JobState.SETTLING
    assert verdict().deciding_rule == "opening"
    last = len(run.lease.terms.leaf_steps()) - 1
    assert f"the chunk of leaf {last} is not in the state that was committed to" in verdict().reason
    assert Challenge.objects.get().indices == []


def test_a_chunk_that_is_withheld_is_rejected_at_its_deadline(run: Run) -> None:
    lease = lease_of(run)
    verification.challenge(lease)
    assert verification.late(clock.now()) == []
    later = clock.now() + timedelta(hours=1)
    assert verification.late(later) == [lease]
    verification.reject_late(lease)
    assert verdict().deciding_rule == "opening"
    assert "chunk 0 of the parameters was not shown before the deadline" in verdict().reason


def test_a_chunk_that_comes_late_is_refused(run: Run) -> None:
    verification.challenge(lease_of(run))
    Challenge.objects.update(deadline=clock.now() - timedelta(seconds=1))
    with pytest.raises(Conflict):
        verification.accept_chunks(lease_of(run), 0, io.BytesIO(run.executable.answer()))


def test_an_answer_that_came_cannot_be_late_any_more(run: Run) -> None:
    lease = lease_of(run)
    verification.challenge(lease)
    verification.accept_chunks(lease, 0, io.BytesIO(run.executable.answer()))
    later = clock.now() + timedelta(hours=1)
    assert verification.late(later) == []
    verification.reject_late(lease)
    assert not VerdictRecord.objects.exists()


def test_a_claim_below_what_the_chunk_shows_is_rejected_without_a_replay(rig: Host, researcher: User) -> None:
    made = a_run(queued_job(researcher, layout=True), rig, update_norm=0.2)  # the chunk moves by 0.25
    finished(made)
    verification.challenge(lease_of(made))
    answer(made)
    assert verdict().deciding_rule == "leaf-claims"
    assert "claim smaller updates" in verdict().reason
    assert not OpenedState.objects.exists()


# -- later rounds: doubts ----------------------------------------------------------------------------------------------


def doubt_once(segment: int, index: int) -> doubting.Doubt:
    def doubt(seen: Evidence, opened: Any) -> Further:
        return Further(indices=frozenset({index}), segments=frozenset({segment}))

    return doubt


def few(researcher: User, rig: Host, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of 21 leaves, of which a few are opened, whose replay is believed."""
    made = a_run(queued_job(researcher, per_epoch=20, every=2), rig)
    Job.objects.update(spec=Job.objects.get().spec | {"audit_segments": 1, "top_q": 0})
    monkeypatch.setattr(doubting, "decide", lambda results: ("verified", None, ""))
    finished(made)
    opened(made)
    return made


def test_a_doubt_asks_for_what_is_new_and_nothing_is_replayed_twice(
    rig: Host, researcher: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = few(researcher, rig, monkeypatch)
    drawn = Challenge.objects.get()
    free = [n for n in range(20) if n not in drawn.indices]
    monkeypatch.setattr(doubting, "DOUBTS", (doubt_once(free[0], free[1]),))
    verification.verify(lease_of(made), beat=nothing)
    asked = Challenge.objects.get()
    assert Job.objects.get().state == JobState.CHALLENGED
    assert (asked.round, asked.waiting, asked.wanted) == (2, True, sorted(free[:2]))
    assert (asked.further, asked.further_segments) == (sorted(free[:2]), [free[0]])
    assert (asked.indices, asked.segments) == (drawn.indices, drawn.segments)
    first = Replay.objects.get().report["segments"]
    assert not VerdictRecord.objects.exists()
    monkeypatch.setattr(verification, "is_leafs", lambda *rest: True)  # the states of this suite have no true trees
    for index in asked.wanted:
        assert verification.accept_state(lease_of(made), index, io.BytesIO(a_state()))
    assert Job.objects.get().state == JobState.VERIFYING
    verification.verify(lease_of(made), beat=nothing)
    assert [s["leaf"] for s in Replay.objects.get().report["segments"]] == [s["leaf"] for s in first] + [free[0]]
    assert verdict().cost.opened_states == len(drawn.indices) + 2
    assert verdict().cost.segments_replayed == len(drawn.segments) + 1


def test_a_state_of_a_later_round_that_is_not_the_committed_one_is_rejected(
    rig: Host, researcher: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = few(researcher, rig, monkeypatch)
    free = [n for n in range(20) if n not in Challenge.objects.get().indices]
    monkeypatch.setattr(doubting, "DOUBTS", (doubt_once(free[0], free[0]),))
    verification.verify(lease_of(made), beat=nothing)
    verification.accept_state(lease_of(made), free[0], io.BytesIO(a_state()))  # well formed, and of no tree
    verification.verify(lease_of(made), beat=nothing)
    (rule,) = (rule for rule in verdict().rules if rule.rule == "opening")
    assert (rule.result, rule.value) == ("fail", 1.0)


def test_rounds_come_to_an_end_whatever_is_doubted(
    rig: Host, researcher: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = few(researcher, rig, monkeypatch)
    everything = Further(segments=frozenset(range(-3, 99)), indices=frozenset(range(-3, 99)))
    monkeypatch.setattr(doubting, "DOUBTS", (lambda seen, opened: everything,))
    monkeypatch.setattr(doubting, "STATES", 2)
    monkeypatch.setattr(verification, "is_leafs", lambda *rest: True)
    verification.verify(lease_of(made), beat=nothing)
    assert len(Challenge.objects.get().further) == 2
    for index in Challenge.objects.get().wanted:
        verification.accept_state(lease_of(made), index, io.BytesIO(a_state()))
    verification.verify(lease_of(made), beat=nothing)
    assert VerdictRecord.objects.exists()


# -- the proof ---------------------------------------------------------------------------------------------------------


def the_proof(run: Run, root: Path) -> folder.Proof:
    """The folder of a run of whose states one was withheld."""
    opened(run)
    Challenge.objects.update(waiting=True)
    OpenedState.objects.filter(index=0).delete()
    verification.reject_late(lease_of(run))
    manifest, contents = proofs.prepare(Job.objects.get(pk=run.lease.job_id))
    parcel.unpack(parcel.pack(manifest, contents), root, limit=1 << 30)
    return folder.read(root)


def test_whoever_gets_the_proof_draws_chunk_and_states_again(run: Run, tmp_path: Path) -> None:
    proof = the_proof(run, tmp_path / "proof")
    shown = look(proof, random.Random(1))
    assert shown.problem == "1 of the states that were asked for are not in the folder, the first is 0"
    assert isinstance(shown.measured, Measured)
    assert {change.norm for change in shown.measured.changes} == {0.25}
    assert proof.asked is not None
    assert evidence.read(lease_of(run)).leaves == list(proof.leaves)


@pytest.mark.parametrize("field", ["nonce", "indices", "segments", "evaluations", "chunk"])
def test_a_platform_that_did_not_ask_for_what_its_nonces_give_is_told_so(run: Run, tmp_path: Path, field: str) -> None:
    proof = the_proof(run, tmp_path / "proof")
    assert proof.asked is not None
    changes: dict[str, list[Any]] = {
        "nonce": [f"{number:064x}" for number in range(16)],  # of so few segments another nonce may draw the same
        "indices": [proof.asked.indices[1:]],
        "segments": [proof.asked.segments[1:]],
        "evaluations": [proof.asked.evaluations[1:]],
        "chunk": [1],
    }
    others = [replace(proof, asked=proof.asked.model_copy(update={field: value})) for value in changes[field]]
    with pytest.raises(Tampered, match=r"challenge\.json asks for (an)?other"):
        [look(other, random.Random(1)) for other in others]
