"""Bodies of the REST API (`/api/v1/`): the same objects in the server, the SDK and the CLI's `--json`."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

from pydantic import Field

from labapex.protocol.canonical import Message
from labapex.protocol.records import Console, Sample
from labapex.protocol.spec import Bundle, JobSpec
from labapex.protocol.states import Fault, JobState
from labapex.protocol.verdict import RuleResult


class Login(Message):
    username: str = Field(max_length=150)
    password: str = Field(max_length=4096)
    name: str = Field(default="", max_length=80)  # what the token is for


class NewToken(Message):
    token: str  # shown once; the platform keeps its hash


class Me(Message):
    username: str
    available: int  # micro-credits that are not held
    held: int


class JobRequest(Message):
    spec: JobSpec
    bundle: Bundle


class Progress(Message):
    iterations: int  # loss logs stored
    total: int | None  # E x I, known after the preflight
    epoch: int
    eta_seconds: float | None


class JobView(Message):
    """A job as its owner sees it."""

    id: UUID
    name: str
    state: JobState
    reason: str  # why it is in this state; for an end state the cause
    fault: Fault | None
    spec: JobSpec
    created_at: float
    started_at: float | None
    ended_at: float | None
    progress: Progress
    iterations_per_epoch: int | None
    budget: int  # micro-credits, as are the next three
    cost: int
    paid: int
    refunded: int
    worker: str | None
    device: str | None
    lost_contact: bool
    package_ms: float | None
    first_loss_seconds: float | None
    verdict: Literal["verified", "rejected"] | None
    url: str  # of the live page


class JobPage(Message):
    results: tuple[JobView, ...]
    next: str | None


class Events(Message):
    """What is new of a job since a cursor. `losses` begin with iteration `first`; non-finite losses are None."""

    cursor: str  # hand it back to get what comes next
    restarted: bool  # the cursor belonged to an earlier lease: forget its points
    job: JobView
    first: int
    losses: tuple[float | None, ...]
    samples: tuple[Sample, ...]
    console: tuple[Console, ...]
    rules: tuple[RuleResult, ...]


class Problem(Message):
    """RFC 9457: every error of the API. `code` is stable, `detail` says what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    errors: dict[str, Any] | None = None


class EnrolmentCode(Message):
    code: str  # valid once, for a short time
    expires_at: float


class EnrolRequest(Message):
    """A new worker's public key, made on the host, with a code from the portal."""

    code: str = Field(max_length=100)
    name: str = Field(min_length=1, max_length=80)
    public_key: bytes = Field(min_length=32, max_length=32)  # Ed25519


class EnrolReply(Message):
    worker: UUID
    manifest_key: bytes = Field(min_length=32, max_length=32)  # pinned: the Ed25519 key that signs manifests
