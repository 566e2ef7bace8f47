"""The other side of the REST API in memory, for tests of the client and the command line.

A job's life is a story: a list of chapters, of which each question for events tells the next one."""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.labapex.certified import MemoryLog, a_statement

from labapex.certificate import (
    Certificate,
    CertificateBundle,
    Envelope,
    PlatformKeys,
    Revocation,
    RevocationStatus,
    Withdrawal,
)
from labapex.protocol.api import (
    AlertChannels,
    AlertChoice,
    DeviceCode,
    DevicePoll,
    EnrolmentCode,
    Entry,
    Erased,
    Events,
    JobPage,
    JobRequest,
    JobView,
    Login,
    Me,
    NewToken,
    Offer,
    OfferPage,
    Problem,
    Progress,
    Scope,
    SeriesView,
    Statement,
    Storage,
    Stored,
    TokenTerms,
    TokenView,
)
from labapex.protocol.canonical import Message, canonical, digest
from labapex.protocol.hours import Hours
from labapex.protocol.records import Console, Sample
from labapex.protocol.ruling import DisputePage, DisputeRequest, DisputeTerms, DisputeView, Ruling, Side, SignedRuling
from labapex.protocol.spec import CREDIT, JobSpec
from labapex.protocol.states import Fault, JobState
from labapex.protocol.verdict import Cost, Origin, Receipt, RuleResult, SignedVerdict, Verdict, Weight
from labapex.transparency import Head

URL = "https://apex.test"
TOKEN = "tok-1234567890abcdefghij"
ITERATIONS_PER_EPOCH = 4


@dataclass
class Chapter:
    """What one answer to a question for events tells."""

    state: JobState = JobState.RUNNING
    losses: tuple[float | None, ...] = ()
    samples: tuple[Sample, ...] = ()
    series: tuple[SeriesView, ...] = ()
    console: tuple[Console, ...] = ()
    rules: tuple[RuleResult, ...] = ()
    reason: str = ""
    restarted: bool = False
    knows_iterations: bool = True


@dataclass
class MemoryJob:
    view: JobView
    story: list[Chapter]
    losses: int = 0
    told: int = 0


STORAGE = Storage(
    files=0,
    files_bytes=0,
    unfinished_bytes=0,
    states_bytes=27_648_000,
    weights_bytes=12_000,
    limit_bytes=50 * 2**30,
    files_days=30,
    states_days=30,
    results_days=0,
)
SAMPLE = Sample(at=1.0, source="cpu", device="AMD EPYC", utilisation=97.0, memory=2**30, memory_total=2**34)


def happy_story(losses: int = 12) -> list[Chapter]:
    """A job that trains and is verified."""
    return [
        Chapter(JobState.SUBMITTED, knows_iterations=False),
        Chapter(JobState.RUNNING, losses=tuple(2.0 / (i + 1) for i in range(losses - 2)), samples=(SAMPLE,)),
        Chapter(
            JobState.RUNNING,
            losses=(None, 0.1),
            console=(Console(stream="stdout", text="epoch 3\nTest: 98 %\n"), Console(stream="stderr", text="warn\n")),
        ),
        Chapter(JobState.VERIFYING, rules=(rule("log-count"),)),
        Chapter(JobState.VERIFIED, reason="all rules passed"),
    ]


def rule(
    name: str, result: Any = "pass", value: float | str | None = 0.0, limit: float | str | None = 0.0
) -> RuleResult:
    return RuleResult(rule=name, value=value, limit=limit, result=result, weight=Weight.DECIDES)


@dataclass
class MemoryPlatform:
    """Give `transport` to a client. A fault is taken from `faults` at each request, in order; None lets it pass."""

    story: list[Chapter] = field(default_factory=happy_story)
    weights: bytes = b"safetensors " * 1000
    rejected_by: str | None = None
    available: int = 100_000_000
    blobs: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[UUID, MemoryJob] = field(default_factory=dict)
    by_key: dict[str, UUID] = field(default_factory=dict)
    faults: deque[Callable[[httpx.Request], httpx.Response] | None] = field(default_factory=deque)
    seen: list[str] = field(default_factory=list)
    begun: dict[str, bytes] = field(default_factory=dict)  # what came of uploads that broke off
    words: deque[str] = field(default_factory=deque)  # what polls of a device login are told before "allow"
    asked: TokenTerms = field(default_factory=TokenTerms)
    revoked: bool = False
    scopes: tuple[Scope, ...] = tuple(Scope)
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    log: MemoryLog = field(default_factory=MemoryLog)
    entries: tuple[Entry, ...] = field(default_factory=lambda: ENTRIES)  # the newest first
    channels: AlertChannels = field(default_factory=lambda: AlertChannels(address="ada@example.org"))
    offers: tuple[Offer, ...] = field(default_factory=lambda: OFFERS)
    entered: dict[UUID, tuple[int, Envelope]] = field(default_factory=dict)  # certificates by job
    revocations: dict[str, CertificateBundle] = field(default_factory=dict)  # by certificate
    disputes: list[DisputeView] = field(default_factory=list)  # the newest first

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.handle)

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/v1/")
        self.seen.append(f"{request.method} {path}")
        if self.faults and (fault := self.faults.popleft()):
            return fault(request)
        parts = path.strip("/").split("/")
        if parts == ["login"]:
            login = Login.model_validate_json(request.content)
            if (login.username, login.password) != ("ada", "secret"):
                return problem(401, "not-logged-in", "wrong user name or password")
            return reply(new_token(login), 201)
        if parts == ["login", "device"]:
            self.asked = TokenTerms.model_validate_json(request.content)
            return reply(DEVICE, 201)
        if parts == ["login", "device", "token"]:
            assert DevicePoll.model_validate_json(request.content).device_code == DEVICE.device_code
            word = self.words.popleft() if self.words else "allow"
            if word == "allow":
                return reply(new_token(self.asked), 201)
            return problem(400, word, f"the login is {word}")
        if parts == ["keys", "verdict"]:  # anyone may check a verdict
            encoded = base64.b64encode(self.public_key).decode()
            return httpx.Response(200, json={"key_id": "k1", "public_key": encoded})
        if parts == ["keys"]:
            return reply(self.platform_keys)
        if parts[:2] == ["transparency", "revocations"]:
            revoked = self.revocations.get(parts[2])
            return reply(RevocationStatus(certificate=parts[2], revoked=revoked))
        if parts[0] == "transparency":  # nor has one to log in to see the log
            return self._log(parts[1], {name: int(value) for name, value in request.url.params.items()})
        if request.headers.get("Authorization") != f"Bearer {TOKEN}" or self.revoked:
            return problem(401, "not-logged-in", "unknown token")
        match parts:
            case ["me"]:
                seen = Scope.BILLING_READ in self.scopes
                money = (self.available, 0, 1_677) if seen else (None, None, None)
                token = TOKEN_VIEW.model_copy(update={"scopes": self.scopes})
                return reply(Me(username="ada", available=money[0], held=money[1], spent=money[2], token=token))
            case ["tokens", "current"]:
                self.revoked = True
                return httpx.Response(204)
            case ["statement"]:
                at = int(request.url.params["cursor"] or 0)
                more = str(at + 1) if at + 1 < len(self.entries) else None
                closing = sum(entry.amount for entry in self.entries if entry.status == "posted")
                return reply(
                    Statement(month="2026-11", opening=0, closing=closing, results=self.entries[at : at + 1], next=more)
                )
            case ["statement.csv"]:
                return httpx.Response(200, content=f"at,credits\r\n{request.url.params.get('month')},\x1b[2J1\r\n")
            case ["alerts"] if request.method == "PUT":
                choice = AlertChoice.model_validate_json(request.content)
                new = choice.webhook is not None and choice.webhook != self.channels.webhook
                self.channels = self.channels.model_copy(update=choice.model_dump())
                return reply(self.channels.model_copy(update={"secret": "whsec_1" if new else None}))
            case ["alerts"]:
                return reply(self.channels)
            case ["alerts", "trial"]:
                return httpx.Response(202)
            case ["jobs", name, "dispute"]:
                terms = DisputeTerms(job=UUID(name), side=Side.CLIENT, stake=1_677, until=1.8e9, obstacle=None)
                return reply(terms)
            case ["disputes"] if request.method == "POST":
                asked = DisputeRequest.model_validate_json(request.content)
                self.disputes.insert(0, self.dispute(asked.job, asked.reason))
                return reply(self.disputes[0], 201)
            case ["disputes"]:
                over = request.url.params.get("job")
                found = tuple(each for each in self.disputes if over in (None, str(each.job)))
                return reply(DisputePage(results=found, next=None))
            case ["offers"]:
                return self._offers(request.url.params)
            case ["enrolments"]:
                return reply(EnrolmentCode(code="ABCD-EFGH", expires_at=1e9, root="ab12"), 201)
            case ["blobs", digest]:
                return self._blob(request, digest)
            case ["storage", *_]:
                if request.method == "DELETE":
                    self.blobs.clear()
                kept = sum(map(len, self.blobs.values()))
                return reply(STORAGE.model_copy(update={"files": len(self.blobs), "files_bytes": kept}))
            case ["jobs"] if request.method == "POST":
                return self._submit(request)
            case ["jobs"]:
                return self._page(request.url.params["cursor"])
            case ["jobs", job, *rest] if UUID(job) in self.jobs:
                return self._job(self.jobs[UUID(job)], rest[0] if rest else "", request)
        return problem(404, "not-found", "there is no such thing")

    @property
    def platform_keys(self) -> PlatformKeys:
        return PlatformKeys(verdict=self.public_key, log=self.log.keys.log)

    def _log(self, what: str, numbers: dict[str, int]) -> httpx.Response:
        match what:
            case "head":
                return reply(Head(checkpoint=self.log.head()))
            case "consistency" if 0 < numbers["first"] <= numbers["second"] <= len(self.log.leaves):
                return reply(self.log.consistency(**numbers))
        return problem(404, "not-found", "there is no such thing")

    def certificate(self, job: JobView) -> CertificateBundle:
        """Entered when it is first asked for, between entries of others."""
        if job.id not in self.entered:
            verdict = self.verdict(job).verdict
            assert verdict.weights is not None
            stated = a_statement(verdict.weights, job=job.id, verdict=digest(verdict), epochs=verdict.epochs)
            self.log.verdict_key = self.key.private_bytes_raw()
            self.log.fill(2)
            self.entered[job.id] = self.log.enter(stated)
        return self.log.bundle(*self.entered[job.id])

    def dispute(self, job: UUID, reason: str, ruling: Ruling | None = None) -> DisputeView:
        """Ruled, where there is a ruling."""
        signed = None
        if ruling is not None:
            signed = SignedRuling(ruling=ruling, key_id="k1", signature=self.key.sign(canonical(ruling)))
        return DisputeView(
            id=UUID(int=77),
            job=job,
            name="digits",
            side=Side.CLIENT,
            reason=reason,
            state="open" if ruling is None else "ruled",
            contested="ab" * 32,
            rule=None,
            stake=1_677,
            executed=0 if ruling is None else 2,
            segments=15,
            opened_at=1.79e9,
            ruled_at=None if ruling is None else 1.79e9 + 60,
            ruling=signed,
            again=None
            if ruling is None
            else f"labapex pull {job} --proof proof && labapex replay proof --from 20 --steps 5",
            url=f"{URL}/disputes/{UUID(int=77)}/",
        )

    def revoke(self, certificate: Certificate) -> None:
        """Let the log take a certificate back."""
        withdrawal = Withdrawal(
            certificate=certificate.digest,
            job=certificate.statement.predicate.job,
            dispute=UUID(int=77),
            ruling="ab" * 32,
            reason="iterations 20 to 24 are false",
            issued_at=1.8e9,
        )
        made = self.log.enter(Revocation(subject=certificate.statement.subject, predicate=withdrawal))
        self.revocations[certificate.digest] = self.log.bundle(*made)

    def _blob(self, request: httpx.Request, digest: str) -> httpx.Response:
        begun = self.begun.get(digest, b"")
        if request.method == "HEAD":
            headers = {"Upload-Offset": str(len(begun))}
            return httpx.Response(200) if digest in self.blobs else httpx.Response(404, headers=headers)
        if int(request.headers["Content-Length"]) != len(request.content):
            return problem(400, "invalid", "the body has another length than stated")
        content = request.content
        if "Content-Range" in request.headers:
            first = len(begun)
            last = first + len(content) - 1
            assert request.headers["Content-Range"] == f"bytes {first}-{last}/{last + 1}"
            content = begun + content
        if hashlib.sha256(content).hexdigest() != digest:
            return problem(422, "digest-mismatch", "the bytes have another digest")
        self.blobs[digest] = content
        return httpx.Response(201)

    def _submit(self, request: httpx.Request) -> httpx.Response:
        key = request.headers["Idempotency-Key"]
        if key in self.by_key:
            return reply(self.jobs[self.by_key[key]].view, 200)
        body = JobRequest.model_validate_json(request.content)
        if any(part.digest not in self.blobs for part in (*body.bundle.code, *body.bundle.data)):
            return problem(400, "invalid", "a file was not uploaded")
        if body.spec.budget_micro > self.available:
            return problem(402, "not-enough-credit", "the budget is more than you have; lower it")
        job = self.add(body.spec)
        self.by_key[key] = job.id
        return reply(job, 201)

    def add(self, spec: JobSpec) -> JobView:
        """A job, as if it had been submitted."""
        job = uuid.uuid4()
        view = JobView(
            id=job,
            name=spec.name,
            state=JobState.SUBMITTED,
            reason="",
            fault=None,
            spec=spec,
            created_at=1000.0,
            started_at=None,
            ended_at=None,
            progress=Progress(iterations=0, total=None, epoch=0, eta_seconds=None),
            iterations_per_epoch=None,
            budget=spec.budget_micro,
            cost=0,
            paid=0,
            refunded=0,
            worker="host-1",
            device="cpu: AMD EPYC",
            lost_contact=False,
            package_ms=12.5,
            first_loss_seconds=3.25,
            verdict=None,
            url=f"{URL}/jobs/{job}/",
        )
        self.jobs[job] = MemoryJob(view, list(self.story))
        return view

    def _page(self, cursor: str) -> httpx.Response:
        newest_first = list(reversed(self.jobs.values()))
        start = int(cursor or 0)
        after = str(start + 2) if start + 2 < len(newest_first) else None
        return reply(JobPage(results=tuple(j.view for j in newest_first[start : start + 2]), next=after))

    def _offers(self, asked: httpx.QueryParams) -> httpx.Response:
        """One on each page, the cheapest first; of the filters, `max_price`."""
        most = float(asked.get("max_price", "inf")) * CREDIT
        found = [offer for offer in self.offers if offer.price_per_hour <= most]
        at = int(asked["cursor"] or 0)
        after = str(at + 1) if at + 1 < len(found) else None
        lacking = None if found else f"no host for {asked.get('max_price')} credits an hour; the cheapest asks 0.5"
        free = sum(offer.free for offer in found)
        return reply(
            OfferPage(results=tuple(found[at : at + 1]), next=after, total=len(found), free=free, lacking=lacking)
        )

    def _job(self, job: MemoryJob, what: str, request: httpx.Request) -> httpx.Response:
        ended = job.view.state.ended
        match what:
            case "":
                return reply(job.view)
            case "events":
                return reply(self._events(job, request.url.params["cursor"]))
            case "stop":
                if not ended:
                    job.story = [Chapter(JobState.CANCELLED, reason="stopped by its owner")]
                    job.told = 0
                    self._turn(job, job.story[0])
                return reply(job.view)
            case "data" if not ended:
                return problem(409, "conflict", f"the job is {job.view.state} and needs its data; stop it first")
            case "data" if job.view.verdict:
                job.view = job.view.model_copy(update={"erase_after": 1_790_000_000.0})
                return reply(job.view)
            case "data":
                erased = tuple(
                    Erased(what=what, at=1_789_000_000.0, reason="its owner asked for it") for what in Stored
                )
                job.view = job.view.model_copy(update={"erased": erased})
                return reply(job.view)
            case "resume" if ended:
                job.story = [Chapter(JobState.QUEUED, reason="resumed by its owner")]
                job.told = 0
                self._turn(job, job.story[0])
                return reply(job.view)
            case "verdict" if job.view.verdict:
                return reply(self.verdict(job.view))
            case "receipt" if job.view.state in (JobState.VERIFIED, JobState.REJECTED):
                return reply(self.receipt(job.view))
            case "certificate" if job.view.verdict == "verified":
                return reply(self.certificate(job.view))
            case "weights" if job.view.verdict:
                headers = {"X-Labapex-Digest": hashlib.sha256(self.weights).hexdigest()}
                return httpx.Response(200, content=self.weights, headers=headers)
        return problem(404, "not-finished", "there is none yet")

    def _events(self, job: MemoryJob, cursor: str) -> Events:
        number = int(cursor or 0)
        chapter = job.story[number] if number < len(job.story) else Chapter(job.view.state, reason=job.view.reason)
        first = 0 if chapter.restarted else sum(len(c.losses) for c in job.story[:number])
        if number == job.told:
            job.told += 1
            self._turn(job, chapter, first + len(chapter.losses))
        return Events(
            cursor=str(min(number + 1, len(job.story))),
            restarted=chapter.restarted,
            job=job.view,
            first=first,
            losses=chapter.losses,
            samples=chapter.samples,
            series=chapter.series,
            console=chapter.console,
            rules=chapter.rules,
        )

    def _turn(self, job: MemoryJob, chapter: Chapter, iterations: int | None = None) -> None:
        """The job reaches a chapter of its story."""
        view = job.view
        epochs = view.spec.epochs
        done = view.progress.iterations if iterations is None else iterations
        total = epochs * ITERATIONS_PER_EPOCH if chapter.knows_iterations else None
        verdict = {JobState.VERIFIED: "verified", JobState.REJECTED: "rejected"}.get(chapter.state)
        paid = view.budget // 2 if verdict == "verified" else 0
        job.view = view.model_copy(
            update={
                "state": chapter.state,
                "reason": chapter.reason,
                "progress": Progress(
                    iterations=done, total=total, epoch=min(epochs, done // ITERATIONS_PER_EPOCH + 1), eta_seconds=5.0
                ),
                "iterations_per_epoch": ITERATIONS_PER_EPOCH if chapter.knows_iterations else None,
                "verdict": verdict,
                "paid": paid,
                "cost": paid,
                "refunded": view.budget - paid if verdict else 0,
            }
        )

    def receipt(self, job: JobView) -> Receipt:
        return Receipt(
            job=job.id,
            held=job.budget,
            paid=job.paid,
            refunded=job.refunded,
            price_per_epoch=job.paid // job.spec.epochs,
            verified_epochs=job.spec.epochs if job.paid else 0,
            reason="paid by verified epoch" if job.paid else "the run was rejected",
        )

    def verdict(self, job: JobView) -> SignedVerdict:
        failed = self.rejected_by
        rules = [rule("log-count", value=12.0, limit=12.0), rule("pev", "not-applicable", None, None), rule("replay")]
        if failed:
            rules[-1] = rule(failed, "fail", value=0.31, limit=0.0)
        document = Verdict(
            job=job.id,
            lease=uuid.UUID(int=7),
            verdict="rejected" if failed else "verified",
            deciding_rule=failed,
            reason="segment 3 ended in another state" if failed else "every rule passed",
            fault=Fault.WORKER if failed else Fault.NOBODY,
            epochs=job.spec.epochs,
            iterations_per_epoch=ITERATIONS_PER_EPOCH,
            loss_logs=job.progress.iterations,
            verified_epochs=0 if failed else job.spec.epochs,
            rules=tuple(rules),
            replay_max_error=0.31 if failed else 0.0,
            detection="a share of 10 % bad segments is caught with 99 %",
            origin=Origin(tensors=4, unproven=0, success=1.0, formula="1 (all 4 segments)"),
            contract="a" * 64,
            proof_root="b" * 64,
            weights=None if failed else hashlib.sha256(self.weights).hexdigest(),
            worker_environment=None,
            verifier_environment=None,
            cost=Cost(
                verify_seconds=1.5,
                train_seconds=10.0,
                opened_bytes=2048,
                all_checkpoint_bytes=1 << 20,
                opened_states=5,
                segments_replayed=5,
            ),
            issued_at=2000.0,
        )
        return SignedVerdict(verdict=document, key_id="k1", signature=self.key.sign(canonical(document)))


DEVICE = DeviceCode(
    device_code="a device's own secret",
    user_code="WDJB-MJHT",
    verification_uri=f"{URL}/device/",
    verification_uri_complete=f"{URL}/device/?code=WDJB-MJHT",
    expires_in=600,
    interval=5,
)
ENTRIES = tuple(
    Entry(id=UUID(int=number), at=1_793_500_000.0 - number, status=status, amount=amount, job=None, memo=memo)
    for number, (status, amount, memo) in enumerate(
        [
            ("posted", 5 * CREDIT, "rest of the budget"),
            ("posted", -10 * CREDIT, "digits"),
            ("posted", 100 * CREDIT, "top-up"),
        ]
    )
)
OFFERS = (
    Offer(
        id=UUID(int=1), name="basement", device="cpu: AMD EPYC", devices=1, memory=64 << 30, room=None,
        hours=(), price_per_hour=CREDIT // 2, speed=310.0, deposit=25 * CREDIT, reputation=95,
        record="trusted: 17 verified in a row; 1 lost",
        verified=17, reliability=0.944, free=True,
    ),
    Offer(
        id=UUID(int=2), name="attic", device="cuda: NVIDIA H200", devices=2, memory=141 << 30, room=None,
        hours=(Hours(begin=1320, end=420),), price_per_hour=2 * CREDIT, speed=None, reputation=0,
        record="new: nothing of it was judged yet",
        verified=0, reliability=1.0, free=False,
    ),
)  # fmt: skip
TOKEN_VIEW = TokenView(
    id=7,
    name="laptop",
    prefix="tok-1234",
    scopes=tuple(Scope),
    created_at=1_000.0,
    last_used_at=None,
    expires_at=1_790_000_000.0,
)


def new_token(asked: TokenTerms) -> NewToken:
    return NewToken(
        token=TOKEN,
        username="ada",
        organisation=asked.organisation,
        scopes=asked.scopes,
        expires_at=1_790_000_000.0,
    )


def reply(model: Message, status: int = 200) -> httpx.Response:
    return httpx.Response(status, content=model.model_dump_json(), headers={"Content-Type": "application/json"})


def problem(status: int, code: str, detail: str, **headers: str) -> httpx.Response:
    body = Problem(title=code, status=status, detail=detail, code=code)
    return httpx.Response(
        status, content=body.model_dump_json(), headers={"Content-Type": "application/problem+json", **headers}
    )


def unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused", request=request)


def broken(request: httpx.Request) -> httpx.Response:
    raise httpx.RemoteProtocolError("server disconnected", request=request)


def unavailable(request: httpx.Request) -> httpx.Response:
    return httpx.Response(503, content=b"<html>down</html>", headers={"Retry-After": "7"})
