"""Deposits, from the lock to what a lie or a ruling makes of them, and the doors to them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client
from tests.labapex_server.api.test_rest import Api, problem
from tests.labapex_server.disputes.stage import (
    rejected,
    ruled,
    settled,
    shown,
    trained,
    unshown,
    verified,
    wrongly_judged,
)
from tests.labapex_server.gateway.stage import Host, queued_job

from labapex.errors import NotEnoughCredit
from labapex.protocol.api import Deposit, Scope
from labapex.protocol.spec import CREDIT
from labapex.protocol.states import JobState
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.disputes import services as disputes
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.ledger.audit import audit
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict, Missing
from labapex_server.marketplace import deposits, granting
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.verification import earnings
from labapex_server.workers.models import Mark, Worker

pytestmark = pytest.mark.usefixtures("another_platform")

LOCKED = 1_000


@pytest.fixture(autouse=True)
def _no_throttle_left() -> None:
    cache.clear()


@pytest.fixture
def pledged(rig: Host) -> Host:
    """With a deposit, and as much again to spend."""
    ledger.top_up(ledger.account_of(rig.worker.owner), amount=1_000_000 + LOCKED, memo="test")
    deposits.change(rig.worker.owner, rig.worker.pk, LOCKED)
    return rig


def has(user: User) -> int:
    return ledger.balance(ledger.account_of(user)).available


def locked(host: Host) -> int:
    return Worker.objects.get(pk=host.worker.pk).deposited


def guarantee() -> int:
    return ledger.balance(ledger.guarantee()).available


def balanced() -> bool:
    found = audit()
    return (found.escrow, found.overdrawn) == (0, 0)


def price_of(job: Job) -> int:
    lease = Lease.objects.filter(job=job).latest("granted_at")
    return job.job_spec.epochs * (lease.price_per_epoch + lease.fee_per_epoch)


# -- locking -----------------------------------------------------------------------------------------------------------


def test_what_is_locked_cannot_be_spent_and_comes_back_whole(host: User, rig: Host) -> None:
    ledger.top_up(ledger.account_of(host), amount=100, memo="test")
    before = has(host)
    deposits.change(host, rig.worker.pk, 60)
    assert ledger.balance(ledger.account_of(host)) == ledger.Balance(before - 60, 60)
    deposits.change(host, rig.worker.pk, 90)  # the 60 count
    assert ledger.balance(ledger.account_of(host)) == ledger.Balance(before - 90, 90)
    with pytest.raises(NotEnoughCredit):
        deposits.change(host, rig.worker.pk, before + 1)
    assert (locked(rig), has(host)) == (90, before - 90)
    deposits.change(host, rig.worker.pk, 0)
    assert (locked(rig), has(host), ledger.spent(ledger.account_of(host))) == (0, before, 0)
    assert balanced()


def test_nobody_locks_on_anothers_worker(researcher: User, rig: Host) -> None:
    with pytest.raises(Missing):
        deposits.change(researcher, rig.worker.pk, 1)


def test_a_deposit_answers_for_a_job_until_its_verdict_stands(researcher: User, host: User, pledged: Host) -> None:
    run = trained(researcher, pledged)
    with pytest.raises(Conflict, match="not ended"):
        deposits.change(host, pledged.worker.pk, LOCKED - 1)
    deposits.change(host, pledged.worker.pk, LOCKED + 1)
    shown(run)
    job = settled(run)
    with pytest.raises(Conflict, match="can be contested until"):
        deposits.change(host, pledged.worker.pk, 0)
    dispute = disputes.contest(researcher, job.pk, "why")
    long_ago = clock.now() - timedelta(days=365)
    Job.objects.filter(pk=job.pk).update(ended_at=long_ago)
    with pytest.raises(Conflict, match="contested, and not ruled"):
        deposits.change(host, pledged.worker.pk, 0)
    type(dispute).objects.update(ruled_at=clock.now(), state="ruled")
    deposits.change(host, pledged.worker.pk, 0)
    assert locked(pledged) == 0


# -- losing ------------------------------------------------------------------------------------------------------------


def test_a_proven_lie_loses_it_to_the_client_up_to_the_jobs_price_and_the_rest_to_the_guarantee(
    researcher: User, host: User, pledged: Host
) -> None:
    before = has(host)
    job = rejected(researcher, pledged, false=5)
    price = price_of(job)
    assert job.state == JobState.REJECTED
    assert 0 < price < LOCKED
    assert (has(researcher), has(host), guarantee()) == (100_000_000 + price, before, LOCKED - price)
    assert (locked(pledged), ledger.balance(ledger.account_of(host)).held) == (0, 0)
    mark = Mark.objects.get(worker=pledged.worker)
    assert mark.deposit is not None
    assert (mark.finding, mark.deposit.amount) == ("false", LOCKED)
    assert ledger.spent(ledger.account_of(host)) == 0
    assert earnings.paid_for([job.pk], researcher) == {}
    assert balanced()


def test_a_deposit_below_the_price_is_the_clients_alone(researcher: User, host: User, pledged: Host) -> None:
    deposits.change(host, pledged.worker.pk, 7)
    rejected(researcher, pledged, false=5)
    assert (has(researcher), guarantee()) == (100_000_007, 0)


def test_what_is_not_shown_loses_it_too(researcher: User, pledged: Host) -> None:
    unshown(researcher, pledged)
    assert locked(pledged) == 0
    assert Mark.objects.get(worker=pledged.worker).finding == "unopened"


def test_nobody_is_made_good_by_a_lie_of_his_own(host: User, pledged: Host) -> None:
    before = has(host)
    rejected(host, pledged, false=5)
    assert (has(host), guarantee()) == (before, LOCKED)


def test_a_ruling_that_finds_a_lie_takes_pay_and_deposit(researcher: User, host: User, pledged: Host) -> None:
    job = wrongly_judged(trained(researcher, pledged, false=5), word="verified", false=5)
    price, before = price_of(job), has(host)
    signed = disputes.signed(ruled(researcher, job, "it smells"))
    assert signed is not None
    assert (locked(pledged), has(host)) == (0, before - price)
    assert has(researcher) == 100_000_000 + price
    assert guarantee() == LOCKED - price
    assert sum(each.amount for each in signed.ruling.moved if each.payer == "host") == price + LOCKED
    assert balanced()


def test_a_ruling_for_the_host_gives_it_back(researcher: User, host: User, pledged: Host) -> None:
    before = has(host)
    job = wrongly_judged(trained(researcher, pledged), word="rejected")
    price = price_of(job)
    assert has(researcher) == 100_000_000 + price
    ruled(host, job, "every state was as it should be")
    assert (has(host), has(researcher)) == (before + price + LOCKED, 100_000_000 - price)
    assert (guarantee(), locked(pledged)) == (0, 0)
    assert [row.paid for row in earnings.of(pledged.worker, skip=0).results] == [price]
    assert balanced()


def test_honest_work_loses_nothing(researcher: User, pledged: Host) -> None:
    assert verified(researcher, pledged).state == JobState.VERIFIED
    assert locked(pledged) == LOCKED


# -- who asks for one --------------------------------------------------------------------------------------------------


def test_a_job_goes_to_hosts_with_the_deposit_that_it_asks_for(researcher: User, host: User, pledged: Host) -> None:
    job = queued_job(researcher)
    Job.objects.filter(pk=job.pk).update(spec={**job.spec, "min_deposit": "0.001001"})
    assert marketplace.lease(pledged.worker) is None
    deposits.change(host, pledged.worker.pk, LOCKED + 1)
    assert marketplace.lease(pledged.worker) is not None


def test_no_job_that_asks_for_a_deposit_is_granted_on_one_that_went_meanwhile(
    researcher: User, host: User, pledged: Host
) -> None:
    job = queued_job(researcher)
    Job.objects.filter(pk=job.pk).update(spec={**job.spec, "min_deposit": "0.001"})
    looked_at = Worker.objects.select_related("deposit").get(pk=pledged.worker.pk)
    deposits.change(host, pledged.worker.pk, 0)
    assert granting._grant(Job.objects.get(pk=job.pk), job.pk, looked_at, None, None, None) is None
    assert Job.objects.get(pk=job.pk).state == JobState.QUEUED


# -- doors -------------------------------------------------------------------------------------------------------------


def test_a_program_locks_and_takes_back(researcher: User, host: User, rig: Host) -> None:
    ledger.top_up(ledger.account_of(host), amount=5 * CREDIT, memo="test")
    api, path = Api(host), f"workers/{rig.worker.pk}/deposit/"
    chosen = json.dumps({"credits": "2.5"})
    problem(Api(researcher).get(path), 404, "not-found")

    def put(body: str, owner: User = host) -> Any:
        token = accounts.issue_token(owner, name="put", scopes=[Scope.WORKERS_WRITE])
        kind = {"content_type": "application/json", "headers": {"Authorization": f"Bearer {token}"}}
        return Client().put(f"/api/v1/{path}", body, **kind)

    problem(put(chosen, researcher), 404, "not-found")
    reply = Deposit.model_validate_json(put(chosen).content)
    assert reply == Deposit(worker=rig.worker.pk, amount=2_500_000, bound=None)
    assert Deposit.model_validate_json(api.get(path).content) == reply
    problem(put(json.dumps({"credits": "5.1"})), 402, "not-enough-credit")
    assert "credits" in problem(put(json.dumps({"credits": 0})), 400, "invalid")
    job = unshown(researcher, rig)
    assert Deposit.model_validate_json(api.get(path).content).amount == 0
    put(chosen)
    problem(api.delete(path), 409, "conflict")
    Job.objects.filter(pk=job.pk).update(ended_at=clock.now() - timedelta(days=365))
    assert Deposit.model_validate_json(api.delete(path).content).amount == 0


def test_an_owner_locks_and_takes_back_on_a_page(researcher: User, host: User, rig: Host) -> None:
    ledger.top_up(ledger.account_of(host), amount=5 * CREDIT, memo="test")
    browser, stranger, path = Client(), Client(), f"/workers/{rig.worker.pk}/deposit/"
    browser.force_login(host)
    stranger.force_login(researcher)
    assert stranger.post(path, {"amount": "1"}).status_code == 404
    assert browser.get(path).status_code == 200
    for wrong in ("", "much", "-1", "0.0000001", "99"):
        assert browser.post(path, {"amount": wrong}).status_code == 422, wrong
    assert browser.post(path, {"amount": "2.5"}).status_code == 302
    assert "2.5 credits" in browser.get("/workers/").content.decode()
    assert browser.post(path, {"amount": "0"}).status_code == 302
    assert locked(rig) == 0
