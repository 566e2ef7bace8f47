"""The messages on a worker's sockets: executable <-> agent (unix socket) and agent <-> platform (one outbound WebSocket).

The log of a lease is an append-only chain of frames with cumulative acknowledgement. The EXECUTABLE makes the frames: it
encrypts the body under the run key, numbers and chains them. The agent spools and passes them on unchanged; it can lose
none without the platform noticing and read none. The same four messages (`Welcome`, `Data`, `Ack`, `Nack`) serve both hops:

    sender -> Open                      receiver -> Welcome(next seq, head)     what the receiver holds durably
    sender -> Data                      receiver -> Ack(seq, head)              cumulative, only after commit
                                        receiver -> Nack(expected seq)          a gap: go back
    sender -> Fin(total, head, sig)     receiver -> FinAck                      once everything is held

The hash of a frame covers all its fields but itself, so that a flipped bit is never committed; `Ack` and `Welcome` carry
the head's hash, so that a flipped bit there never lets the sender delete what is not held.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, TypeAdapter

from labapex.protocol.canonical import Digest, Message
from labapex.protocol.contract import Environment
from labapex.protocol.devices import MAX_DEVICES, Device, Observation
from labapex.protocol.hours import MAX_WINDOWS, Hours
from labapex.protocol.limits import Limits
from labapex.protocol.packing import unpack
from labapex.trial import LARGEST

PROTOCOL_VERSION = 1
MAX_MESSAGE = 1 << 20
MAX_PAYLOAD = MAX_MESSAGE - 4096
MAX_OBSERVATIONS = 64
TRIAL_PART = 512 << 10

Hash = Annotated[bytes, Field(min_length=32, max_length=32)]
Seq = Annotated[int, Field(ge=0, lt=2**63)]


# -- the log: both hops ------------------------------------------------------------------------------------------------


class Open(Message):
    """Ask what the receiver already holds of a lease's log."""

    type: Literal["open"] = "open"
    lease: UUID


class Welcome(Message):
    """What the receiver holds: frames 0 .. seq-1, `next` loss records, and the hash of the last frame."""

    type: Literal["welcome"] = "welcome"
    lease: UUID
    seq: Seq  # the next frame expected
    next: Seq  # loss records held, which is the next iteration expected
    head: Hash


class Data(Message):
    """One frame: `n` loss records beginning with iteration `first`, and whatever else happened meanwhile."""

    type: Literal["data"] = "data"
    lease: UUID
    seq: Seq
    first: Seq
    n: Annotated[int, Field(ge=0, le=4096)]
    prev: Hash
    payload: Annotated[bytes, Field(max_length=MAX_PAYLOAD)]  # AES-256-GCM of a packed FrameBody
    hash: Hash


class Ack(Message):
    """Everything up to and including frame `seq`, whose hash is `head`, is committed."""

    type: Literal["ack"] = "ack"
    lease: UUID
    seq: Seq
    head: Hash


class Nack(Message):
    """A gap: send again from frame `expected`."""

    type: Literal["nack"] = "nack"
    lease: UUID
    expected: Seq


class Fin(Message):
    """The log is complete: `seq` frames with `total` loss records, whose head the executable signs."""

    type: Literal["fin"] = "fin"
    lease: UUID
    seq: Seq
    total: Seq
    head: Hash
    signature: Annotated[bytes, Field(min_length=64, max_length=64)]  # Ed25519 over `fin_bytes`


class FinAck(Message):
    type: Literal["finack"] = "finack"
    lease: UUID


# -- keys: executable -> agent -> platform and back --------------------------------------------------------------------


class KeyRequest(Message):
    """The executable's ephemeral keys, made in its own memory for this one lease."""

    type: Literal["key-request"] = "key-request"
    lease: UUID
    hpke_key: Annotated[bytes, Field(min_length=32, max_length=32)]  # X25519 public key
    signing_key: Annotated[bytes, Field(min_length=32, max_length=32)]  # Ed25519 public key
    environment: Environment
    torch_build: Digest | None = None  # `labapex.installed`: None where the host's torch was installed without a RECORD


class KeyRelease(Message):
    """Content key and run key, sealed by HPKE to the executable's key. Given out once a lease."""

    type: Literal["key-release"] = "key-release"
    lease: UUID
    sealed: Annotated[bytes, Field(max_length=4096)]


# -- agent -> platform -------------------------------------------------------------------------------------------------


class Hello(Message):
    """Answer to the platform's `Nonce`: who the agent is and which leases it still has in hand."""

    type: Literal["hello"] = "hello"
    version: int = PROTOCOL_VERSION
    worker: UUID
    signature: Annotated[bytes, Field(min_length=64, max_length=64)]  # Ed25519 over `hello_bytes`
    devices: tuple[Device, ...] = Field(default=(), max_length=MAX_DEVICES)
    leases: tuple[UUID, ...] = Field(default=(), max_length=64)
    lacks_torch: bool = False  # its jobs need the platform's


Price = Annotated[int, Field(ge=1, le=10**12)]
"""Micro-credits for a worker-hour: at most a million credits."""


class Ready(Message):
    """The agent has a free slot and wants work, at its owner's price; None: at the one that the platform has on record."""

    type: Literal["ready"] = "ready"
    price_per_hour: Price | None = None
    room: Limits | None = None  # what one job may take of the host; None: it does not tell
    hours: tuple[Hours, ...] = Field(default=(), max_length=MAX_WINDOWS)  # in which it takes work, by UTC; none: always


class Paused(Message):
    """The agent wants no work, and why; an earlier `Ready` no longer holds. What it has in hand it goes on with."""

    type: Literal["paused"] = "paused"
    reason: Annotated[str, Field(min_length=1, max_length=500)]


class Heartbeat(Message):
    """The agent lives, and so do these leases."""

    type: Literal["heartbeat"] = "heartbeat"
    leases: tuple[UUID, ...] = Field(default=(), max_length=64)


class Observed(Message):
    """What the agent itself sees of the GPU while it runs a lease. Not spooled: what the line loses is lost."""

    type: Literal["observed"] = "observed"
    lease: UUID
    readings: tuple[Observation, ...] = Field(min_length=1, max_length=MAX_OBSERVATIONS)


class Failed(Message):
    """The agent could not run a lease, or its executable ended before the log was complete."""

    type: Literal["failed"] = "failed"
    lease: UUID
    reason: Annotated[str, Field(max_length=2000)]
    declined: bool = False  # nothing was started: the host has not the room that the job asks for


class TrialReady(Message):
    """The program that computes a speed trial is warm; or why it cannot be run."""

    type: Literal["trial-ready"] = "trial-ready"
    trial: UUID
    problem: Annotated[str, Field(max_length=500)] = ""


class TrialAnswer(Message):
    """The digest of what the chain of the last seed came to."""

    type: Literal["trial-answer"] = "trial-answer"
    trial: UUID
    digest: Hash


class TrialPart(Message):
    """A part of the result that was asked for, in order."""

    type: Literal["trial-part"] = "trial-part"
    trial: UUID
    offset: Seq
    data: Annotated[bytes, Field(min_length=1, max_length=TRIAL_PART)]


# -- platform -> agent -------------------------------------------------------------------------------------------------


class Nonce(Message):
    """First message on a connection: what `Hello` must sign."""

    type: Literal["nonce"] = "nonce"
    nonce: Hash


class Greeting(Message):
    """The agent is known. `leases` are those of its leases that still live; it drops all others."""

    type: Literal["greeting"] = "greeting"
    heartbeat_seconds: float = Field(gt=0)
    leases: tuple[UUID, ...] = ()


class Grant(Message):
    """A lease: fetch the executable, check its signature, run it."""

    type: Literal["grant"] = "grant"
    lease: UUID
    job: UUID
    name: str
    token: str  # bearer token of this lease for downloads and uploads
    size: int = Field(ge=0)  # bytes of the executable
    threads: int = Field(ge=1)


class Idle(Message):
    """No work now; the platform will grant a lease on this connection when there is some."""

    type: Literal["idle"] = "idle"


class OpenChunks(Message):
    """The challenge's first round, drawn after the last leaf was fixed: upload chunk `number` of the parameters of all these
    leaves, each with its audit path (`labapex.proof.chunks`), as one file before the deadline."""

    type: Literal["open-chunks"] = "open-chunks"
    lease: UUID
    number: Seq
    indices: tuple[Seq, ...] = Field(max_length=100_000)
    deadline: float  # Unix time


class OpenStates(Message):
    """A later round: upload these states before the deadline."""

    type: Literal["open-states"] = "open-states"
    lease: UUID
    indices: tuple[Seq, ...] = Field(max_length=100_000)
    deadline: float  # Unix time


class Stop(Message):
    """The client stopped the job: end its run now and keep its states, of which some will be asked for. No more of its log is
    taken."""

    type: Literal["stop"] = "stop"
    lease: UUID


class TrialPrepare(Message):
    """Get ready to compute `labapex.trial` chains of this size: start the program, load torch, warm the device up."""

    type: Literal["trial-prepare"] = "trial-prepare"
    trial: UUID
    size: int = Field(ge=64, le=LARGEST, multiple_of=64)
    rounds: int = Field(ge=1, le=100_000)


class TrialBegin(Message):
    """Compute the chain of this seed, now: the platform's clock runs until `TrialAnswer` is there."""

    type: Literal["trial-begin"] = "trial-begin"
    trial: UUID
    seed: Hash


class TrialShow(Message):
    """Send what the digest of the so-manieth seed was made of."""

    type: Literal["trial-show"] = "trial-show"
    trial: UUID
    number: int = Field(ge=0, le=255)


class TrialOver(Message):
    """Nothing more is asked; end the program."""

    type: Literal["trial-over"] = "trial-over"
    trial: UUID


class Released(Message):
    """The lease is over; delete everything that belongs to it."""

    type: Literal["released"] = "released"
    lease: UUID
    reason: str = Field(max_length=2000)


class Refusal(Message):
    """The platform could not accept a message. `fatal`: the connection is of no more use."""

    type: Literal["refusal"] = "refusal"
    code: str
    message: str
    fatal: bool
    lease: UUID | None = None


FromExecutable = Annotated[Open | Data | Fin | KeyRequest, Field(discriminator="type")]
ToExecutable = Annotated[Welcome | Ack | Nack | FinAck | KeyRelease | Refusal, Field(discriminator="type")]
Said = (  # by an agent to the platform
    Hello
    | Ready
    | Paused
    | Heartbeat
    | Observed
    | Failed
    | Open
    | Data
    | Fin
    | KeyRequest
    | TrialReady
    | TrialAnswer
    | TrialPart
)
FromAgent = Annotated[Said, Field(discriminator="type")]
Told = (  # by the platform to an agent
    Nonce
    | Greeting
    | Grant
    | Idle
    | OpenChunks
    | OpenStates
    | Stop
    | Released
    | TrialPrepare
    | TrialBegin
    | TrialShow
    | TrialOver
    | Welcome
    | Ack
    | Nack
    | FinAck
    | KeyRelease
    | Refusal
)
ToAgent = Annotated[Told, Field(discriminator="type")]

_FROM_EXECUTABLE: TypeAdapter[Open | Data | Fin | KeyRequest] = TypeAdapter(FromExecutable)
_TO_EXECUTABLE: TypeAdapter[Welcome | Ack | Nack | FinAck | KeyRelease | Refusal] = TypeAdapter(ToExecutable)
_FROM_AGENT: TypeAdapter[Said] = TypeAdapter(FromAgent)
_TO_AGENT: TypeAdapter[Told] = TypeAdapter(ToAgent)


def from_executable(data: bytes) -> Open | Data | Fin | KeyRequest:
    return unpack(_FROM_EXECUTABLE, data, limit=MAX_MESSAGE)


def to_executable(data: bytes) -> Welcome | Ack | Nack | FinAck | KeyRelease | Refusal:
    return unpack(_TO_EXECUTABLE, data, limit=MAX_MESSAGE)


def from_agent(data: bytes) -> Said:
    return unpack(_FROM_AGENT, data, limit=MAX_MESSAGE)


def to_agent(data: bytes) -> Told:
    return unpack(_TO_AGENT, data, limit=MAX_MESSAGE)


# -- the bytes that are hashed, authenticated and signed ---------------------------------------------------------------

_HEADER = struct.Struct(">16s16sQQI32s")


def frame_header(*, lease: UUID, seq: int, first: int, n: int, prev: bytes) -> bytes:
    """What a frame's ciphertext is bound to, and what its hash begins with: magic, lease, seq, first, n, prev."""
    return _HEADER.pack(b"labapex-frame-01", lease.bytes, seq, first, n, prev)


def frame_hash(*, lease: UUID, seq: int, first: int, n: int, prev: bytes, payload: bytes) -> bytes:
    """SHA-256 over the header and the payload."""
    return hashlib.sha256(frame_header(lease=lease, seq=seq, first=first, n=n, prev=prev) + payload).digest()


def genesis(lease: UUID) -> bytes:
    """The `prev` of a lease's first frame, and its head while it holds none."""
    return hashlib.sha256(b"labapex-genesis-01" + lease.bytes).digest()


def fin_bytes(*, lease: UUID, seq: int, total: int, head: bytes) -> bytes:
    """What the executable signs at the end of a log."""
    return struct.pack(">16s16sQQ32s", b"labapex-fin---01", lease.bytes, seq, total, head)


def hello_bytes(*, worker: UUID, nonce: bytes) -> bytes:
    """What an agent signs to open a connection."""
    return b"labapex-hello-01" + worker.bytes + nonce
