"""Offers and statements over REST."""

from __future__ import annotations

import csv
from uuid import uuid4

import pytest
from django.core.cache import cache
from tests.labapex_server.api.test_rest import Api, problem
from tests.labapex_server.marketplace.test_offers import connected, gpu

from labapex.protocol.api import Me, OfferPage, Scope, Statement
from labapex.protocol.spec import CREDIT
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.ledger import services as ledger

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_throttle_left() -> None:
    cache.clear()


def offers(api: Api, query: str = "") -> OfferPage:
    return OfferPage.model_validate_json(api.get(f"offers/{query}").content)


@pytest.mark.parametrize("sort", ["price", "value", "speed", "reputation"])
def test_offers_come_a_page_at_a_time_each_once_whatever_their_order(researcher: User, host: User, sort: str) -> None:
    for number in range(5):  # equal ones too, and some that have shown no speed
        connected(host, f"host-{number}", price=CREDIT * (number % 2 + 1), speed=[None, 80.0][number % 2])
    api, seen, query = Api(researcher), [], f"?sort={sort}&limit=2"
    page = offers(api, query)
    while page.next is not None:
        assert (page.total, page.free, page.lacking) == (5, 5, None)
        seen += page.results
        page = offers(api, f"{query}&cursor={page.next}")
    seen += page.results
    assert seen == list(offers(api, f"?sort={sort}").results)
    assert len({offer.id for offer in seen}) == 5


def test_every_client_sees_offers_and_nobody_sees_whose_they_are(researcher: User, host: User) -> None:
    host.email = "owner@example.org"
    host.save()
    made = connected(host, "basement", gpu("NVIDIA H200"))
    api = Api(None, f"Bearer {accounts.issue_token(researcher, name='least', scopes=[Scope.WORKERS_WRITE])}")
    reply = api.get("offers/", **{"X-Forwarded-For": "203.0.113.7"})
    assert OfferPage.model_validate_json(reply.content).results[0].name == "basement"
    for secret in (host.username, host.email, bytes(made.worker.public_key).hex(), "GPU-1f6e2c34", "580.95.05"):
        assert secret not in reply.content.decode()


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("?min_memory=much", "min_memory"), ("?min_memory=-1", "min_memory"), ("?max_price=0", "max_price"),
        ("?max_price=0.0000001", "max_price"), ("?min_speed=nan", "min_speed"), ("?device=", "device"),
        (f"?device={'x' * 181}", "device"), ("?sort=luck", "sort"), ("?limit=0", "limit"), ("?cursor=nonsense", "cursor"),
        ("?cursor=AAAA", "cursor"),
    ],
)  # fmt: skip
def test_a_filter_that_is_none_is_400_with_its_field(researcher: User, query: str, field: str) -> None:
    assert field in problem(Api(researcher).get(f"offers/{query}"), 400, "invalid")


def test_a_statement_is_the_ledger_to_the_unit_as_json_and_as_csv(researcher: User, host: User) -> None:
    account = ledger.account_of(researcher)
    held = ledger.hold(account, amount=10 * CREDIT, job=uuid4(), memo="digits")
    ledger.settle(held, payments=[(ledger.account_of(host), 7 * CREDIT, "3 epochs")])
    api = Api(researcher)
    me = Me.model_validate_json(api.get("me/").content)
    assert (me.available, me.held, me.spent) == (93 * CREDIT, 0, 7 * CREDIT)
    first = Statement.model_validate_json(api.get("statement/?limit=2").content)
    rest = Statement.model_validate_json(api.get(f"statement/?limit=2&cursor={first.next}").content)
    entries = [*first.results, *rest.results]
    assert [entry.amount for entry in entries] == [3 * CREDIT, -10 * CREDIT, 100 * CREDIT]
    assert (first.opening, first.closing, rest.next) == (0, 93 * CREDIT, None)
    reply = api.get(f"statement.csv?month={first.month}")
    assert reply["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(reply.content.decode().splitlines()))
    assert [row["credits"] for row in rows] == ["100", "-10", "3"]
    assert Statement.model_validate_json(api.get("statement/?month=1999-12").content).results == ()


def test_a_statement_is_its_owners_alone_and_needs_the_scope(researcher: User, other_researcher: User) -> None:
    ledger.hold(ledger.account_of(researcher), amount=5, job=uuid4(), memo="the researcher's own")
    for path in ("statement/", "statement.csv"):
        assert "the researcher's own" not in Api(other_researcher).get(path).content.decode()
        narrow = Api(None, f"Bearer {accounts.issue_token(researcher, name='x', scopes=[Scope.JOBS_READ])}")
        assert "billing:read" in problem(narrow.get(path), 403, "missing-scope")
        assert "2026-11" in problem(Api(researcher).get(f"{path}?month=november"), 400, "invalid")
