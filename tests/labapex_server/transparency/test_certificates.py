"""A verified job is certified with its settlement, once, in public; and everybody may check and search what was said."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from tests.browser.stage import Story

from labapex.certificate import CertificateBundle, Envelope, PlatformKeys, certificate_digest, check
from labapex.errors import Tampered
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Parent
from labapex.protocol.states import JobState
from labapex.protocol.verdict import Verdict
from labapex.transparency import Consistency, Entries, Head, Inclusion, check_growth, check_inclusion, open_checkpoint
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.lib import keys
from labapex_server.pipeline import stages
from labapex_server.transparency import certificates
from labapex_server.transparency import services as log
from labapex_server.transparency.models import CertificateRecord
from labapex_server.verification.models import VerdictRecord

pytestmark = pytest.mark.django_db

BEGAN = 1_790_000_000
MODEL = "5a" * 32
Judge = Callable[..., Job]


@pytest.fixture
def judge(researcher: User, host: User) -> Judge:
    """A job of the researcher that was trained and judged. `began` decides when its terms were fixed."""

    def settled(*, owner: User = researcher, began: float = BEGAN, name: str = "digits-cnn", **judged: Any) -> Job:
        story = Story(owner=owner, host=host, began=began, epochs=2, name=name)
        story.submitted().queued().running(worker=f"rig-{began}-{name}").trained(100).challenged().judged(**judged)
        return Job.objects.get(pk=story.job.pk)

    return settled


def test_a_verified_job_is_certified_when_it_is_settled(judge: Judge, researcher: User) -> None:
    job = judge()
    assert job.state == JobState.VERIFIED
    certificate = check(certificates.bundle(job), certificates.public_keys())
    stated, verdict = certificate.statement.predicate, Verdict.model_validate(job.verdicts.get().document)
    lease = job.leases.get()
    assert certificate.statement.model == verdict.weights == MODEL
    assert (stated.job, stated.lease, stated.verdict) == (job.pk, lease.pk, digest(verdict))
    assert (stated.contract, stated.proof_root) == (verdict.contract, verdict.proof_root)
    assert (stated.code, stated.data) == (lease.terms.code, lease.terms.data)
    assert [(each.rule, each.result) for each in stated.rules] == [(each.rule, each.result) for each in verdict.rules]
    assert stated.cost.paid == ledger.outcome(job.hold).paid == 500_000
    assert stated.contracted_at == lease.granted_at.timestamp()
    assert stated.client.name is None
    assert researcher.get_username() not in certificate.statement.payload().decode()


def test_the_pseudonym_is_one_for_each_client(judge: Judge, other_researcher: User) -> None:
    ids = [
        certificates.statement(certificates.search().get(job=job)).predicate.client.id
        for job in (judge(), judge(began=BEGAN + 1), judge(owner=other_researcher, began=BEGAN + 2))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_a_rejected_job_and_one_without_weights_get_none(judge: Judge) -> None:
    for job in (judge(failing="replay"), judge(began=BEGAN + 1, weights=None)):
        assert certificates.record_of(job) is None
    assert log.size() == 0


def test_settlement_and_certificate_come_together_or_not_at_all(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> int:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("labapex_server.transparency.services.append", no_room)
        with pytest.raises(OSError, match="disk is full"):
            judge()
    job = Job.objects.get()
    assert job.state == JobState.SETTLING
    assert ledger.outcome(job.hold).open
    assert stages.work(job.pk, JobState.SETTLING, stages.settle)
    job.refresh_from_db()
    assert job.state == JobState.VERIFIED
    assert not ledger.outcome(job.hold).open
    assert CertificateRecord.objects.get().job_id == job.pk


def test_a_job_is_certified_once(judge: Judge) -> None:
    job = judge()
    record = VerdictRecord.objects.select_related("lease").get(job=job)
    again = certificates.certify(record.lease, Verdict.model_validate(record.document))
    stages.settle(job, lambda: None)
    assert again == certificates.record_of(job)
    assert log.size() == 1


# -- REST --------------------------------------------------------------------------------------------------------------


def get(path: str, user: User | None = None) -> Any:
    headers = {"Authorization": f"Bearer {accounts.issue_token(user, name='test')}"} if user else {}
    return Client().get(f"/api/v1/{path}", headers=headers)


def test_strangers_can_follow_the_whole_log(judge: Judge) -> None:
    public = PlatformKeys.model_validate_json(get("keys/").content)
    old = None
    for number in range(3):
        judge(began=BEGAN + number)
        head = open_checkpoint(Head.model_validate_json(get("transparency/head").content).checkpoint, public.log)
        assert head.size == number + 1
        if old is not None:
            path = f"transparency/consistency?first={old.size}&second={head.size}"
            check_growth(old, head, Consistency.model_validate_json(get(path).content))
        old = head
    assert old is not None
    page = Entries.model_validate_json(get("transparency/entries?start=1&count=1").content)
    assert (page.first, len(page.entries)) == (1, 1)
    leaf = base64.b64decode(page.entries[0])
    proof = Inclusion.model_validate_json(get("transparency/inclusion?index=1&size=3").content)
    check_inclusion(leaf, proof, old)
    assert (
        certificate_digest(Envelope.model_validate_json(leaf).body()) == CertificateRecord.objects.get(entry=1).digest
    )
    with pytest.raises(Tampered):
        check_inclusion(leaf + b" ", proof, old)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("inclusion?index=0&size=1", 404),
        ("inclusion?index=-1&size=1", 400),
        ("inclusion?index=0", 400),
        ("inclusion?index=0&size=99999999999999999999", 400),
        ("inclusion?index=%D9%A3&size=4", 400),
        ("consistency?first=0&second=1", 404),
        ("consistency?first=1&second=999999999999999", 404),
        ("entries?start=a", 400),
        ("entries?count=0", 400),
        ("entries?start=999999999999999&count=100", 200),
        ("entries", 200),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(path: str, status: int) -> None:
    reply = get(f"transparency/{path}")
    assert reply.status_code == status
    assert status == 200 or "detail" in json.loads(reply.content)


def test_only_the_owner_fetches_the_bundle_by_job(judge: Judge, researcher: User, other_researcher: User) -> None:
    job = judge()
    path = f"jobs/{job.pk}/certificate/"
    bundle = CertificateBundle.model_validate_json(get(path, researcher).content)
    check(bundle, PlatformKeys.model_validate_json(get("keys/").content))
    assert get(path, other_researcher).status_code == 404
    assert get(path).status_code == 401


def test_a_job_without_a_certificate_says_why(judge: Judge, researcher: User, host: User) -> None:
    rejected = judge(failing="replay")
    reply = get(f"jobs/{rejected.pk}/certificate/", researcher)
    assert (reply.status_code, reply.json()["code"]) == (404, "not-found")
    running = Story(owner=researcher, host=host, began=BEGAN).submitted().queued().running()
    reply = get(f"jobs/{running.job.pk}/certificate/", researcher)
    assert (reply.status_code, reply.json()["code"]) == (404, "not-finished")


# -- pages -------------------------------------------------------------------------------------------------------------


def test_the_log_is_a_public_page_with_head_and_search(judge: Judge, client: Client) -> None:
    assert "The log is empty" in client.get("/transparency/").content.decode()
    judge(name="<script>alert(1)</script>")
    judge(began=BEGAN + 1, name="other", weights="77" * 32)
    page = client.get("/transparency/")
    text = page.content.decode()
    assert "&lt;script&gt;" in text
    assert "<script>alert" not in text
    assert base64.b64encode(keys.log_public_key()).decode() in text
    assert log.head().checkpoint.split("\n")[2] in page.context["checkpoint"]
    found = client.get(f"/transparency/?model={MODEL.upper()}").content.decode()
    assert MODEL in found
    assert "77" * 32 not in found
    manifest = hashlib.sha256(bytes.fromhex(MODEL)).hexdigest()
    assert MODEL in client.get(f"/transparency/?model={manifest}").content.decode()
    assert "No certificate names" in client.get(f"/transparency/?model={'00' * 32}").content.decode()
    wrong = client.get("/transparency/?model=%3Cscript%3E")
    assert (wrong.status_code, b"64 hexadecimal digits" in wrong.content) == (422, True)


def test_a_search_keeps_its_digest_on_the_next_page(
    judge: Judge, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labapex_server.web.views.transparency.PAGE", 1)
    judge()
    judge(began=BEGAN + 1)
    assert f"?model={MODEL}&amp;page=2" in client.get(f"/transparency/?model={MODEL}").content.decode()


def test_a_stolen_model_is_ruled_for_the_older_terms_though_the_thief_was_entered_first(
    judge: Judge, other_researcher: User, client: Client
) -> None:
    accounts_name(other_researcher, "Mallory")
    judge(owner=other_researcher, began=BEGAN + 5000, name="my-own-model")
    judge(began=BEGAN)
    page = client.get(f"/transparency/claims/{MODEL}/")
    text = page.content.decode()
    assert [each["ruled"].claim.index for each in page.context["ruled"]] == [1, 0]
    assert text.index("this claim holds") < text.index("stands behind")
    assert "its terms were fixed first" in text
    assert "Mallory" in text
    for each in page.context["ruled"]:  # all evidence that a reader needs is on the page
        for figure in (each["ruled"].claim.digest, *each["inclusion"].hashes):
            assert figure in text


def accounts_name(user: User, name: str) -> None:
    certificates.publish_name(user, name)
    user.refresh_from_db()


def test_a_parent_in_the_log_is_part_of_the_ruling(judge: Judge, other_researcher: User) -> None:
    first = certificates.record_of(judge(began=BEGAN + 100))
    second = judge(owner=other_researcher, began=BEGAN, weights="77" * 32)
    assert first is not None
    record = VerdictRecord.objects.select_related("lease").get(job=second)
    # As a warm start from the first would have been certified: of the same model, and older than its origin.
    verdict = Verdict.model_validate(record.document).model_copy(update={"weights": MODEL})
    CertificateRecord.objects.filter(job=second).delete()
    record.lease.contract["parents"] = [
        Parent(path="parents/0.safetensors", weights=MODEL, certificate=first.digest, success=0.5).model_dump()
    ]
    derived = certificates.certify(record.lease, verdict)
    assert derived is not None
    ruled = certificates.claims(MODEL)
    assert [each.claim.index for each in ruled] == [first.entry_id, derived.entry_id]
    assert "says itself that it came from entry 0" in ruled[1].because


def test_nobody_claims_a_model_that_was_never_certified(client: Client) -> None:
    assert client.get(f"/transparency/claims/{'00' * 32}/").status_code == 404
    assert client.get("/transparency/claims/..%2F/").status_code == 404


def test_a_name_is_published_from_then_on_and_only_by_its_bearer(
    judge: Judge, researcher: User, client: Client
) -> None:
    judge()
    assert client.post("/transparency/name/", {"name": "Nobody"}).status_code == 302
    client.force_login(researcher)
    client.post("/transparency/name/", {"name": "Ada \u202ehidden"})
    assert User.objects.get(pk=researcher.pk).public_name == ""
    client.post("/transparency/name/", {"name": "Ada Lovelace"})
    judge(began=BEGAN + 1)
    names = [certificates.statement(each).predicate.client.name for each in certificates.search().order_by("entry_id")]
    assert names == [None, "Ada Lovelace"]


def test_the_verdicts_page_shows_the_certificate_and_lets_its_owner_download_it(
    judge: Judge, researcher: User, other_researcher: User, client: Client
) -> None:
    job, rejected = judge(), judge(began=BEGAN + 1, failing="replay")
    client.force_login(researcher)
    text = client.get(f"/jobs/{job.pk}/verdict/").content.decode()
    record = certificates.record_of(job)
    assert record is not None
    assert record.digest in text
    assert "Download the certificate" in text
    reply = client.get(f"/jobs/{job.pk}/certificate.json")
    assert "attachment" in reply["Content-Disposition"]
    check(CertificateBundle.model_validate_json(reply.content), certificates.public_keys())
    assert "Download the certificate" not in client.get(f"/jobs/{rejected.pk}/verdict/").content.decode()
    assert client.get(f"/jobs/{rejected.pk}/certificate.json").status_code == 404
    client.force_login(other_researcher)
    assert client.get(f"/jobs/{job.pk}/certificate.json").status_code == 404
