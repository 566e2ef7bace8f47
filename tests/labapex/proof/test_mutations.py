"""A valid proof is changed at random, in one place or several, by somebody who makes all hashes fit again: it is never verified.

Every segment is replayed here, so nothing hides behind chance. What a change may not alter is left out, and said.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.labapex.proof.honest import CONTRACT, HONEST, LOSSES, STEPS, segment, told

from labapex.proof.policy import decide
from labapex.proof.rules import Evidence, judge
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf, column
from labapex.protocol.replay import SegmentReport

SEGMENTS = tuple(range(len(STEPS) - 1))
WHOLE = replace(told(HONEST, segments=tuple(segment(n) for n in SEGMENTS)), asked=SEGMENTS)

# A leaf's `size` says how long the state's file is; it binds the upload, and is compared where the file comes in.
BOUND = ("index", "step", "state", "chunks", "settings", "update_norm", "batches", "losses", "prev")
MEANT = ("leaf", "start", "stop", "state", "chunks", "settings", "batches", "losses", "update_norm")  # of a segment
Mutation = Callable[[Evidence, st.DataObject], Evidence]


def test_what_is_mutated_is_verified_as_it_was() -> None:
    assert decide(judge(WHOLE))[:2] == ("verified", None)


def verified(evidence: Evidence) -> bool:
    return decide(judge(evidence))[0] == "verified"


def other(value: Any, data: st.DataObject) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str) and len(value) == 64:
        at = data.draw(st.integers(0, 255), label="bit")
        return f"{int(value, 16) ^ (1 << at):064x}"
    if isinstance(value, str):
        return data.draw(st.text(min_size=1, max_size=9).filter(lambda text: text != value))
    if isinstance(value, int):
        return data.draw(st.integers(0, 99).filter(lambda n: n != value))
    if value is None:  # a norm that an earlier mutation took away
        return 1.0
    near = st.sampled_from([value * (1 + 1e-5), value / 2, value + 1, 0.0])
    return data.draw((near | st.none()).filter(lambda x: x != value))


def rechained(evidence: Evidence) -> Evidence:
    """As one who owns the keys does it: leaves commit to the losses as they are and follow one another from the contract."""
    prev, at, made = digest(evidence.contract), 0, []
    for leaf in evidence.leaves:
        losses = hashlib.sha256(column(list(evidence.losses[at : leaf.step]))).hexdigest()
        made.append(leaf.model_copy(update={"prev": prev, "losses": losses}))
        prev, at = made[-1].digest(), leaf.step
    return replace(evidence, leaves=made)


def changed_leaf(evidence: Evidence, data: st.DataObject) -> Evidence:
    leaves = list(evidence.leaves)
    at, name = data.draw(st.integers(0, len(leaves) - 1)), data.draw(st.sampled_from(BOUND))
    leaves[at] = leaves[at].model_copy(update={name: other(getattr(leaves[at], name), data)})
    return replace(evidence, leaves=leaves)


def flipped_loss(evidence: Evidence, data: st.DataObject) -> Evidence:
    losses = list(evidence.losses)
    at, bit = data.draw(st.integers(0, len(losses) - 1)), data.draw(st.integers(0, 63))
    (raw,) = struct.unpack("<Q", struct.pack("<d", losses[at]))
    (losses[at],) = struct.unpack("<d", struct.pack("<Q", raw ^ (1 << bit)))
    return replace(evidence, losses=losses)


def reordered(items: Sequence[Any], data: st.DataObject) -> list[Any]:
    """Two exchanged, one dropped, or one doubled."""
    made, (a, b) = list(items), sorted(data.draw(st.tuples(*[st.integers(0, len(items) - 1)] * 2)))
    how = data.draw(st.sampled_from(["exchange", "drop", "double"]))
    if how == "exchange":
        made[a], made[b] = made[b], made[a]
    elif how == "drop":
        del made[a]
    else:
        made.insert(b, made[a])
    return made


def shuffled_losses(evidence: Evidence, data: st.DataObject) -> Evidence:
    return replace(evidence, losses=reordered(evidence.losses, data))


def shuffled_leaves(evidence: Evidence, data: st.DataObject) -> Evidence:
    return replace(evidence, leaves=reordered(evidence.leaves, data))


def renumbered_leaves(evidence: Evidence, data: st.DataObject) -> Evidence:
    """Leaves in another order under the numbers and steps that are due."""
    leaves = [
        leaf.model_copy(update={"index": n, "step": step})
        for n, (leaf, step) in enumerate(zip(reordered(evidence.leaves, data), STEPS, strict=False))
    ]
    return replace(evidence, leaves=leaves)


def changed_terms(evidence: Evidence, data: st.DataObject) -> Evidence:
    """Another contract than the one that the first leaf follows, though it has as many iterations."""
    name = data.draw(st.sampled_from(["job", "lease", "seed", "code", "data", "script", "args", "threads"]))
    values: dict[str, Any] = CONTRACT.model_dump(mode="json")
    fresh = {
        "args": ["--lr", "9"],
        "threads": 2,
        "script": "other.py",
        "job": str(CONTRACT.lease),
        "lease": str(CONTRACT.job),
    }
    values[name] = fresh[name] if name in fresh else other(values[name], data)
    return replace(evidence, contract=Contract.model_validate(values))


LOG: list[Mutation] = [flipped_loss, shuffled_losses, changed_leaf, shuffled_leaves, renumbered_leaves]


def meaning(evidence: Evidence) -> tuple[bytes, list[tuple[Any, ...]]]:
    return column(list(evidence.losses)), [tuple(getattr(leaf, n) for n in BOUND) for leaf in evidence.leaves]


@settings(max_examples=300, deadline=None)
@given(mutations=st.lists(st.sampled_from(LOG), min_size=1, max_size=3), fit=st.booleans(), data=st.data())
def test_no_change_of_what_a_worker_said_is_verified(mutations: list[Mutation], fit: bool, data: st.DataObject) -> None:
    evidence = WHOLE
    for mutation in mutations:
        evidence = mutation(evidence, data)
    evidence = rechained(evidence) if fit else evidence
    assume(meaning(evidence) != meaning(WHOLE))
    assert not verified(evidence)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_run_under_other_terms_is_not_this_one(data: st.DataObject) -> None:
    assert not verified(changed_terms(WHOLE, data))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_replay_that_found_something_else_is_verified(data: st.DataObject) -> None:
    """`distances`, `gradient_norm` and `seconds` inform, and where two ends are equal there is nothing to measure."""
    assert WHOLE.replay is not None
    report = WHOLE.replay
    where = data.draw(st.sampled_from(["segment", "segments", "start", "opened", "problem"]))
    if where == "segment":
        at = data.draw(st.sampled_from(SEGMENTS))
        name = data.draw(st.sampled_from(list(MEANT)))
        found = report.segments[at]
        if name == "losses":
            value: Any = _other_column(found, data)
        else:
            value = other(getattr(found, name), data)
        segments = tuple(s.model_copy(update={name: value}) if s.leaf == at else s for s in report.segments)
        changed: dict[str, Any] = {"segments": segments}
    elif where == "segments":
        at = data.draw(st.sampled_from(SEGMENTS))
        changed = {"segments": tuple(s for s in report.segments if s.leaf != at)}
    elif where == "start":
        changed = {"initial_state": other(report.initial_state, data)}
    elif where == "opened":
        changed = {"mismatched": (data.draw(st.sampled_from(SEGMENTS)),)}
    else:
        changed = {"problem": "ValueError: no"}
    assert not verified(replace(WHOLE, replay=report.model_copy(update=changed)))


def _other_column(found: SegmentReport, data: st.DataObject) -> bytes:
    """Fewer, more or other losses than were logged."""
    start, stop = found.start, found.stop
    losses = data.draw(st.sampled_from([[], LOSSES[start : stop - 1], LOSSES[: stop + 1], LOSSES[start:stop][::-1]]))
    assume(losses != LOSSES[start:stop])
    return column(losses)


def test_a_leaf_has_no_field_that_nobody_looks_at() -> None:
    assert set(Leaf.model_fields) == {*BOUND, "size"}
