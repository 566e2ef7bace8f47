"""What the receiving end of a lease's log does with one frame: a pure function of what is held and what came.

No database, no clock, no socket: so that the rules can be run against a line that loses, doubles, reorders and flips
bits, and so that a stranger can read on one page why nothing is ever missing, doubled or invented. In this order:

1. The frame's own hash must be right. A flipped bit is asked for again (`Nack`), it is never committed.
2. A frame that is held already is acknowledged again; one beyond the next is a gap and is asked for (`Nack`).
3. The next frame must continue the chain (`prev` is the head) and the count (`first` is the next iteration).
4. Its body must open under the run key, hold exactly `n` finite times, and stay within the contract's iterations.
5. Leaves come in order, at the steps at which the contract makes them due, each bound to the leaf before it and to the
   very losses that are held since then.
6. Points of the script's own series are of the frame's iterations; a log has a limited number of series.

A violation of 3 to 6 cannot be cured by sending again: it is refused, with a code, and the lease is over.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from uuid import UUID

from labapex.errors import MalformedInput
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Contract
from labapex.protocol.frames import Ack, Data, Fin, Nack, Welcome, frame_hash, genesis
from labapex.protocol.records import MAX_SERIES, FrameBody, Leaf, Sample

if TYPE_CHECKING:
    from hashlib import _Hash

MAX_LEAVES_BEHIND = 4096
"""How many leaves may be due and not yet sent while losses go on: the trainer digests states in the background."""

MAX_EXACT = 2**53
"""Integers beyond this do not survive JSON."""


@dataclass(frozen=True)
class Terms:
    """The part of a contract that the log must follow."""

    lease: UUID
    iterations: int
    iterations_per_epoch: int
    checkpoint_every: int
    contract: str  # digest
    after: Leaf | None = None  # where the run comes from another host: the leaf behind which this log goes on

    @classmethod
    def of(cls, contract: Contract) -> Terms:
        return cls(
            lease=contract.lease,
            iterations=contract.iterations,
            iterations_per_epoch=contract.facts.iterations_per_epoch,
            checkpoint_every=contract.checkpoint_every,
            contract=digest(contract),
            after=contract.after,
        )

    @property
    def start(self) -> int:
        """The first iteration of this log."""
        return 0 if self.after is None else self.after.step

    def due_after(self, step: int) -> int | None:
        """The first step after `step` at which a leaf is due, None after the last (`Contract.leaf_steps`)."""
        if step >= self.iterations:
            return None
        return min(
            (step // self.checkpoint_every + 1) * self.checkpoint_every,
            (step // self.iterations_per_epoch + 1) * self.iterations_per_epoch,
        )


@dataclass(frozen=True)
class LogState:
    """What is held of a log, in constant size. `settled`: digests of loss stretches whose leaf is still to come."""

    seq: int
    next: int
    head: bytes
    leaves: int
    due: int | None  # step of the next leaf
    leaf: str  # digest of the last leaf; of the contract before the first
    settled: tuple[str, ...]
    boundary: int | None  # step at which the open stretch ends
    open: _Hash  # over the losses of the open stretch; never updated in place
    series: frozenset[str]  # names of the script's own

    @classmethod
    def empty(cls, terms: Terms) -> LogState:
        return cls.restore(terms, seq=0, next=terms.start, head=genesis(terms.lease), last=None, losses=b"")

    @classmethod
    def restore(
        cls,
        terms: Terms,
        *,
        seq: int,
        next: int,
        head: bytes,
        last: Leaf | None,
        losses: bytes,
        series: Iterable[str] = (),
    ) -> LogState:
        """The state from what is stored: the `last` leaf (None without one) and the losses since then.

        `losses` is the float64 column of the iterations from that leaf's step, or the log's first, to `next` - 1."""
        last = last or terms.after
        step = None if last is None else last.step
        due = 0 if step is None else terms.due_after(step)
        start = step or 0
        if len(losses) != 8 * (next - start):
            raise ValueError(f"{len(losses) // 8} losses since step {start}, {next - start} are needed")
        state = cls(
            seq=seq,
            next=start,
            head=head,
            leaves=0 if last is None else last.index + 1,
            due=due,
            leaf=terms.contract if last is None else last.digest(),
            settled=(hashlib.sha256(b"").hexdigest(),) if step is None else (),
            boundary=terms.due_after(start),
            open=hashlib.sha256(),
            series=frozenset(series),
        )
        return state._with_losses(terms, losses)

    def _with_losses(self, terms: Terms, losses: bytes) -> LogState:
        settled, boundary, open_, position = list(self.settled), self.boundary, self.open.copy(), self.next
        end, view = self.next + len(losses) // 8, memoryview(losses)
        while position < end:
            stop = end if boundary is None else min(end, boundary)
            open_.update(view[8 * (position - self.next) : 8 * (stop - self.next)])
            position = stop
            if position == boundary:
                settled.append(open_.hexdigest())
                open_, boundary = hashlib.sha256(), terms.due_after(boundary)
        return replace(self, next=end, settled=tuple(settled), boundary=boundary, open=open_)

    @property
    def complete(self) -> bool:
        """Every iteration and every leaf of the contract is held."""
        return self.due is None and self.boundary is None

    def welcome(self, lease: UUID) -> Welcome:
        return Welcome(lease=lease, seq=self.seq, next=self.next, head=self.head)

    def ack(self, lease: UUID) -> Ack:
        return Ack(lease=lease, seq=self.seq - 1, head=self.head)


@dataclass(frozen=True)
class Accept:
    """The frame continues the log. Acknowledge only once `state` and `body` are committed."""

    state: LogState
    body: FrameBody


@dataclass(frozen=True)
class Again:
    """The frame is held already."""

    ack: Ack


@dataclass(frozen=True)
class Gap:
    """Something before it, or its own bytes, got lost on the way."""

    nack: Nack


@dataclass(frozen=True)
class Refuse:
    """The log breaks its contract; sending again cannot cure it."""

    code: str
    message: str


Decision = Accept | Again | Gap | Refuse


def receive(terms: Terms, state: LogState, data: Data, open_body: Callable[[Data], FrameBody]) -> Decision:
    """Decide about one frame. `open_body` decrypts its payload and raises `MalformedInput` where that fails."""
    expected = frame_hash(
        lease=data.lease, seq=data.seq, first=data.first, n=data.n, prev=data.prev, payload=data.payload
    )
    if not hmac.compare_digest(expected, data.hash):
        return Gap(Nack(lease=terms.lease, expected=state.seq))
    if data.lease != terms.lease:
        return Refuse("wrong-lease", "the frame belongs to another lease")
    if data.seq < state.seq:
        if data.seq == state.seq - 1 and data.hash != state.head:
            return Refuse("fork", f"frame {data.seq} is held with another content")
        return Again(state.ack(terms.lease))
    if data.seq > state.seq:
        return Gap(Nack(lease=terms.lease, expected=state.seq))
    if data.prev != state.head:
        return Refuse("fork", f"frame {data.seq} does not continue the chain that is held")
    if data.first != state.next:
        return Refuse("count", f"frame {data.seq} begins with iteration {data.first}; {state.next} comes next")
    if state.next + data.n > terms.iterations:
        return Refuse("count", f"iteration {state.next + data.n - 1} is beyond the contract's {terms.iterations}")
    try:
        body = read_body(data, open_body)
        return Accept(_follow(terms, replace(state, seq=data.seq + 1, head=data.hash), body), body)
    except MalformedInput as error:
        return Refuse("body", f"frame {data.seq}: {error}")


def read_body(data: Data, open_body: Callable[[Data], FrameBody]) -> FrameBody:
    """The opened and checked body of a frame; raises `MalformedInput`."""
    body = open_body(data)
    if body.count() != data.n:
        raise MalformedInput(f"{body.count()} loss records where {data.n} are announced")
    if not all(map(math.isfinite, struct.unpack(f"<{data.n}d", body.times))):
        raise MalformedInput("a time is not finite")
    for sample in body.samples:
        _check_sample(sample)
    for series in body.series:
        if series.iterations[0] < data.first or series.iterations[-1] > data.first + data.n:
            raise MalformedInput(f"a point of the series '{series.name}' is of no iteration of the frame")
    return body


def _check_sample(sample: Sample) -> None:
    if not math.isfinite(sample.at) or not math.isfinite(sample.utilisation):
        raise MalformedInput("a sample is not finite")
    if max(sample.memory, sample.memory_total) > MAX_EXACT:
        raise MalformedInput("a sample's memory is beyond any device")


def _follow(terms: Terms, state: LogState, body: FrameBody) -> LogState:
    state = state._with_losses(terms, body.losses)
    for leaf in body.leaves:
        state = _commit(terms, state, leaf)
    if len(state.settled) > MAX_LEAVES_BEHIND:
        raise MalformedInput(f"{len(state.settled)} leaves are due and did not come")
    series = state.series | {each.name for each in body.series}
    if len(series) > MAX_SERIES:
        raise MalformedInput(f"a log has at most {MAX_SERIES} series")
    return replace(state, series=series)


def _commit(terms: Terms, state: LogState, leaf: Leaf) -> LogState:
    if leaf.index != state.leaves:
        raise MalformedInput(f"leaf {leaf.index} where leaf {state.leaves} is due")
    if leaf.step != state.due:
        raise MalformedInput(f"leaf {leaf.index} at step {leaf.step}; it is due at step {state.due}")
    if not state.settled:
        raise MalformedInput(f"leaf {leaf.index} came before the losses that it covers")
    if leaf.prev != state.leaf:
        raise MalformedInput(f"leaf {leaf.index} does not follow from the leaf before it")
    if leaf.losses != state.settled[0]:
        raise MalformedInput(f"leaf {leaf.index} commits to other losses than those sent")
    if leaf.size > MAX_EXACT:
        raise MalformedInput(f"leaf {leaf.index} claims an impossible size")
    return replace(
        state,
        leaves=state.leaves + 1,
        due=terms.due_after(leaf.step),
        leaf=leaf.digest(),
        settled=state.settled[1:],
    )


def conclude(terms: Terms, state: LogState, fin: Fin) -> Gap | Refuse | None:
    """Judge the end of a log; None: it is complete. The signature over it is the caller's to check."""
    if fin.seq > state.seq:
        return Gap(Nack(lease=terms.lease, expected=state.seq))
    if fin.seq < state.seq or fin.head != state.head or fin.total != state.next:
        return Refuse("fork", "the end of the log does not agree with what is held")
    if state.next != terms.iterations:
        return Refuse("incomplete", f"the log ends after {state.next} of {terms.iterations} iterations")
    if not state.complete:
        return Refuse("incomplete", f"the leaf of step {state.due} is missing")
    return None
