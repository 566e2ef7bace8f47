"""Bodies of the REST API (`/api/v1/`): the same objects in the server, the SDK and the CLI's `--json`."""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, StringConstraints

from labapex.protocol.canonical import Message
from labapex.protocol.hours import Hours
from labapex.protocol.limits import Limits
from labapex.protocol.records import Console, Sample
from labapex.protocol.spec import Bundle, Credits, JobSpec
from labapex.protocol.states import Fault, JobState
from labapex.protocol.verdict import RuleResult


class Scope(StrEnum):
    """What a token lets its program do. Others' things exist for none of them."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"  # submit, which spends credit, and stop
    WORKERS_WRITE = "workers:write"
    BILLING_READ = "billing:read"
    TOKENS_WRITE = "tokens:write"  # list and revoke; a token is made by a person alone


MEANING = {
    Scope.JOBS_READ: "see your jobs, and pull what they made",
    Scope.JOBS_WRITE: "submit jobs, which spends your credit, and stop them",
    Scope.WORKERS_WRITE: "enrol hosts in your name, and lock your credit on them as deposits",
    Scope.BILLING_READ: "see your balance and your receipts",
    Scope.TOKENS_WRITE: "list your tokens and revoke them",
}
"""Each scope in words: what follows "it may"."""

TOKEN_DAYS = 90
MAX_TOKEN_DAYS = 365


class TokenTerms(Message):
    """What is asked of a new token."""

    name: Annotated[str, StringConstraints(max_length=80)] = ""  # what it is for
    organisation: Annotated[str, StringConstraints(max_length=150)] | None = None  # to act for; None: for the person
    scopes: tuple[Scope, ...] = Field(default=tuple(Scope), min_length=1, max_length=len(Scope))
    days: int = Field(default=TOKEN_DAYS, ge=1, le=MAX_TOKEN_DAYS)


class Login(TokenTerms):
    username: str = Field(max_length=150)
    password: str = Field(max_length=4096)


class NewToken(Message):
    token: str  # shown once; the platform keeps its hash
    username: str
    organisation: str | None = None  # for which it acts; None: for the person
    scopes: tuple[Scope, ...]
    expires_at: float


class TokenView(Message):
    """A token as its owner sees it: never its secret."""

    id: int
    name: str
    prefix: str  # the first characters of the secret
    scopes: tuple[Scope, ...]
    created_at: float
    last_used_at: float | None  # to the minute
    expires_at: float | None


class TokenPage(Message):
    results: tuple[TokenView, ...]
    next: str | None


class DeviceCode(Message):
    """A login that somebody has to allow in the portal (RFC 8628, 3.2). Times are seconds."""

    device_code: str = Field(max_length=200)  # the program's own secret
    user_code: str = Field(max_length=20)  # what is compared by eye
    verification_uri: str = Field(max_length=2000)
    verification_uri_complete: str = Field(max_length=2000)
    expires_in: int = Field(ge=1)
    interval: int = Field(ge=1)  # between two polls


class DevicePoll(Message):
    device_code: str = Field(max_length=200)


class Me(Message):
    username: str
    organisation: str | None = (
        None  # for which the token acts: jobs, hosts and credit are the organisation's; None: yours
    )
    available: int | None  # micro-credits that are not held; None without the scope billing:read
    held: int | None
    spent: int | None  # on verified work, ever
    token: TokenView  # the one that asked


class Entry(Message):
    """One row of the ledger, as one of its two accounts sees it."""

    id: UUID
    at: float
    status: Literal["held", "posted", "voided"]  # only what is posted has moved
    amount: int  # micro-credits: more than 0 came in, less went out
    job: UUID | None
    memo: str


class Statement(Message):
    """An account in one month (UTC), in micro-credits: `opening` and all posted entries together are `closing`.

    A hold is an entry of the month in which it was made, and becomes posted or voided in its place."""

    month: str
    opening: int
    closing: int
    results: tuple[Entry, ...]
    next: str | None


class AlertKind(StrEnum):
    """What a client is told of a job without asking. README: `Alerts`."""

    NOT_FINITE = "not-finite"
    DIVERGING = "diverging"
    STALLED = "stalled"
    LOST_CONTACT = "lost-contact"
    BUDGET = "budget"
    ENDED = "ended"


class AlertView(Message):
    """A condition that a job is in, or was in where `recovered_at` says until when. Times are Unix seconds."""

    kind: AlertKind
    text: str
    raised_at: float
    recovered_at: float | None = None


class AlertChoice(Message):
    """How an account wants to be told of alerts."""

    mail: bool = False  # to the address of the account
    webhook: str | None = Field(default=None, max_length=2000)  # an https address that is called
    budget_share: int = Field(default=80, ge=1, le=100)  # percent of a job's budget that is worth an alert


class AlertChannels(AlertChoice):
    address: str | None  # of the account, or of an organisation's members; mails go there
    secret: str | None = None  # with which the webhook's calls are signed: shown this once, where the address is new


class JobRequest(Message):
    spec: JobSpec
    bundle: Bundle


class Progress(Message):
    iterations: int  # loss logs stored
    total: int | None  # E x I, known after the preflight
    epoch: int
    eta_seconds: float | None


class Stored(StrEnum):
    """The parts of what is stored of a job, each with its own time to live."""

    FILES = "files"  # code, data and packages
    STATES = "states"  # of training, as far as the host had to show them
    RESULTS = "results"  # the weights, and the log: losses, console, readings


class Erased(Message):
    """A part of a job's data that was deleted."""

    what: Stored
    at: float  # Unix time
    reason: str


class Storage(Message):
    """What an account's data takes. Bytes; days are counted from a job's end, 0: kept until it is deleted."""

    files: int  # how many
    files_bytes: int  # as they lie there, sealed
    unfinished_bytes: int  # of uploads that broke off; gone a day later
    states_bytes: int
    weights_bytes: int
    limit_bytes: int  # of files and unfinished uploads; 0: none
    files_days: float
    states_days: float
    results_days: float


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
    packages: tuple[str, ...] = ()  # "einops 0.8.1": what the script's requirements were locked to
    budget: int  # micro-credits, as are the next four
    cost: int  # the fee among it
    paid: int  # to hosts
    fee: int = 0  # to the platform
    refunded: int
    worker: str | None
    device: str | None
    lost_contact: bool
    package_ms: float | None
    first_loss_seconds: float | None
    verdict: Literal["verified", "rejected"] | None
    paid_epochs: int = 0  # that were verified and paid until now
    resumable: bool = False  # it was stopped, and may go on behind them
    url: str  # of the live page
    erased: tuple[Erased, ...] = ()
    erase_after: float | None = None  # Unix time: then the rest goes, as its owner asked
    alerts: tuple[AlertView, ...] = ()  # that were ever raised, the oldest first


class JobPage(Message):
    results: tuple[JobView, ...]
    next: str | None


class HandoverView(Message):
    """From `iteration` on another host trained: the one before was lost."""

    iteration: int
    before: str  # names of workers
    after: str


class SeriesView(Message):
    """What a script told a logger under one name, by iteration. Its own words: nobody verified them. None: not finite."""

    name: str
    iterations: tuple[int, ...]
    values: tuple[float | None, ...]


class Events(Message):
    """What is new of a job since a cursor. `losses` begin with iteration `first`; non-finite losses are None."""

    cursor: str  # hand it back to get what comes next
    restarted: bool  # the cursor belonged to an earlier lease: forget its points, but for the first `kept`
    kept: int = 0  # iterations that another host goes on behind
    job: JobView
    first: int
    losses: tuple[float | None, ...]
    samples: tuple[Sample, ...]
    console: tuple[Console, ...]
    series: tuple[SeriesView, ...] = ()  # a point of an iteration that was told before takes the place of that
    rules: tuple[RuleResult, ...]
    handovers: tuple[HandoverView, ...] = ()  # of the run that is shown, in order


class OfferOrder(StrEnum):
    """Which offers come first."""

    PRICE = "price"
    VALUE = "value"  # speed for a credit
    SPEED = "speed"
    REPUTATION = "reputation"


class Offer(Message):
    """What a connected host offers. Device, memory and room are its own words; its speed it has shown."""

    id: UUID
    name: str  # that it was enrolled by
    device: str  # "cuda: NVIDIA H200"
    devices: int  # of that name; a job has one
    memory: int | None  # bytes of one of them; None: it does not tell
    room: Limits | None  # what one job may take of it; None: it does not tell
    hours: tuple[Hours, ...]  # of every day, by UTC, in which it takes jobs; none: always
    price_per_hour: int  # micro-credits
    speed: float | None  # GFLOP/s; None: it has shown none
    deposit: int = 0  # micro-credits, lost when it is found to have lied
    reputation: int  # 0 to 100, from what was found of it
    record: str  # what that follows from, in words
    verified: int  # jobs
    reliability: float  # the share of its leases that it brought to their end; 1 where it had none
    free: bool  # it could take a job now


class OfferPage(Message):
    results: tuple[Offer, ...]
    next: str | None
    total: int  # offers on all pages
    free: int  # of them
    lacking: str | None  # what no connected host has, where there are none
    fee_basis_points: int = 0  # what the platform asks besides, of what hosts are paid: 250 is 2.5 %


class Problem(Message):
    """RFC 9457: every error of the API. `code` is stable, `detail` says what to do, `type` leads to what the code means."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str | None = None  # the path that was asked for
    code: str
    errors: dict[str, str] | None = None  # by field, where fields of the body are wrong


class DepositChoice(Message):
    """What is to be locked on a worker, in place of what is."""

    credits: Credits


class Deposit(Message):
    """What is locked on a worker of yours: lost when it is found to have lied."""

    worker: UUID
    amount: int  # micro-credits
    bound: str | None  # why it cannot be lowered now; None: it can


class EnrolmentCode(Message):
    code: str  # valid once, for a short time
    expires_at: float
    root: str  # fingerprint of the platform's root key, for `labapex-worker enrol --root-key`


class EnrolRequest(Message):
    """A new worker's public key, made on the host, with a code from the portal."""

    code: str = Field(max_length=100)
    name: str = Field(min_length=1, max_length=80)
    public_key: bytes = Field(min_length=32, max_length=32)  # Ed25519


class EnrolReply(Message):
    worker: UUID


class EarningsRequest(Message):
    """A worker asks what it earned: signed by its own key, good for some minutes."""

    worker: UUID
    at: int = Field(ge=0, lt=2**40)  # Unix seconds, by the worker's clock
    skip: int = Field(ge=0, lt=2**40)  # entries that it has already
    signature: bytes = Field(min_length=64, max_length=64)  # Ed25519 over `earnings_bytes`


class Earning(Message):
    """One job of a worker that was judged and settled."""

    job: UUID
    name: str
    verdict: Literal["verified", "rejected"]
    verified_epochs: int = Field(ge=0)
    paid: int = Field(ge=0)  # micro-credits
    settled_at: float  # Unix time


class Earnings(Message):
    """A part of the list, oldest first."""

    results: tuple[Earning, ...] = Field(max_length=1000)
    total: int = Field(ge=0)  # entries of the whole list


def earnings_bytes(*, worker: UUID, at: int, skip: int) -> bytes:
    """What a worker signs to ask for its earnings."""
    return struct.pack(">16s16sQQ", b"labapex-earned01", worker.bytes, at, skip)
