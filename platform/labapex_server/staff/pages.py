"""Which books an operator reads, and what he does to what stands in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin import AllValuesFieldListFilter, ModelAdmin, TabularInline, action
from django.contrib.admin.models import LogEntry
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import URLPattern, path

from labapex_server.accounts.models import User
from labapex_server.disputes import services as disputes
from labapex_server.disputes.models import Dispute, Turn
from labapex_server.jobs.models import Job, Transition
from labapex_server.ledger import services as ledger
from labapex_server.ledger.models import Account, Transfer
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace.models import Lease
from labapex_server.staff.actions import Reasoned, ReasonedAmount, amount, carry_out
from labapex_server.staff.site import office
from labapex_server.transparency.models import CertificateRecord, RevocationRecord
from labapex_server.verification import fraud
from labapex_server.verification.models import VerdictRecord
from labapex_server.workers import services as workers
from labapex_server.workers.models import Mark, Worker

_FRAUD_DAYS = 30


if TYPE_CHECKING:
    _Page = ModelAdmin[Any]
    _Inline = TabularInline[Any, Any]
else:  # Django's own classes know no type arguments
    _Page = ModelAdmin
    _Inline = TabularInline


class Book(_Page):
    """Read, and never written here: what is in it, services have entered."""

    show_full_result_count = False
    list_per_page = 50
    hidden: tuple[str, ...] = ()  # secrets, and what only programs read

    def get_exclude(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return self.hidden

    def has_add_permission(self, request: HttpRequest, *_: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return office.has_permission(request)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return office.has_permission(request)


class Rows(_Inline):
    """Read-only rows on another thing's page."""

    template = "staff/rows.html"
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, *_: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return office.has_permission(request)


class Marks(Rows):
    model = Mark
    ordering = ("-pk",)


class Transitions(Rows):
    model = Transition
    ordering = ("pk",)


class Turns(Rows):
    model = Turn
    exclude = ("report",)
    ordering = ("pk",)


class WorkerPage(Book):
    list_display = ("name", "owner", "banned", "last_seen_at", "speed", "price")
    list_filter = ("banned",)
    search_fields = ("=id", "name", "owner__username")
    list_select_related = ("owner",)
    hidden = ("public_key",)
    inlines = (Marks,)
    action_form = Reasoned
    actions = ("ban", "unban")

    @admin.display(description="credits an hour", ordering="price_per_hour")
    def price(self, worker: Worker) -> str:
        return ledger.credits_text(worker.price_per_hour)

    @action(description="Ban: no more jobs for it")
    def ban(self, request: HttpRequest, chosen: QuerySet[Worker]) -> None:
        carry_out(self, request, chosen, lambda worker, reason: _banned(worker, True, reason))

    @action(description="Lift the ban")
    def unban(self, request: HttpRequest, chosen: QuerySet[Worker]) -> None:
        carry_out(self, request, chosen, lambda worker, reason: _banned(worker, False, reason))

    def get_urls(self) -> list[URLPattern]:
        queue = path("fraud/", self.admin_site.admin_view(self.fraud), name="fraud")
        return [queue, *super().get_urls()]

    def fraud(self, request: HttpRequest) -> HttpResponse:
        """What was found false and about which nothing is decided yet."""
        cases = list(fraud.queue(clock.after(-_FRAUD_DAYS * 24 * 3600)))
        context = {**office.each_context(request), "title": "Fraud", "cases": cases, "days": _FRAUD_DAYS}
        return render(request, "staff/fraud.html", context)


class NamedFilter(AllValuesFieldListFilter):
    """By a column's values; a link to the empty one has words too."""

    def choices(self, changelist: Any) -> Iterator[Any]:
        for choice in super().choices(changelist):
            yield {**choice, "display": choice["display"] or "none"}


class MarkPage(Book):
    list_display = ("at", "worker", "finding", "rule", "reason")
    list_filter = ("finding", ("rule", NamedFilter))
    search_fields = ("=lease", "worker__name", "worker__owner__username")
    list_select_related = ("worker",)


class JobPage(Book):
    list_display = ("name", "owner", "state", "fault", "created_at", "ended_at")
    list_filter = ("state", "fault")
    search_fields = ("=id", "name", "owner__username")
    list_select_related = ("owner",)
    hidden = ("wrapped_content_key", "sealed_index", "preflight", "bundle", "requirements", "hold")
    inlines = (Transitions,)
    action_form = ReasonedAmount
    actions = ("refund",)

    @action(description="Refund: credits from the guarantee to its client")
    def refund(self, request: HttpRequest, chosen: QuerySet[Job]) -> None:
        def deed(job: Job, reason: str) -> str:
            given = amount(request)
            ledger.refund(
                ledger.account_of(job.owner), amount=given, job=job.pk, memo=f"refund by the operator: {reason}"
            )
            return f"{ledger.credits_text(given)} credits refunded to {job.owner}"

        carry_out(self, request, chosen, deed)


class LeasePage(Book):
    list_display = ("id", "job", "worker", "state", "granted_at", "ended_at")
    list_filter = ("state",)
    search_fields = ("=id", "=job__id", "worker__name")
    list_select_related = ("job", "worker")
    hidden = (
        "manifest", "manifest_signature", "token_digest", "hpke_key", "sealed_keys", "wrapped_run_key", "signing_key"
    )  # fmt: skip


class PersonPage(Book):
    list_display = ("username", "email", "is_active", "is_staff", "date_joined", "last_login")
    list_filter = ("is_staff", "is_active")
    search_fields = ("username", "email")
    hidden = ("password",)
    action_form = ReasonedAmount
    actions = ("issue",)

    @action(description="Issue credits")
    def issue(self, request: HttpRequest, chosen: QuerySet[User]) -> None:
        def deed(user: User, reason: str) -> str:
            given = amount(request)
            ledger.top_up(ledger.account_of(user), amount=given, memo=f"issued by the operator: {reason}"[:200])
            return f"{ledger.credits_text(given)} credits issued"

        carry_out(self, request, chosen, deed)


class AccountPage(Book):
    list_display = ("__str__", "kind", "available", "held")
    list_filter = ("kind",)
    search_fields = ("user__username",)
    list_select_related = ("user",)

    @admin.display(description="available, credits")
    def available(self, account: Account) -> str:
        return ledger.credits_text(ledger.balance(account).available)

    @admin.display(description="held, credits")
    def held(self, account: Account) -> str:
        return ledger.credits_text(ledger.balance(account).held)


class TransferPage(Book):
    list_display = ("created_at", "debit", "credit", "credits", "status", "memo", "job")
    list_filter = ("status", "debit__kind", "credit__kind")
    search_fields = ("=id", "=job", "debit__user__username", "credit__user__username", "memo")
    list_select_related = ("debit__user", "credit__user")
    date_hierarchy = "created_at"

    @admin.display(ordering="amount")
    def credits(self, transfer: Transfer) -> str:
        return ledger.credits_text(transfer.amount)


class DisputePage(Book):
    list_display = ("job", "side", "opener", "state", "outcome", "executed", "segments", "created_at")
    list_filter = ("state", "outcome", "side")
    search_fields = ("=id", "=job__id", "opener__username")
    list_select_related = ("job", "opener")
    hidden = ("signature",)
    inlines = (Turns,)
    action_form = Reasoned
    actions = ("leave",)

    @action(description="Rule that nothing can be said: the stake goes back")
    def leave(self, request: HttpRequest, chosen: QuerySet[Dispute]) -> None:
        def deed(dispute: Dispute, reason: str) -> str:
            if not disputes.give_up(dispute, f"the operator says: {reason}"):
                raise Conflict("it was ruled before, and a ruling is final")
            return "ruled that nothing can be said"

        carry_out(self, request, chosen, deed)


class VerdictPage(Book):
    list_display = ("job", "issued_at", "stands", "key_id")
    list_filter = ("stands",)
    search_fields = ("=job__id", "=lease__id")
    list_select_related = ("job",)
    hidden = ("signature",)


class CertificatePage(Book):
    list_display = ("job", "entry_id", "model")
    search_fields = ("=job__id", "=digest", "=model")
    list_select_related = ("job",)


class TrailPage(Book):
    """Who of the operators did what."""

    list_display = ("action_time", "user", "content_type", "object_repr", "change_message")
    list_filter = ("user",)
    search_fields = ("=object_id", "object_repr", "change_message")
    list_select_related = ("user", "content_type")


def _banned(worker: Worker, banned: bool, reason: str) -> str:
    workers.set_banned(worker, banned, reason)
    return "gets no jobs any more" if banned else "may have jobs again"


def register() -> None:
    """Put all of it into the office."""
    pages: dict[type[Model], type[Book]] = {
        Worker: WorkerPage,
        Mark: MarkPage,
        Job: JobPage,
        Lease: LeasePage,
        User: PersonPage,
        Account: AccountPage,
        Transfer: TransferPage,
        Dispute: DisputePage,
        VerdictRecord: VerdictPage,
        CertificateRecord: CertificatePage,
        RevocationRecord: Book,
        LogEntry: TrailPage,
    }
    for model, page in pages.items():
        if not office.is_registered(model):
            office.register(model, page)
