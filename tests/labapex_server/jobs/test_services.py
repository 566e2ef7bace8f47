from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.labapex_server.scenes import heard, request, submitted, upload

from labapex.errors import NotEnoughCredit
from labapex.executable import MAX_INDEX
from labapex.protocol.canonical import parse
from labapex.protocol.manifest import Index
from labapex.protocol.spec import Bundle
from labapex.protocol.states import Fault, JobState
from labapex.sealing import open_bytes
from labapex_server.accounts.models import User
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job, Transition
from labapex_server.ledger import services as ledger
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict, KeyReused, Refused, TooLarge
from labapex_server.verification import services as verification

pytestmark = pytest.mark.django_db


def test_a_submitted_job_waits_for_its_preflight_and_holds_no_money_yet(researcher: User) -> None:
    job = submitted(researcher)
    assert job.state == JobState.SUBMITTED
    assert ledger.balance(ledger.account_of(researcher)).held == 0
    view = jobs.view(job)
    assert (view.budget, view.paid, view.verdict, view.worker, view.lost_contact) == (1_000_000, 0, None, None, False)
    assert view.url.endswith(f"/jobs/{job.pk}/")


def test_a_budget_under_the_smallest_price_is_refused_for_its_money(researcher: User) -> None:
    with pytest.raises(NotEnoughCredit, match="budget too small"):
        submitted(researcher, epochs=3, budget="0.000002")


def test_a_budget_over_the_credit_is_refused(researcher: User, host: User) -> None:
    with pytest.raises(NotEnoughCredit, match="100 are available"):
        submitted(researcher, budget="100.000001")
    with pytest.raises(NotEnoughCredit):
        submitted(host)
    assert not Job.objects.exists()


def test_files_that_were_not_uploaded_or_are_anothers_are_refused(researcher: User, other_researcher: User) -> None:
    asked = request(other_researcher)
    with pytest.raises(Refused, match=r"not uploaded yet, among them train\.py"):
        jobs.submit(researcher, request=asked)


def test_a_bundle_must_fit_its_spec(researcher: User) -> None:
    good = request(researcher, data="data")
    code, data = good.bundle.code, good.bundle.data
    helper = upload(researcher, b"x", "train.py/helper.py")
    elsewhere = upload(researcher, b"y", "other/y.bin")
    wrong_size = code[0].model_copy(update={"size": 1})
    bundles = {
        "script": (good.spec.model_copy(update={"script": "absent.py"}), Bundle(code=code, data=data)),
        "names no data folder": (good.spec.model_copy(update={"data": None}), good.bundle),
        "no file in it": (good.spec, Bundle(code=code)),
        "does not lie in": (good.spec, Bundle(code=code, data=(elsewhere,))),
        "same path": (good.spec, Bundle(code=(*code, *code), data=data)),
        "itself a file": (good.spec, Bundle(code=(*code, helper), data=data)),
        "another size": (good.spec, Bundle(code=(wrong_size,), data=data)),
    }
    for message, (spec, bundle) in bundles.items():
        with pytest.raises(Refused, match=message):
            jobs.submit(researcher, request=good.model_copy(update={"spec": spec, "bundle": bundle}))
    assert jobs.submit(researcher, request=good).state == JobState.SUBMITTED


@pytest.mark.parametrize("limit", ["code_limit_bytes", "data_limit_bytes"])
def test_code_and_data_have_limits_of_their_own(researcher: User, settings: Any, limit: str) -> None:
    asked = request(researcher, data="data")
    settings.LABAPEX = settings.LABAPEX.model_copy(update={limit: 3})
    with pytest.raises(TooLarge, match="at most 3"):
        jobs.submit(researcher, request=asked)


def test_the_same_key_gives_the_same_job_and_only_for_the_same_request(
    researcher: User, other_researcher: User
) -> None:
    asked = request(researcher)
    first = jobs.submit(researcher, request=asked, idempotency_key="k")
    assert jobs.submit(researcher, request=asked, idempotency_key="k") == first
    with pytest.raises(KeyReused):
        jobs.submit(researcher, request=request(researcher, epochs=3), idempotency_key="k")
    other = jobs.submit(other_researcher, request=request(other_researcher), idempotency_key="k")
    assert other != first
    assert Job.objects.count() == 2


def test_of_two_that_advance_a_job_one_does_and_the_other_is_told(
    researcher: User, django_capture_on_commit_callbacks: Any
) -> None:
    first = submitted(researcher)
    second = Job.objects.get(pk=first.pk)
    with heard() as states, django_capture_on_commit_callbacks(execute=True):
        assert jobs.advance(first, JobState.PACKAGING, reason="by the first")
        assert not jobs.advance(second, JobState.REFUSED, reason="by the second")
    assert second.state == JobState.PACKAGING  # read anew
    assert states == [JobState.PACKAGING]
    trail = Transition.objects.filter(job=first).order_by("pk").values_list("before", "after", "reason")
    assert list(trail) == [("", "submitted", ""), ("submitted", "packaging", "by the first")]


def test_a_move_that_the_table_does_not_know_is_an_error(researcher: User) -> None:
    with pytest.raises(ValueError, match="from submitted to verified"):
        jobs.advance(submitted(researcher), JobState.VERIFIED)


def test_an_end_gives_an_open_hold_back(researcher: User) -> None:
    job, account = submitted(researcher), ledger.account_of(researcher)
    before = ledger.balance(account)
    held = ledger.hold(account, amount=job.budget, job=job.pk, memo="")
    assert jobs.advance(job, JobState.PACKAGING, hold=held)
    assert verification.stop(job).state == JobState.CANCELLED
    assert ledger.balance(account) == before
    assert job.ended_at is not None
    assert Fault(job.fault) is Fault.CLIENT


def test_stopping_twice_is_stopping_once_and_complete_work_is_not_stopped(researcher: User) -> None:
    job = submitted(researcher)
    verification.stop(job)
    version = job.version
    assert verification.stop(job).version == version
    Job.objects.filter(pk=job.pk).update(state=JobState.VERIFYING.value)
    with pytest.raises(Conflict, match="can no longer be stopped"):
        verification.stop(Job.objects.get(pk=job.pk))


def test_a_claim_keeps_others_out_until_it_ends(researcher: User) -> None:
    job = submitted(researcher)
    claimed = jobs.claim(job.pk, JobState.SUBMITTED, "a", 60)
    assert claimed is not None
    assert claimed.stage_attempts == 1
    assert jobs.claim(job.pk, JobState.SUBMITTED, "b", 60) is None
    assert jobs.claim(job.pk, JobState.PACKAGING, "b", 60) is None
    assert not jobs.renew_claim(job.pk, JobState.SUBMITTED, "b", 60)
    jobs.release_claim(job.pk, "b")
    assert jobs.renew_claim(job.pk, JobState.SUBMITTED, "a", 60)
    Job.objects.update(claimed_until=clock.now() - timedelta(seconds=1))
    assert jobs.claim(job.pk, JobState.SUBMITTED, "b", 60) is not None
    assert not jobs.renew_claim(job.pk, JobState.SUBMITTED, "a", 60)
    jobs.release_claim(job.pk, "b")
    assert jobs.claim(job.pk, JobState.SUBMITTED, "c", 60) is not None


def test_a_package_is_an_index_that_only_the_content_key_opens(researcher: User) -> None:
    job = submitted(researcher, data="data")
    assert jobs.advance(job, JobState.PACKAGING)
    assert jobs.package(job)
    assert job.state == JobState.QUEUED
    assert job.package_ms is not None
    sealed = bytes(job.sealed_index or b"")
    index = parse(Index, open_bytes(sealed, jobs.content_key(job)), limit=MAX_INDEX)
    assert [entry.path for entry in index.entries] == ["train.py", "data/digits.bin"]
    assert [blob.digest for _, blob in jobs.parts(job)] == [entry.digest for entry in index.entries]
    assert b"train.py" not in sealed
