"""What the session wants done: the words between the pure machine and those who act."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from labapex.protocol.frames import (
    Failed,
    Fin,
    Grant,
    Heartbeat,
    KeyRelease,
    KeyRequest,
    Observed,
    Open,
    Paused,
    Ready,
    TrialBegin,
    TrialOver,
    TrialPrepare,
    TrialShow,
)
from labapex_worker.phases import Phase


@dataclass(frozen=True)
class Send:
    """A message to the platform."""

    message: Ready | Paused | Heartbeat | Observed | Failed | Open | Fin | KeyRequest


@dataclass(frozen=True)
class SayHello:
    """Sign the platform's nonce."""

    nonce: bytes
    leases: tuple[UUID, ...]


@dataclass(frozen=True)
class SendFrames:
    """Spooled frames `first` .. `stop` - 1 to the platform."""

    lease: UUID
    first: int
    stop: int


@dataclass(frozen=True)
class Tell:
    """A message to the lease's executable."""

    lease: UUID
    message: KeyRelease


@dataclass(frozen=True)
class Accept:
    """Remember a new lease."""

    grant: Grant


@dataclass(frozen=True)
class Move:
    """Remember that a lease is in another phase."""

    lease: UUID
    phase: Phase
    reason: str = ""


@dataclass(frozen=True)
class KeepRelease:
    """Remember the sealed keys."""

    release: KeyRelease


@dataclass(frozen=True)
class Fetch:
    """Download and verify the executable."""

    lease: UUID


@dataclass(frozen=True)
class Start:
    """Start the executable."""

    lease: UUID


@dataclass(frozen=True)
class Kill:
    """Kill whatever still runs of the lease."""

    lease: UUID


@dataclass(frozen=True)
class UploadChunks:
    """Upload chunk `number` of the parameters of all these leaves before the deadline (Unix time)."""

    lease: UUID
    number: int
    indices: tuple[int, ...]
    deadline: float


@dataclass(frozen=True)
class Upload:
    """Upload these states before the deadline (Unix time)."""

    lease: UUID
    indices: tuple[int, ...]
    deadline: float


@dataclass(frozen=True)
class Discard:
    """Kill what still runs of the lease and delete all that belongs to it; `discarded` says that it is done."""

    lease: UUID
    reason: str


@dataclass(frozen=True)
class HangUp:
    """Close the connection."""

    reason: str


@dataclass(frozen=True)
class Measure:
    """What the platform wants of a speed trial."""

    asked: TrialPrepare | TrialBegin | TrialShow | TrialOver


@dataclass(frozen=True)
class Decline:
    """Say why there can be no speed trial now."""

    trial: UUID
    reason: str


Effect = (
    Send
    | SayHello
    | SendFrames
    | Tell
    | Accept
    | Move
    | KeepRelease
    | Fetch
    | Start
    | Kill
    | UploadChunks
    | Upload
    | Discard
    | HangUp
    | Measure
    | Decline
)
