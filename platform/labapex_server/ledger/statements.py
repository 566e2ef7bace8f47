"""Statements: the rows of one account in one month, as they stand in the book, and what they come to."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from django.db.models import Q, QuerySet, Sum

from labapex.protocol.api import Entry
from labapex_server.ledger.models import POSTED, Account, Transfer
from labapex_server.ledger.services import credits_text
from labapex_server.lib import clock
from labapex_server.lib.errors import Refused

_MONTH = re.compile(r"([1-9][0-9]{3})-(0[1-9]|1[0-2])")
_COLUMNS = ("at", "entry", "status", "credits", "job", "what")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Month:
    """A calendar month, UTC."""

    begin: datetime
    end: datetime

    def __str__(self) -> str:
        return f"{self.begin:%Y-%m}"


def month(text: str | None) -> Month:
    """The month that "2026-11" names; None: the present one. Raises `Refused`."""
    text = f"{clock.now().astimezone(UTC):%Y-%m}" if text is None else text
    found = _MONTH.fullmatch(text)
    if found is None or text == "9999-12":
        raise Refused(
            "'month' must be a year and a month, for example 2026-11", errors={"month": "for example 2026-11"}
        )
    year, number = map(int, found.groups())
    following = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return Month(datetime(year, number, 1, tzinfo=UTC), following)


def balance_before(account: Account, at: datetime) -> int:
    """Micro-credits that posted entries from before a moment come to. After all of them: what is available or held."""
    before = Transfer.objects.filter(status=POSTED, created_at__lt=at)
    totals = [before.filter(**{side: account}).aggregate(total=Sum("amount"))["total"] for side in ("credit", "debit")]
    return (totals[0] or 0) - (totals[1] or 0)


def of(account: Account) -> QuerySet[Transfer]:
    """All rows that an account is part of, whatever became of them."""
    return Transfer.objects.filter(Q(debit=account) | Q(credit=account))


def rows(account: Account, within: Month) -> QuerySet[Transfer]:
    """Those of a month."""
    return of(account).filter(created_at__gte=within.begin, created_at__lt=within.end)


def months(account: Account) -> list[str]:
    """The months in which anything happened, the latest first."""
    found = of(account).datetimes("created_at", "month", order="DESC", tzinfo=UTC)
    return [f"{each:%Y-%m}" for each in found]


def entry(account: Account, row: Transfer) -> Entry:
    """A row as the account sees it."""
    return Entry.model_validate(
        {
            "id": row.pk,
            "at": row.created_at.timestamp(),
            "status": row.status,
            "amount": row.amount if row.credit_id == account.pk else -row.amount,
            "job": row.job,
            "memo": row.memo,
        }
    )


def as_csv(account: Account, within: Month) -> Iterator[str]:
    """The same as lines of CSV, oldest first: times in UTC, amounts in credits."""
    yield _line(_COLUMNS)
    for row in rows(account, within).order_by("created_at", "pk").iterator(chunk_size=1000):
        each = entry(account, row)
        at = f"{row.created_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        yield _line((at, str(each.id), each.status, credits_text(each.amount), str(each.job or ""), _text(each.memo)))


def _text(memo: str) -> str:
    """Nothing that a spreadsheet would take for a formula: workers and jobs are named by others."""
    return f"'{memo}" if memo.startswith(_FORMULA) else memo


def _line(cells: tuple[str, ...]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    return out.getvalue()
