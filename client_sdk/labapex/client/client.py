"""The SDK: a typed, synchronous client of one platform, with the same objects as the REST API.

`Client()` takes the platform and the token from `LABAPEX_URL` and `LABAPEX_TOKEN`, else from what `labapex login`
stored; `submit(spec, folder)` gives a job, `follow(job.id)` what happens to it, `pull(job.id, folder)` the verified
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from uuid import UUID

from labapex import bundle
from labapex.client import credentials, parents, uploads
from labapex.client.asking import all_pages, one_time
from labapex.client.connection import Request
from labapex.client.results import Results
from labapex.errors import (
    LabApexError,
    NotLoggedIn,
    PlatformUnreachable,
)
from labapex.protocol.api import (
    AlertChannels,
    AlertChoice,
    Deposit,
    DepositChoice,
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
from labapex.protocol.ruling import DisputePage, DisputeRequest, DisputeTerms, DisputeView
from labapex.protocol.spec import Constraints, JobSpec

ANY = Constraints()
_POLL = 0.5
_LONGEST_POLL = 15.0


def is_news(events: Events) -> bool:
    """Whether anything happened since the cursor that was asked with."""
    return bool(events.losses or events.samples or events.console or events.series or events.rules)


class Client(Results):
    """A client of one platform. Raises the errors of `labapex.errors`; what may be repeated is repeated by itself."""

    # -- account -------------------------------------------------------------------------------------------------------

    def login(
        self,
        username: str,
        password: str,
        name: str = "",
        scopes: Sequence[Scope] = tuple(Scope),
        organisation: str | None = None,
    ) -> NewToken:
        """Make a token and use it from now on, for yourself or for an organisation whose member you are. `name` says what it is
        for. Storing it is the caller's choice."""
        self._connection.token = None
        terms = TokenTerms(name=name, scopes=tuple(scopes), organisation=organisation)
        body = Login(username=username, password=password, **dict(terms))
        return self._take(self._ask(NewToken, "POST", "login/", body=body, repeatable=False, anonymous=True))

    def begin_login(
        self, name: str = "", scopes: Sequence[Scope] = tuple(Scope), organisation: str | None = None
    ) -> DeviceCode:
        """Ask to be logged in by a person's browser (RFC 8628): show the code, then `await_login`."""
        self._connection.token = None
        body = TokenTerms(name=name, scopes=tuple(scopes), organisation=organisation)
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
        return all_pages(lambda cursor: self.statement(month, cursor))

    def enrolment_code(self) -> EnrolmentCode:
        """A code with which one new worker can join in your name."""
        return self._ask(EnrolmentCode, "POST", "enrolments/", headers=one_time())

    def deposit(self, worker: UUID) -> Deposit:
        """What is locked on a worker of yours. Its id stands on the page of its deposit, and in its offer."""
        return self._ask(Deposit, "GET", f"workers/{worker}/deposit/")

    def change_deposit(self, worker: UUID, credits: Decimal) -> Deposit:
        """Lock so many credits on a worker of yours, in place of what is locked; 0: take all back. They are lost when it is found
        to have lied, and cannot be lowered while it answers for a job."""
        if not credits:
            return self._ask(Deposit, "DELETE", f"workers/{worker}/deposit/", repeatable=False)
        choice = DepositChoice(credits=credits)
        return self._ask(Deposit, "PUT", f"workers/{worker}/deposit/", body=choice, repeatable=False)

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
        return self._ask(JobView, "POST", "jobs/", body=body, headers=one_time())

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

    def resume(self, job: UUID) -> JobView:
        """Let a stopped job go on behind its last paid epoch; the rest of its budget is held. Raises `NotEnoughCredit`."""
        return self._ask(JobView, "POST", f"jobs/{job}/resume/")

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
        return all_pages(lambda cursor: self.offers(wanted, order, cursor=cursor))

    # -- disputes ------------------------------------------------------------------------------------------------------

    def dispute_terms(self, job: UUID) -> DisputeTerms:
        """What contesting the verdict on a job would take: its stake, until when, and what stands in its way."""
        return self._ask(DisputeTerms, "GET", f"jobs/{job}/dispute/")

    def dispute(self, job: UUID, reason: str) -> DisputeView:
        """Contest the verdict on a job, as its client or as the owner of its worker; the stake is held."""
        asked = DisputeRequest(job=job, reason=reason)
        return self._ask(DisputeView, "POST", "disputes/", body=asked, headers=one_time())

    def disputes(self, job: UUID | None = None) -> Iterator[DisputeView]:
        """Disputes in which you are a party, the newest first; over one job, where it is given."""
        over = {} if job is None else {"job": str(job)}
        return all_pages(lambda cursor: self._ask(DisputePage, "GET", "disputes/", params={**over, "cursor": cursor}))
