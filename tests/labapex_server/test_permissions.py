"""Who gets what: every address, page and socket of the platform, asked by everybody. An address without a row here fails.

The cast: the job's owner, another researcher, the owner of the worker that trained it, the operator (who has his
own pages and no part in others'), and nobody. What is another's does not exist: 404, in the same words as for what never was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from asgiref.testing import ApplicationCommunicator
from django.conf import settings as django_settings
from django.core.cache import cache
from django.test import Client
from django.urls import get_resolver
from tests.browser.stage import Story
from tests.labapex_server.gateway.fixtures import threads
from tests.labapex_server.signing_in import signed_in

from labapex.protocol.spec import CREDIT
from labapex.protocol.states import JobState
from labapex_server import asgi
from labapex_server.accounts import organisations
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import Role, User
from labapex_server.accounts.organisations import Acting
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.telemetry.offload import offload

__all__ = ["threads"]

SECRET = "a-name-that-only-its-owner-knows"
CAST = ("owner", "other", "worker_owner", "operator", "anonymous")


@dataclass(frozen=True)
class Public:
    """Everybody gets the same status."""

    status: int = 200


@dataclass(frozen=True)
class Page:
    """A page about whoever looks: nobody is sent to sign in."""

    status: int = 200


@dataclass(frozen=True)
class FactorPage:
    """A page about whoever looks, which depends on whether they have a second factor: of this cast the operator alone."""

    status: int
    with_factor: int


@dataclass(frozen=True)
class OwnPage:
    """A page about a thing: to others it does not exist."""

    status: int = 200


@dataclass(frozen=True)
class Program:
    """A call about whoever calls: nobody is told to send a token."""

    status: int = 200


@dataclass(frozen=True)
class OwnThing:
    """A call about a thing: to others it does not exist. `code`: of the owner's own problem, where it is one."""

    status: int = 200
    code: str = ""


@dataclass(frozen=True)
class Office:
    """A page for the operator: to whoever else is signed in there is nothing, in whatever words."""

    status: int = 200


Row = Office | Public | Page | FactorPage | OwnPage | Program | OwnThing

MATRIX: dict[tuple[str, str], Row] = {
    ("GET", "healthz"): Public(),
    ("GET", "readyz"): Public(),
    ("GET", "metrics"): Public(403),  # asked by a name that is not this machine's: test_views.py of the pulse
    ("GET", "api/"): Public(),
    ("GET", "api/schema"): Public(),
    ("POST", "api/v1/login/"): Public(400),
    ("POST", "api/v1/login/device/"): Public(201),
    ("POST", "api/v1/login/device/token/"): Public(400),
    ("GET", "api/v1/me/"): Program(),
    ("GET", "api/v1/statement/"): Program(),
    ("GET", "api/v1/statement.csv"): Program(),
    ("GET", "api/v1/offers/"): Program(),
    ("GET", "api/v1/tokens/"): Program(),
    ("DELETE", "api/v1/tokens/current/"): Program(204),
    ("DELETE", "api/v1/tokens/<int:token>/"): OwnThing(204),
    ("HEAD", "api/v1/^blobs/(?P<digest>[0-9a-f]{64})/$"): Program(404),  # of files of others: test_uploads.py
    ("GET", "api/v1/jobs/"): Program(),
    ("POST", "api/v1/jobs/"): Program(400),
    ("GET", "api/v1/jobs/<uuid:job>/"): OwnThing(),
    ("GET", "api/v1/jobs/<uuid:job>/events/"): OwnThing(),
    ("POST", "api/v1/jobs/<uuid:job>/stop/"): OwnThing(),
    ("POST", "api/v1/jobs/<uuid:job>/resume/"): OwnThing(),
    ("DELETE", "api/v1/jobs/<uuid:job>/data/"): OwnThing(409, "conflict"),  # it trains
    ("GET", "api/v1/storage/"): Program(),
    ("DELETE", "api/v1/storage/files/"): Program(),
    ("GET", "api/v1/jobs/<uuid:job>/verdict/"): OwnThing(404, "not-finished"),
    ("GET", "api/v1/jobs/<uuid:job>/receipt/"): OwnThing(404, "not-finished"),
    ("GET", "api/v1/jobs/<uuid:job>/weights/"): OwnThing(404, "not-finished"),
    ("GET", "api/v1/jobs/<uuid:job>/proof/"): OwnThing(404, "not-finished"),
    ("GET", "api/v1/jobs/<uuid:job>/certificate/"): OwnThing(404, "not-finished"),
    ("GET", "api/v1/jobs/<uuid:job>/dispute/"): OwnThing(404, "not-found"),  # there is no verdict yet
    ("GET", "api/v1/disputes/"): Program(),
    ("POST", "api/v1/disputes/"): Program(400),
    ("GET", "api/v1/disputes/<uuid:dispute>/"): OwnThing(404, "not-found"),  # of parties: disputes/test_doors.py
    ("GET", "api/v1/^transparency/revocations/(?P<certificate>[0-9a-f]{64})$"): Public(404),
    ("GET", "api/v1/keys/"): Public(),
    ("GET", "api/v1/keys/verdict/"): Public(),
    ("GET", "api/v1/transparency/head"): Public(),
    ("GET", "api/v1/transparency/entries"): Public(),
    ("GET", "api/v1/transparency/inclusion"): Public(400),
    ("GET", "api/v1/transparency/consistency"): Public(400),
    ("GET", "api/v1/alerts/"): Program(),
    ("PUT", "api/v1/alerts/"): Program(),
    ("POST", "api/v1/alerts/trial/"): Program(400),  # there is no channel
    ("POST", "api/v1/enrolments/"): Program(201),
    ("GET", "api/v1/workers/<uuid:worker>/deposit/"): OwnThing(404, "not-found"),  # of owners: api/test_deposits.py
    ("DELETE", "api/v1/workers/<uuid:worker>/deposit/"): OwnThing(404, "not-found"),
    ("POST", "gateway/enrol/"): Public(400),  # the code is the credential
    ("POST", "gateway/earnings/"): Public(400),  # a worker's signature is the credential
    ("GET", "gateway/trust/"): Public(),
    ("GET", "gateway/releases/agent"): Public(404),  # none is released
    ("GET", "gateway/releases/agent/<str:digest>"): Public(404),
    ("GET", ""): Public(302),
    ("GET", "login/"): Public(),
    ("POST", "logout/"): Public(302),
    ("GET", "signup/"): Public(),
    ("GET", "inactive/"): Public(),
    ("GET", "reauthenticate/"): Page(),
    ("GET", "email/"): Page(),
    ("POST", "email/"): Page(302),
    ("GET", "confirm-email/"): Public(),
    ("GET", r"^confirm-email/(?P<key>[-:\w]+)/$"): Public(),  # says that the link is invalid
    ("POST", r"^confirm-email/(?P<key>[-:\w]+)/$"): Public(404),
    ("GET", "password/change/"): Page(),
    ("GET", "password/set/"): Page(302),  # everybody has one
    ("GET", "password/reset/"): Public(),
    ("GET", "password/reset/done/"): Public(),
    ("GET", r"^password/reset/key/(?P<uidb36>[0-9A-Za-z]+)-(?P<key>.+)/$"): Public(),  # says that the link is invalid
    ("GET", "password/reset/key/done/"): Public(),
    ("GET", "login/code/confirm/"): Public(302),  # no code is ever sent
    ("GET", "sessions/"): Page(),
    ("POST", "sessions/"): Page(302),
    ("GET", "2fa/"): Page(),
    ("GET", "2fa/authenticate/"): Public(302),  # the second half of a sign-in that nobody has begun
    ("GET", "2fa/reauthenticate/"): FactorPage(302, 200),
    ("GET", "2fa/totp/activate/"): FactorPage(200, 302),
    ("GET", "2fa/totp/deactivate/"): FactorPage(404, 200),
    ("GET", "2fa/recovery-codes/"): FactorPage(404, 200),
    ("GET", "2fa/recovery-codes/download/"): FactorPage(404, 200),
    ("GET", "2fa/recovery-codes/generate/"): Page(),
    ("GET", "2fa/webauthn/"): Page(),
    ("GET", "2fa/webauthn/add/"): Page(),
    ("GET", "2fa/webauthn/login/"): Public(302),
    ("GET", "2fa/webauthn/reauthenticate/"): Page(302),
    ("GET", "2fa/webauthn/keys/<int:pk>/edit/"): Page(404),
    ("POST", "2fa/webauthn/keys/<int:pk>/remove/"): Page(404),
    ("GET", "tokens/"): Page(),
    ("POST", "tokens/"): Page(),  # an empty form makes nothing
    ("POST", "tokens/<int:token_id>/revoke/"): Page(302),  # whether it was theirs is not told
    ("GET", "organisations/"): Page(),
    ("POST", "organisations/"): Page(),  # an empty form makes nothing
    ("GET", "organisations/<str:name>/"): Page(404),  # nobody of this cast is a member: below
    ("POST", "organisations/<str:name>/"): Page(404),
    ("POST", "organisations/<str:name>/members/<int:person_id>/"): Page(404),
    ("POST", "organisations/<str:name>/withdraw/<int:invitation_id>/"): Page(404),
    ("GET", "invitation/<str:secret>/"): Page(404),
    ("POST", "invitation/<str:secret>/"): Page(404),
    ("POST", "acting/"): Page(302),
    ("GET", "device/"): Page(),
    ("POST", "device/"): Page(),
    ("GET", "jobs/"): Page(),
    ("GET", "jobs/new/"): Page(),
    ("POST", "jobs/new/"): Page(422),
    ("POST", "jobs/new/check/"): Page(),
    ("GET", "jobs/<uuid:job_id>/"): OwnPage(),
    ("GET", "jobs/<uuid:job_id>/timeline/"): OwnPage(),
    ("GET", "jobs/<uuid:job_id>/chart/"): OwnPage(),
    ("GET", "jobs/<uuid:job_id>/commitments/"): OwnPage(),
    ("GET", "jobs/<uuid:job_id>/clock/"): OwnPage(),
    ("GET", "jobs/<uuid:job_id>/series/"): OwnPage(),
    ("GET", "compare/"): Page(),
    ("POST", "jobs/<uuid:job_id>/stop/"): OwnPage(302),
    ("POST", "jobs/<uuid:job_id>/resume/"): OwnPage(302),
    ("POST", "jobs/<uuid:job_id>/delete/"): OwnPage(302),
    ("GET", "storage/"): Page(),
    ("POST", "storage/"): Page(302),
    ("GET", "jobs/<uuid:job_id>/verdict/"): OwnPage(404),
    ("GET", "jobs/<uuid:job_id>/verdict.json"): OwnPage(404),
    ("GET", "jobs/<uuid:job_id>/certificate.json"): OwnPage(404),
    ("GET", "jobs/<uuid:job_id>/dispute/"): OwnPage(404),  # there is no verdict yet
    ("GET", "disputes/"): Page(),
    ("GET", "disputes/<uuid:dispute_id>/"): OwnPage(404),  # of parties: disputes/test_doors.py
    ("GET", "disputes/<uuid:dispute_id>/ruling.json"): OwnPage(404),
    ("GET", "transparency/"): Public(),
    ("POST", "transparency/name/"): Page(302),
    ("GET", "^transparency/claims/(?P<model>[0-9a-f]{64})/$"): Public(404),
    ("GET", "offers/"): Page(),
    ("GET", "workers/"): Page(),
    ("POST", "workers/code/"): Page(),
    ("GET", "workers/<uuid:worker_id>/deposit/"): OwnPage(404),  # of owners: api/test_deposits.py
    ("POST", "workers/<uuid:worker_id>/deposit/"): OwnPage(404),
    ("GET", "alerts/"): Page(),
    ("POST", "alerts/"): Page(422),
    ("POST", "alerts/trial/"): Page(302),
    ("GET", "billing/"): Page(),
    ("GET", "billing/statement.csv"): Page(),
}
OFFICE = ("accounts/user", "admin/logentry", "disputes/dispute", "jobs/job", "ledger/account", "ledger/transfer",
    "marketplace/lease", "transparency/certificaterecord", "transparency/revocationrecord", "verification/verdictrecord",
    "workers/mark", "workers/worker")  # fmt: skip
OFFICE_BOOKS = "^(?P<app_label>workers|jobs|marketplace|accounts|ledger|disputes|verification|transparency|admin)/$"
MATRIX |= {("GET", f"admin/{page}/"): Office() for page in OFFICE}
MATRIX |= {("POST", f"admin/{page}/add/"): Office(403) for page in OFFICE}  # nothing is entered by hand
for page in OFFICE:
    for what, status in (("delete", 403), ("change", 302), ("history", 302)):  # of what never was
        MATRIX["GET", f"admin/{page}/<path:object_id>/{what}/"] = Office(status)
    MATRIX["GET", f"admin/{page}/<path:object_id>/"] = Office(302)
MATRIX |= {
    ("GET", "admin/"): Office(),
    ("GET", "admin/jsi18n/"): Office(),
    ("GET", f"admin/{OFFICE_BOOKS}"): Office(),
    ("GET", "admin/workers/worker/fraud/"): Office(),
}
for what in ("change", "history"):  # what the operator sees of a thing that there is
    MATRIX["GET", f"admin/jobs/job/<path:object_id>/{what}/"] = Office()
SIGN_IN = {"GET login/", "GET signup/"}  # whoever is signed in is sent on


def routes(resolver: Any = None, prefix: str = "") -> Iterator[str]:
    """Every pattern of the URLconf."""
    for pattern in (resolver or get_resolver()).url_patterns:
        at = prefix + str(pattern.pattern)
        if hasattr(pattern, "url_patterns"):
            yield from routes(pattern, at)
        else:
            yield at


def test_every_address_has_a_row_and_every_row_an_address() -> None:
    assert set(routes()) == {route for _, route in MATRIX}


def test_every_door_beside_the_urlconf_is_known() -> None:
    """Their tests: api/test_uploads.py, gateway/test_files.py, gateway/test_connection.py, and the sockets below."""
    streamed = {(pattern.pattern, method) for pattern, method, _ in asgi._STREAMED}
    assert streamed == {(r"/gateway/leases/.*", None), (r"/api/v1/blobs/[^/]+/", "PUT")}
    sockets = {str(route.pattern) for route in asgi.application.application_mapping["websocket"].routes}
    assert sockets == {"gateway/worker/", "live/jobs/<uuid:job>/"}


@pytest.fixture
def cast(
    researcher: User, other_researcher: User, host: User, operator: User, settings: Any
) -> Iterator[dict[str, User | None]]:
    cache.clear()
    settings.ACCOUNT_RATE_LIMITS = False
    rates = {"login": "10000/min"}
    from rest_framework.throttling import ScopedRateThrottle, SimpleRateThrottle

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimpleRateThrottle, "THROTTLE_RATES", rates)
        patch.setattr(ScopedRateThrottle, "THROTTLE_RATES", rates)
        yield {
            "owner": researcher,
            "other": other_researcher,
            "worker_owner": host,
            "operator": operator,
            "anonymous": None,
        }
    cache.clear()


@pytest.fixture
def job(researcher: User, host: User) -> Job:
    """A job that trains on the worker's owner's machine."""
    story = (
        Story(owner=researcher, host=host, began=1_790_000_000, epochs=2, name=SECRET).submitted().queued().running()
    )
    story.frame()
    return Job.objects.get(pk=story.job.pk)


def ask(method: str, route: str, user: User | None, job: Job, token: int, acting: Acting | None = None) -> Any:
    """By cookie on pages, by token in the API, as each door wants it; for an organisation, where `acting` says so."""
    address = "/" + route.replace("<uuid:job>", str(job.pk)).replace("<uuid:job_id>", str(job.pk))
    address = address.replace("<path:object_id>", str(job.pk)).replace(OFFICE_BOOKS, "workers/")
    address = address.replace("<uuid:dispute>", str(job.pk)).replace("<uuid:dispute_id>", str(job.pk))
    address = address.replace("<uuid:worker>", str(job.pk)).replace("<uuid:worker_id>", str(job.pk))
    address = address.replace(
        "^transparency/revocations/(?P<certificate>[0-9a-f]{64})$", f"transparency/revocations/{'cd' * 32}"
    )
    address = address.replace("<int:token>", str(token)).replace("<int:token_id>", str(token))
    address = address.replace("<str:name>", "acme").replace("<str:secret>", "x").replace("<int:person_id>", "1")
    address = (
        address.replace("<int:invitation_id>", "1")
        .replace("<int:pk>", "1")
        .replace(r"^confirm-email/(?P<key>[-:\w]+)/$", "confirm-email/abc/")
    )
    address = address.replace(r"^password/reset/key/(?P<uidb36>[0-9A-Za-z]+)-(?P<key>.+)/$", "password/reset/key/1-x/")
    address = address.replace("^blobs/(?P<digest>[0-9a-f]{64})/$", f"blobs/{'ab' * 32}/")
    address = address.replace("^transparency/claims/(?P<model>[0-9a-f]{64})/$", f"transparency/claims/{'cd' * 32}/")
    client, headers = Client(), {}
    if user is not None and address.startswith("/api/"):
        headers["Authorization"] = f"Bearer {acting_token(user, acting)}"
    elif user is not None:
        signed_in(user, client)
        if acting is not None:
            assert client.post("/acting/", {"organisation": acting.principal.username}).status_code == 302
    body = "{}" if address.startswith(("/api/", "/gateway/")) else {}
    kind = {"content_type": "application/json"} if isinstance(body, str) else {}
    return getattr(client, method.lower())(
        address, *([body] if method in ("POST", "PUT") else []), headers=headers, **kind
    )


def acting_token(user: User, acting: Acting | None) -> str:
    return accounts.issue_token(acting.principal if acting else user, name="cast", by=acting)


@pytest.mark.django_db
@pytest.mark.parametrize(("method", "route"), list(MATRIX), ids=[f"{method} {route}" for method, route in MATRIX])
def test_each_of_the_cast_gets_what_is_theirs(cast: dict[str, User | None], job: Job, method: str, route: str) -> None:
    row = MATRIX[method, route]
    for who in reversed(CAST):  # the owner last: theirs may end the job
        user = cast[who]
        owned = accounts.new_token(cast["owner"], name="victim", scopes=["jobs:read"], days=1)[1]  # type: ignore[arg-type, list-item]
        reply = ask(method, route, user, job, owned.pk)
        text = b"" if getattr(reply, "streaming", False) else reply.content
        expected = status_of(row, who)
        if f"{method} {route}" in SIGN_IN and user is not None:
            expected = 302
        assert reply.status_code == expected, (who, text[:300])
        if who != "owner" and not (who == "operator" and isinstance(row, Office)):
            assert SECRET.encode() not in text, who
            assert str(job.pk).encode() not in text or f"/{job.pk}/".encode() in text, who
            owned.refresh_from_db()
            assert owned.revoked_at is None
            assert Job.objects.get(pk=job.pk).state == JobState.RUNNING
        if isinstance(row, OwnThing):
            check_problem(reply, row, who)


def status_of(row: Row, who: str) -> int:
    if who == "anonymous" and isinstance(row, Page | FactorPage | OwnPage | Office):
        return 302
    if isinstance(row, Office) and who != "operator":
        return 404
    if isinstance(row, FactorPage):
        return row.with_factor if who == "operator" else row.status
    if who == "anonymous" and isinstance(row, Program | OwnThing):
        return 401
    if who != "owner" and isinstance(row, OwnPage | OwnThing):
        return 404
    return row.status


def check_problem(reply: Any, row: OwnThing, who: str) -> None:
    if who == "owner":
        assert not row.code or reply.json()["code"] == row.code
    else:
        assert reply.json()["code"] == ("not-logged-in" if who == "anonymous" else "not-found")


@pytest.mark.django_db
@pytest.mark.parametrize("route", sorted(route for _, route in MATRIX if "uuid" in route))
def test_anothers_thing_and_no_thing_are_told_in_the_same_words(
    cast: dict[str, User | None], job: Job, route: str
) -> None:
    method = next(method for method, each in MATRIX if each == route)
    theirs = ask(method, route, cast["other"], job, 1)
    nobodys = ask(method, route, cast["other"], Job(pk=uuid4()), 1)
    assert theirs.status_code == nobodys.status_code == 404
    if route.startswith("api/"):
        told = [{**reply.json(), "instance": ""} for reply in (theirs, nobodys)]
        assert told[0] == told[1]


@pytest.mark.django_db
@pytest.mark.parametrize("route", [route for (method, route), row in MATRIX.items() if isinstance(row, Page | OwnPage)])
def test_a_pages_cookie_is_not_the_apis_and_a_token_is_not_a_pages(
    cast: dict[str, User | None], job: Job, route: str
) -> None:
    secret = accounts.issue_token(cast["owner"], name="x")  # type: ignore[arg-type]
    address = "/" + route.replace("<uuid:job_id>", str(job.pk)).replace("<int:token_id>", "1").replace("<int:pk>", "1")
    address = address.replace("<uuid:dispute_id>", str(job.pk)).replace("<uuid:worker_id>", str(job.pk))
    for named in ("<str:name>", "<str:secret>", "<int:person_id>", "<int:invitation_id>"):
        address = address.replace(named, "1")
    reply = Client().get(address, headers={"Authorization": f"Bearer {secret}"})
    assert reply.status_code in (302, 405)
    if reply.status_code == 302:
        assert reply["Location"].startswith("/login/")


async def test_the_live_socket_speaks_to_the_jobs_owner_alone(
    threads: None, cast: dict[str, User | None], job: Job
) -> None:
    for who in CAST:
        cookie = await offload(session_of, cast[who])
        told = await first_words(job, cookie)
        if who == "owner":
            assert SECRET in told["text"]
        else:
            assert (told["type"], told["code"]) == ("websocket.close", 4404), who


async def first_words(job: Job, cookie: str) -> dict[str, Any]:
    """What the live socket says first to who sends this cookie."""
    scope = {
        "type": "websocket",
        "path": f"/live/jobs/{job.pk}/",
        "query_string": b"cursor=",
        "headers": [(b"host", b"localhost"), (b"origin", b"http://localhost"), (b"cookie", cookie.encode())],
        "subprotocols": [],
    }
    socket = ApplicationCommunicator(asgi.application, scope)
    await socket.send_input({"type": "websocket.connect"})
    assert (await socket.receive_output(timeout=20))["type"] == "websocket.accept"
    told: dict[str, Any] = await socket.receive_output(timeout=20)
    await socket.send_input({"type": "websocket.disconnect", "code": 1000})
    await socket.wait(timeout=20)
    return told


def session_of(user: User | None) -> str:
    client = Client()
    if user is not None:
        client.force_login(user)
    morsel = client.cookies.get(django_settings.SESSION_COOKIE_NAME)
    return "" if morsel is None else f"{morsel.key}={morsel.value}"


# -- an organisation's job ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Firm:
    """A job that belongs to an organisation, and who has to do with it."""

    job: Job
    owner: Acting
    member: Acting
    billing: Acting
    former: User
    former_token: str


@pytest.fixture
def firm(cast: dict[str, User | None], host: User, researcher: User, other_researcher: User) -> Firm:
    people = {name: accounts.create_user(name, password=f"{name} has a password") for name in ("boss", "clerk", "left")}
    acme = organisations.establish(people["boss"], "acme")
    ledger.top_up(ledger.account_of(acme), amount=100 * CREDIT, memo="test")
    boss = organisations.acting(people["boss"], acme.pk)
    for person, role in ((researcher, Role.MEMBER), (people["clerk"], Role.BILLING), (people["left"], Role.OWNER)):
        organisations.join(person, organisations.invite(boss, role=role).rstrip("/").rpartition("/")[2])
    token = acting_token(people["left"], organisations.acting(people["left"], acme.pk))
    organisations.dismiss(boss, people["left"].pk)
    story = Story(owner=acme, host=host, began=1_790_000_000, epochs=2, name=SECRET).submitted().queued().running()
    story.frame()
    return Firm(
        Job.objects.get(pk=story.job.pk),
        boss,
        organisations.acting(researcher, acme.pk),
        organisations.acting(people["clerk"], acme.pk),
        people["left"],
        token,
    )


BILLING = {"api/v1/jobs/<uuid:job>/receipt/"}
THINGS = [(method, route) for (method, route), row in MATRIX.items() if isinstance(row, OwnPage | OwnThing)]


@pytest.mark.django_db
@pytest.mark.parametrize(("method", "route"), THINGS, ids=[f"{method} {route}" for method, route in THINGS])
def test_members_get_what_is_the_organisations_as_far_as_their_role_goes(
    firm: Firm, other_researcher: User, method: str, route: str
) -> None:
    row = MATRIX[method, route]
    assert isinstance(row, OwnPage | OwnThing)
    if route == "api/v1/tokens/<int:token>/":
        return  # of tokens: accounts/test_organisations.py
    for outsider in (firm.former, other_researcher, firm.member.person):  # who is a member, but acts for themselves
        assert ask(method, route, outsider, firm.job, 1).status_code == 404, outsider
    looked = ask(method, route, firm.billing.person, firm.job, 1, firm.billing)
    assert looked.status_code == (row.status if route in BILLING else 403)
    assert SECRET.encode() not in looked.content
    assert Job.objects.get(pk=firm.job.pk).state == JobState.RUNNING
    for who in (firm.owner, firm.member):  # to see a job that somebody has stopped is the same
        reply = ask(method, route, who.person, firm.job, 1, who)
        assert reply.status_code == row.status, (who, b"" if reply.streaming else reply.content[:300])
        Job.objects.filter(pk=firm.job.pk).update(state=JobState.RUNNING)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("route", "role"), [("billing/", "all"), ("workers/", "member"), ("jobs/", "member"), ("offers/", "member")]
)
def test_a_role_opens_its_pages(firm: Firm, route: str, role: str) -> None:
    assert ask("GET", route, firm.member.person, firm.job, 1, firm.member).status_code == 200
    assert ask("GET", route, firm.billing.person, firm.job, 1, firm.billing).status_code == (
        200 if role == "all" else 403
    )


@pytest.mark.django_db
def test_a_former_member_keeps_no_way_in(firm: Firm) -> None:
    reply = Client().get("/api/v1/jobs/", headers={"Authorization": f"Bearer {firm.former_token}"})
    assert reply.status_code == 401
    browser = signed_in(firm.former)
    assert browser.post("/acting/", {"organisation": "acme"}).status_code == 404
    assert browser.get("/organisations/acme/").status_code == 404


@pytest.mark.django_db
def test_who_is_removed_while_they_act_does_nothing_in_their_own_name(firm: Firm) -> None:
    browser = signed_in(firm.member.person)
    browser.post("/acting/", {"organisation": "acme"})
    assert SECRET.encode() in browser.get("/jobs/").content
    organisations.dismiss(firm.owner, firm.member.person.pk)
    told = browser.get("/jobs/new/")
    assert told.status_code == 403
    assert b"act for yourself again" in told.content
    assert SECRET.encode() not in browser.get("/jobs/").content


async def test_the_live_socket_knows_for_whom_somebody_acts(threads: None, firm: Firm) -> None:
    def cookie(acting: Acting, act: bool) -> str:
        client = Client()
        client.force_login(acting.person)
        if act:
            client.post("/acting/", {"organisation": "acme"})
        return f"{django_settings.SESSION_COOKIE_NAME}={client.cookies[django_settings.SESSION_COOKIE_NAME].value}"

    for who, act, sees in ((firm.member, True, True), (firm.member, False, False), (firm.billing, True, False)):
        first = await first_words(firm.job, await offload(cookie, who, act))
        assert (SECRET in first.get("text", "")) == sees
