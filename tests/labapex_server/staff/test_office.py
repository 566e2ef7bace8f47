"""The operator's pages: what he decides goes through the services, with a reason that stays."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from tests.labapex_server.disputes.stage import rejected, trained, verified, wrongly_judged
from tests.labapex_server.gateway.stage import Host

from labapex_server.accounts.models import User
from labapex_server.disputes import services as disputes
from labapex_server.disputes.models import Dispute
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.marketplace import overturning
from labapex_server.marketplace.models import Lease
from labapex_server.verification import services as verification
from labapex_server.workers import services as workers
from labapex_server.workers.models import Finding, Mark, Worker

pytestmark = pytest.mark.usefixtures("another_platform")


@pytest.fixture
def office(operator: User) -> Client:
    client = Client()
    client.force_login(operator)
    return client


def act(office: Client, page: str, action: str, thing: Any, **fields: str) -> str:
    """Choose an action for one thing, as the list's form does; what the page says then."""
    body = {"action": action, "_selected_action": str(thing.pk), **fields}
    return office.post(f"/admin/{page}/", body, follow=True).content.decode()


def has(user: User) -> int:
    return ledger.balance(ledger.account_of(user)).available


def test_a_worker_is_banned_and_cleared_with_a_reason_that_stays(
    office: Client, operator: User, researcher: User, rig: Host
) -> None:
    job = rejected(researcher, rig, false=5)
    queue = office.get("/admin/workers/worker/fraud/").content.decode()
    assert "rig" in queue
    assert job.name in queue
    assert "Say why" in act(office, "workers/worker", "ban", rig.worker, reason="  ")
    assert not Worker.objects.get().banned
    assert "gets no jobs any more" in act(office, "workers/worker", "ban", rig.worker, reason="it lied")
    assert Worker.objects.get().banned
    assert Mark.objects.latest("pk").finding == Finding.BANNED
    assert Mark.objects.latest("pk").reason == "it lied"
    (entry,) = LogEntry.objects.all()
    assert (entry.user, entry.object_id) == (operator, str(rig.worker.pk))
    assert entry.change_message == "gets no jobs any more. Reason: it lied"
    assert "Nothing to decide" in office.get("/admin/workers/worker/fraud/").content.decode()
    assert "is banned already" in act(office, "workers/worker", "ban", rig.worker, reason="again")
    assert LogEntry.objects.count() == 1
    act(office, "workers/worker", "unban", rig.worker, reason="it was the cable")
    assert workers.known(rig.worker.pk) is not None


def test_a_refund_is_never_more_than_the_job_has_cost(office: Client, researcher: User, rig: Host) -> None:
    job = verified(researcher, rig)
    paid = ledger.outcome(job.hold).paid
    before = has(researcher)
    cost = ledger.credits_text(paid)
    assert "above zero" in act(office, "jobs/job", "refund", job, reason="sorry", credits="0")
    assert "can be" in act(office, "jobs/job", "refund", job, reason="sorry", credits="1")
    assert "refunded to researcher" in act(office, "jobs/job", "refund", job, reason="sorry", credits=cost)
    assert has(researcher) == before + paid
    assert ledger.balance(ledger.guarantee()).available == -paid
    assert "0 can be" in act(office, "jobs/job", "refund", job, reason="sorry again", credits=cost)
    assert LogEntry.objects.count() == 1


def test_what_was_refunded_is_not_given_back_once_more_by_a_ruling(office: Client, researcher: User, rig: Host) -> None:
    job = verified(researcher, rig)
    paid, before = ledger.outcome(job.hold).paid, has(researcher)
    act(office, "jobs/job", "refund", job, reason="sorry", credits=ledger.credits_text(paid // 2))
    lease = Lease.objects.get(job=job)
    verdict = verification.signed(job).verdict.model_copy(update={"blamed": lease.pk})
    overturning.take_back(lease, verdict, reason="played")
    assert has(researcher) == before + paid


def test_credits_are_issued_and_the_reason_is_in_the_statement(office: Client, researcher: User) -> None:
    before = has(researcher)
    assert "2.5 credits issued" in act(office, "accounts/user", "issue", researcher, reason="a prize", credits="2.5")
    assert has(researcher) == before + 2_500_000
    memo = ledger.account_of(researcher).credits.latest("created_at").memo
    assert memo == "issued by the operator: a prize"
    assert "credits:" in act(office, "accounts/user", "issue", researcher, reason="a prize", credits="much")


def test_a_dispute_that_nobody_can_judge_is_left_and_its_stake_goes_back(
    office: Client, researcher: User, rig: Host
) -> None:
    job = wrongly_judged(trained(researcher, rig), word="verified")
    before = has(researcher)
    dispute = disputes.contest(researcher, job.pk, "look")
    assert "ruled that nothing can be said" in act(office, "disputes/dispute", "leave", dispute, reason="no such GPU")
    assert has(researcher) == before
    found = disputes.signed(Dispute.objects.get())
    assert found is not None
    assert "the operator says: no such GPU" in found.ruling.because
    assert "a ruling is final" in act(office, "disputes/dispute", "leave", dispute, reason="again")


def test_every_book_shows_a_row_and_no_secret(office: Client, researcher: User, rig: Host) -> None:
    job = wrongly_judged(trained(researcher, rig, false=5), word="verified", false=5)
    disputes.go_on(disputes.contest(researcher, job.pk, "look"), beat=lambda: None)
    act(office, "workers/worker", "ban", rig.worker, reason="it lied")
    from labapex_server.staff.site import office as site

    lease = job.leases.get()
    for model in site._registry:
        page = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        thing = model._default_manager.order_by("pk").last()
        assert thing is not None, page
        listed = office.get(page)
        shown = office.get(f"{page}{thing.pk}/change/")
        assert (listed.status_code, shown.status_code) == (200, 200), page
        text = listed.content.decode() + shown.content.decode()
        for secret in (researcher.password, lease.token_digest, bytes(rig.worker.public_key).hex()):
            assert secret not in text, page
        assert "default-src 'none'" in listed["Content-Security-Policy"]
        assert office.post(f"{page}add/", {}).status_code == 403
        assert office.post(f"{page}{thing.pk}/delete/", {"post": "yes"}).status_code == 403
        assert office.post(f"{page}{thing.pk}/change/", {}).status_code == 403
    assert Job.objects.count() == 1


def test_to_others_there_is_no_office(researcher: User, rig: Host) -> None:
    stranger = Client()
    assert stranger.get("/admin/")["Location"] == "/login/?next=/admin/"
    stranger.force_login(researcher)
    for path in ("/admin/", "/admin/workers/worker/", "/admin/workers/worker/fraud/"):
        assert stranger.get(path).status_code == 404
    body = {"action": "ban", "_selected_action": str(rig.worker.pk), "reason": "envy"}
    assert stranger.post("/admin/workers/worker/", body).status_code == 404
    assert not Worker.objects.get().banned
