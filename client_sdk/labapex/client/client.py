"""The SDK: a typed, synchronous client of one platform, with the same objects as the REST API.

`Client()` takes the platform and the token from `LABAPEX_URL` and `LABAPEX_TOKEN`, else from what `labapex login`
stored; `submit(spec, folder)` gives a job, `follow(job.id)` what happens to it, `pull(job.id, folder)` the verified
weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import UUID

import httpx
from pydantic import Field

from labapex import bundle, sealing
from labapex.certificate import CertificateBundle, PlatformKeys, check
from labapex.client import credentials, parents, uploads
from labapex.client.connection import MAX_REPLY, Connection, Request
from labapex.errors import (
    LabApexError,
    NotFound,
    NotLoggedIn,
    PlatformUnreachable,
    Tampered,
    UsageError,
    VerificationRejected,
)
from labapex.proof import folder, parcel
from labapex.proof.folder import Manifest, Proof
from labapex.protocol.api import (
    AlertChannels,
    AlertChoice,
    DeviceCode,
    DevicePoll,
    EnrolmentCode,
    Entry,
    Events,
    JobPage,
    JobRequest,
    JobView,
    Login,
    Me,
    NewToken,
    Offer,
    OfferOrder,
    OfferPage,
    Scope,
    Statement,
    Storage,
    TokenPage,
    TokenTerms,
    TokenView,
)
from labapex.protocol.canonical import Message, parse
from labapex.protocol.canonical import digest as digest_of
from labapex.protocol.spec import Constraints, JobSpec
from labapex.protocol.verdict import Receipt, SignedVerdict, Verdict
from labapex.transparency import Checkpoint, Consistency, Head, check_growth, open_checkpoint

MAX_WEIGHTS = 1 << 40
MAX_PROOF = 1 << 42
ANY = Constraints()
_POLL = 0.5
_LONGEST_POLL = 15.0
_M = TypeVar("_M", bound=Message)
_P = TypeVar("_P", JobPage, OfferPage, Statement, TokenPage)


class VerdictKey(Message):
    """The key that signs verdicts (Ed25519)."""

    key_id: str = Field(max_length=200)
    public_key: bytes = Field(min_length=32, max_length=32)


@dataclass(frozen=True)
class Pulled:
    """What `Client.pull` brought. `certificate` is None where the platform has none for the job."""

    weights: Path
    verdict: Path
    certificate: Path | None
    digest: str
    size: int  # bytes


def check_verdict(signed: SignedVerdict, public_key: bytes) -> Verdict:
    """The verdict, if the key signed it; raises `Tampered`."""
    sealing.verify(public_key, signed.verdict, signed.signature)
    return signed.verdict


def is_news(events: Events) -> bool:
    """Whether anything happened since the cursor that was asked with."""
    return bool(events.losses or events.samples or events.console or events.series or events.rules)


class Client:
    """A client of one platform. Raises the errors of `labapex.errors`; what may be repeated is repeated by itself."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        now: Callable[[], float] = time.time,
    ) -> None:
        address, found = credentials.resolve(url, token, os.environ)
        self._connection = Connection(address, found, transport=transport, sleep=sleep, jitter=jitter, now=now)

    @property
    def url(self) -> str:
        return self._connection.url

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- account -------------------------------------------------------------------------------------------------------

    def login(self, username: str, password: str, name: str = "", scopes: Sequence[Scope] = tuple(Scope)) -> NewToken:
        """Make a token and use it from now on. `name` says what it is for. Storing it is the caller's choice."""
        self._connection.token = None
        body = Login(username=username, password=password, name=name, scopes=tuple(scopes))
        return self._take(self._ask(NewToken, "POST", "login/", body=body, repeatable=False, anonymous=True))

    def begin_login(self, name: str = "", scopes: Sequence[Scope] = tuple(Scope)) -> DeviceCode:
        """Ask to be logged in by a person's browser (RFC 8628): show the code, then `await_login`."""
        self._connection.token = None
        body = TokenTerms(name=name, scopes=tuple(scopes))
        return self._ask(DeviceCode, "POST", "login/device/", body=body, repeatable=False, anonymous=True)

    def await_login(self, code: DeviceCode) -> NewToken:
        """Ask until a person has decided in the portal, and use the token from now on. Raises `NotLoggedIn`."""
        interval, waited = float(code.interval), 0.0
        while waited <= code.expires_in:
            self._connection.sleep(interval)
            waited += interval
            body = DevicePoll(device_code=code.device_code)
            try:
                return self._take(self._ask(NewToken, "POST", "login/device/token/", body=body, anonymous=True))
            except LabApexError as error:
                if error.code == "slow-down":
                    interval += 5.0
                elif error.code in ("access-denied", "expired-token"):
                    raise NotLoggedIn(str(error)) from None
                elif error.code != "authorization-pending":
                    raise
        raise NotLoggedIn("nobody entered the code in time; run `labapex login` again")

    def _take(self, new: NewToken) -> NewToken:
        self._connection.token = credentials.Token(new.token, "this login")
        return new

    def logout(self) -> None:
        """Revoke the token that is used: it opens nothing any more, wherever it is."""
        self._connection.call(Request("DELETE", "/api/v1/tokens/current/"), repeatable=False)

    def tokens(self) -> Iterator[TokenView]:
        """Your tokens on all pages, the newest first."""
        return self._pages(TokenPage, "tokens/")

    def revoke_token(self, token_id: int) -> None:
        self._connection.call(Request("DELETE", f"/api/v1/tokens/{token_id}/"), repeatable=False)

    def clock_skew(self) -> float | None:
        """Seconds by which the platform's clock is ahead of this machine's, to the second; None where it does not tell.

        Raises `PlatformUnreachable` where nobody answers: this needs no login."""
        reply = self._connection.call(Request("GET", "/api/v1/keys/", anonymous=True))
        return self._connection.skew(reply.headers)

    def me(self) -> Me:
        return self._ask(Me, "GET", "me/")

    def statement(self, month: str | None = None, cursor: str = "") -> Statement:
        """Your account in a month ("2026-11"; None: the present one, UTC), its entries the newest first, a page at a time."""
        params = {"cursor": cursor} | ({"month": month} if month else {})
        return self._ask(Statement, "GET", "statement/", params=params)

    def statement_csv(self, month: str | None = None) -> str:
        """All of a month as a table for a spreadsheet, the oldest entry first."""
        asked = Request("GET", "/api/v1/statement.csv", params={"month": month} if month else None)
        return self._connection.call(asked).body.decode("utf-8", "replace")

    def entries(self, month: str | None = None) -> Iterator[Entry]:
        """The entries of a month on all pages."""
        return _all(lambda cursor: self.statement(month, cursor))

    def enrolment_code(self) -> EnrolmentCode:
        """A code with which one new worker can join in your name."""
        return self._ask(EnrolmentCode, "POST", "enrolments/", headers=_one_time())

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def submit(self, spec: JobSpec, folder: Path, on_progress: Callable[[int, int], None] | None = None) -> JobView:
        """Digest the job's files, upload what the platform lacks, and submit. See `submit_bundle`."""
        return self.submit_bundle(*parents.collect(folder, spec), on_progress)

    def submit_bundle(
        self, spec: JobSpec, files: bundle.LocalBundle, on_progress: Callable[[int, int], None] | None = None
    ) -> JobView:
        """Upload and submit files that `parents.collect` found before. `on_progress` is told bytes done and bytes in all."""
        sizes = {part.digest: part.size for part in (*files.bundle.code, *files.bundle.data)}
        sizes |= {digest: path.stat().st_size for digest, path in files.models.items()}
        places = files.models | files.files
        total, done = sum(sizes.values()), 0
        report = on_progress or (lambda done, total: None)
        for digest, size in sizes.items():
            report(done, total)
            uploads.upload(self._connection, digest, size, places[digest], lambda sent, b=done: report(b + sent, total))  # type: ignore[misc]
            done += size
        report(total, total)
        body = JobRequest(spec=spec, bundle=files.bundle)
        return self._ask(JobView, "POST", "jobs/", body=body, headers=_one_time())

    def job(self, job: UUID) -> JobView:
        return self._ask(JobView, "GET", f"jobs/{job}/")

    def jobs(self, cursor: str = "") -> JobPage:
        """Your jobs, the newest first, a page at a time: `next` is the cursor of the page after."""
        return self._ask(JobPage, "GET", "jobs/", params={"cursor": cursor})

    def all_jobs(self) -> Iterator[JobView]:
        """Your jobs on all pages, the newest first."""
        return self._pages(JobPage, "jobs/")

    def events(self, job: UUID, cursor: str = "") -> Events:
        """What is new of a job since a cursor; everything for the empty one."""
        return self._ask(Events, "GET", f"jobs/{job}/events/", params={"cursor": cursor})

    def follow(
        self,
        job: UUID,
        cursor: str = "",
        *,
        poll: float = _POLL,
        patience: float = 3600.0,
        on_trouble: Callable[[PlatformUnreachable], None] | None = None,
    ) -> Iterator[Events]:
        """Yield what is new of a job until it has ended and all of it was told.

        A platform that does not answer is asked again with growing pauses (`on_trouble` hears of it) and raises
        `PlatformUnreachable` only after `patience` seconds of waiting without an answer.
        """
        waited, pause = 0.0, poll
        while True:
            try:
                events = self.events(job, cursor)
            except PlatformUnreachable as error:
                if waited >= patience:
                    raise
                if on_trouble:
                    on_trouble(error)
                self._connection.sleep(pause)
                waited, pause = waited + pause, min(_LONGEST_POLL, pause * 2)
                continue
            waited, pause, cursor = 0.0, poll, events.cursor
            yield events
            if not is_news(events):
                if events.job.state.ended:
                    return
                self._connection.sleep(poll)
            elif not events.job.state.ended and len(events.losses) < 1000:  # else: there is more to catch up with
                self._connection.sleep(poll)

    def stop(self, job: UUID) -> JobView:
        """Stop a job: its complete epochs are verified and paid. One that has ended stays as it is."""
        return self._ask(JobView, "POST", f"jobs/{job}/stop/")

    def delete(self, job: UUID) -> JobView:
        """Have what is stored of an ended job deleted; its view says when, if not at once."""
        return self._ask(JobView, "DELETE", f"jobs/{job}/data/")

    def storage(self) -> Storage:
        """What your data takes on the platform, and how long it is kept."""
        return self._ask(Storage, "GET", "storage/")

    def delete_files(self) -> Storage:
        """Delete your files that no job needs; what is left then."""
        return self._ask(Storage, "DELETE", "storage/files/")

    # -- alerts --------------------------------------------------------------------------------------------------------

    def alert_channels(self) -> AlertChannels:
        """How you are told of your jobs' alerts."""
        return self._ask(AlertChannels, "GET", "alerts/")

    def choose_alert_channels(self, choice: AlertChoice) -> AlertChannels:
        """Choose it. Where the webhook is new the answer has the secret that signs its calls, this once."""
        return self._ask(AlertChannels, "PUT", "alerts/", body=choice, repeatable=False)

    def try_alert_channels(self) -> None:
        """Send a trial to them."""
        self._connection.call(Request("POST", "/api/v1/alerts/trial/"), repeatable=False)

    # -- offers --------------------------------------------------------------------------------------------------------

    def offers(
        self, wanted: Constraints = ANY, order: OfferOrder = OfferOrder.PRICE, *, cursor: str = "", limit: int = 100
    ) -> OfferPage:
        """What connected hosts offer that meet constraints (a `JobSpec` is such), the best first, a page at a time."""
        asked = wanted.model_dump(mode="json", include=set(Constraints.model_fields), exclude_defaults=True)
        params = {name: str(value) for name, value in asked.items()}
        return self._ask(
            OfferPage, "GET", "offers/", params={**params, "sort": order, "cursor": cursor, "limit": str(limit)}
        )

    def all_offers(self, wanted: Constraints = ANY, order: OfferOrder = OfferOrder.PRICE) -> Iterator[Offer]:
        """The same on all pages."""
        return _all(lambda cursor: self.offers(wanted, order, cursor=cursor))

    # -- results -------------------------------------------------------------------------------------------------------

    def verdict(self, job: UUID) -> SignedVerdict:
        """The signed verdict, unchecked: see `check_verdict`. Raises `NotFinished` while there is none."""
        return self._ask(SignedVerdict, "GET", f"jobs/{job}/verdict/")

    def verdict_key(self) -> VerdictKey:
        """The platform's key for verdicts, as the platform itself states it; told to anyone."""
        return self._ask(VerdictKey, "GET", "keys/verdict/", anonymous=True)

    def checked_verdict(self, job: UUID, key: bytes | None = None) -> SignedVerdict:
        """The verdict on this very job, its signature checked against `key`, else against the platform's stated key."""
        signed = self.verdict(job)
        check_verdict(signed, key or self.verdict_key().public_key)
        if signed.verdict.job != job:
            raise Tampered(f"the platform sent the verdict of another job: {signed.verdict.job}")
        return signed

    def platform_keys(self) -> PlatformKeys:
        """The keys that certificates stand on, as the platform itself states them; told to anyone."""
        return self._ask(PlatformKeys, "GET", "keys/", anonymous=True)

    def certificate(self, job: UUID) -> CertificateBundle:
        """The certificate of a verified job, unchecked: see `labapex.certificate.check`."""
        return self._ask(CertificateBundle, "GET", f"jobs/{job}/certificate/")

    def check_log(self, seen: Checkpoint, log_key: bytes) -> Checkpoint:
        """The log's present head, after proof that the log only grew since one that was seen. Raises `Tampered`."""
        now = open_checkpoint(self._ask(Head, "GET", "transparency/head", anonymous=True).checkpoint, log_key)
        if now.size < seen.size:
            raise Tampered(f"the log had {seen.size} entries once and states {now.size} now: entries were taken out")
        sizes = {"first": str(seen.size), "second": str(now.size)}
        grown = self._ask(Consistency, "GET", "transparency/consistency", params=sizes, anonymous=True)
        check_growth(seen, now, grown)
        return now

    def receipt(self, job: UUID) -> Receipt:
        return self._ask(Receipt, "GET", f"jobs/{job}/receipt/")

    def pull(self, job: UUID, destination: Path, key: bytes | None = None, *, log_key: bytes | None = None) -> Pulled:
        """Bring `model.safetensors`, `verdict.json` and `certificate.json` into a folder.

        The verdict's signature is checked first, then that the weights are those it names, and that the certificate is
        theirs; a file that is not as it should be never gets its name. Raises `VerificationRejected`, `NotFinished`, `Tampered`.
        """
        signed = self.checked_verdict(job, key)
        verdict = signed.verdict
        if verdict.verdict == "rejected":
            raise VerificationRejected(f"the job was rejected by the rule '{verdict.deciding_rule}': {verdict.reason}")
        if verdict.weights is None:
            raise NotFound("the verdict names no weights")
        certified = self._checked_certificate(signed, key, log_key)
        try:
            destination.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{destination} cannot be a folder: {error.strerror}") from None
        weights, document = destination / "model.safetensors", destination / "verdict.json"
        size = 0
        with _new_file(weights) as temporary:

            def receive(headers: httpx.Headers, chunks: Iterator[bytes]) -> None:
                nonlocal size
                size = _save(temporary, chunks, verdict.weights or "", headers.get("X-Labapex-Digest"))

            self._connection.download(f"/api/v1/jobs/{job}/weights/", receive)
        with _new_file(document) as temporary:
            temporary.write_text(signed.model_dump_json(indent=2) + "\n", encoding="utf-8")
        certificate = destination / "certificate.json" if certified else None
        if certified and certificate:
            with _new_file(certificate) as temporary:
                temporary.write_text(certified.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return Pulled(weights=weights, verdict=document, certificate=certificate, digest=verdict.weights, size=size)

    def proof(self, job: UUID, destination: Path, key: bytes | None = None) -> Manifest:
        """Bring the proof of a judged job into a folder that does not exist yet; see docs/proof-folder.md.

        Every digest is checked, and that it is the proof that the signed verdict speaks of. A folder that is not as it
        should be never gets its name. Raises `NotFinished`, `Tampered`, `MalformedInput`, `UsageError`.
        """
        signed = self.checked_verdict(job, key)
        if destination.exists():
            raise UsageError(f"{destination} exists already; name a folder that does not")
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(dir=destination.parent, prefix=".labapex-")) / "proof"
        except OSError as error:
            raise UsageError(f"{destination.parent} cannot be written to: {error.strerror}") from None
        found: list[Proof] = []

        def receive(headers: httpx.Headers, chunks: Iterator[bytes]) -> None:
            parcel.unpack(chunks, draft, limit=MAX_PROOF)
            found.append(folder.read(draft))

        try:
            self._connection.download(f"/api/v1/jobs/{job}/proof/", receive)
            if found[-1].verdict != signed:
                raise Tampered("the platform sent the proof of another verdict than the one that it signed")
            draft.rename(destination)
        except OSError as error:
            raise LabApexError(f"{destination} cannot be written: {error.strerror}") from None
        finally:
            shutil.rmtree(draft.parent)
        return found[-1].manifest

    def _checked_certificate(
        self, signed: SignedVerdict, key: bytes | None, log_key: bytes | None
    ) -> CertificateBundle | None:
        """The certificate of this verdict; None where the platform has none. Raises `Tampered`."""
        verdict = signed.verdict
        try:
            found = self.certificate(verdict.job)
        except NotFound:
            return None
        stated = self.platform_keys() if key is None or log_key is None else None
        keys = PlatformKeys(
            verdict=key or (stated.verdict if stated else b""), log=log_key or (stated.log if stated else b"")
        )
        certified = check(found, keys).statement
        if (certified.predicate.job, certified.model) != (verdict.job, verdict.weights):
            raise Tampered("the platform sent the certificate of another job")
        if certified.predicate.verdict != digest_of(verdict):
            raise Tampered("the certificate was made from another verdict than the one that the platform sent")
        return found

    # -- how ----------------------------------------------------------------------------------------------------------

    def _ask(
        self,
        model: type[_M],
        method: str,
        path: str,
        *,
        body: Message | None = None,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
        repeatable: bool = True,
        anonymous: bool = False,
    ) -> _M:
        content = body.model_dump_json().encode() if body else b"{}" if method == "POST" else None
        asked = Request(
            method,
            f"/api/v1/{path}",
            content=(lambda: content) if content is not None else None,
            headers={**({"Content-Type": "application/json"} if content is not None else {}), **(headers or {})},
            params=params,
            anonymous=anonymous,
        )
        reply = self._connection.call(asked, repeatable=repeatable)
        return parse(model, reply.body, limit=MAX_REPLY)

    def _pages(self, model: type[_P], path: str) -> Iterator[Any]:
        return _all(lambda cursor: self._ask(model, "GET", path, params={"cursor": cursor}))


def _all(ask: Callable[[str], _P]) -> Iterator[Any]:
    """The rows of all pages."""
    cursor: str | None = ""
    while cursor is not None:
        page = ask(cursor)
        yield from page.results
        cursor = page.next if page.next != cursor else None


def _one_time() -> dict[str, str]:
    """The key by which a request that was repeated, because its answer got lost, makes its thing only once."""
    return {"Idempotency-Key": str(uuid.uuid4())}


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when all went well, and is deleted otherwise."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".labapex-")
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be written to: {error.strerror}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise LabApexError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _save(path: Path, chunks: Iterator[bytes], digest: str, stated: str | None) -> int:
    """Write what comes to a file, and raise `Tampered` unless it has the digest of the verdict."""
    state, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            size += len(chunk)
            if size > MAX_WEIGHTS:
                raise Tampered(f"the weights are longer than {MAX_WEIGHTS} bytes")
            state.update(chunk)
            file.write(chunk)
    if state.hexdigest() != digest or stated not in (None, digest):
        raise Tampered("the weights are not those that the verdict names; nothing was kept")
    return size
