"""A dispute over a verdict, and the ruling: what an independent re-execution of the run found, and what follows from it."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from pydantic import Field

from labapex.protocol.canonical import Digest, Message
from labapex.protocol.contract import Environment
from labapex.protocol.verdict import RuleResult

MAX_REASON = 2000
"""Characters by which a party says why."""


class Side(StrEnum):
    """Who contests: the client a verified job, the worker's owner a rejected one."""

    CLIENT = "client"
    WORKER = "worker"


class Outcome(StrEnum):
    REVERSED = "reversed"  # the contested verdict was wrong, and another one takes its place
    UPHELD = "upheld"  # the contested verdict stands
    UNJUDGED = "unjudged"  # nothing can be said here: the verdict stands, and the stake is given back


class FalseSegment(Message):
    """The first segment found false: from the last state that both sides agree on to one that they do not."""

    segment: int = Field(ge=0)  # the leaf that it begins with
    start: int = Field(ge=0)  # iterations; start = stop = 0: the initial state itself
    stop: int = Field(ge=0)
    agreed: Digest | None  # state at its beginning, committed and reproduced; None: the initial state itself is false
    committed: Digest  # state at its end, as the worker committed to it
    recomputed: Digest | None  # the same as it came out here, twice; None: the script could not be brought there
    origin: int | None = Field(ge=0)  # iteration of the opened state from which it is reached again, if any


class Moved(Message):
    """One movement of money by a ruling, in micro-credits."""

    payer: str
    payee: str
    amount: int = Field(gt=0)
    why: str


class Ruling(Message):
    """Signed by the platform over its canonical JSON."""

    format: int = Field(default=1, ge=1, le=1)
    dispute: UUID
    job: UUID
    lease: UUID
    side: Side
    contested: Digest  # of the verdict's canonical JSON
    outcome: Outcome
    because: str
    false: FalseSegment | None  # None: none was found
    rules: tuple[RuleResult, ...]  # what the verdict's own rules say of the re-execution
    blamed: UUID | None  # the lease whose part of the run is false
    segments_executed: int = Field(ge=0)
    segments: int = Field(ge=0)  # of the whole run
    seconds: float = Field(ge=0)  # that the re-execution took
    worker_environment: Environment | None
    verifier_environment: Environment | None
    verdict: Digest | None  # of the verdict that takes the contested one's place
    revoked: Digest | None  # the certificate that holds no more
    stake: int = Field(ge=0)  # micro-credits that the opener had put in
    charged: int = Field(ge=0)  # of it, for the re-execution; the rest was given back
    moved: tuple[Moved, ...] = Field(max_length=1000)
    issued_at: float


class SignedRuling(Message):
    ruling: Ruling
    key_id: str
    signature: bytes = Field(min_length=64, max_length=64)


class DisputeRequest(Message):
    """Open a dispute over a job's verdict."""

    job: UUID
    reason: str = Field(min_length=1, max_length=MAX_REASON)


class DisputeTerms(Message):
    """What opening a dispute would mean for whoever asks. Amounts in micro-credits, times in Unix seconds."""

    job: UUID
    side: Side
    stake: int
    until: float  # the last moment at which it may be opened
    obstacle: str | None  # why it cannot be opened; None: it can


class DisputeView(Message):
    """A dispute as either party sees it."""

    id: UUID
    job: UUID
    name: str  # of the job
    side: Side
    reason: str  # the opener's own words
    state: str  # "open" or "ruled"
    contested: Digest
    rule: str | None  # that had decided against the run
    stake: int
    executed: int  # segments that were run again so far
    segments: int  # of the whole run
    opened_at: float
    ruled_at: float | None
    ruling: SignedRuling | None
    again: str | None  # the command that runs the false segment again; None: there is none
    url: str  # of its page


class DisputePage(Message):
    results: tuple[DisputeView, ...]
    next: str | None
