"""Disputes through the API and the portal: what parties see, and that nobody else meets them."""

from __future__ import annotations

import json

import pytest
from django.core.cache import cache
from django.test import Client
from tests.labapex_server.api.test_rest import Api, problem
from tests.labapex_server.disputes.stage import nothing, rejected, ruled, trained, unshown, verified, wrongly_judged
from tests.labapex_server.gateway.stage import Host

from labapex.certificate import RevocationStatus
from labapex.protocol.ruling import DisputePage, DisputeTerms, DisputeView, SignedRuling
from labapex.sealing import verify as verify_signature
from labapex_server.accounts.models import User
from labapex_server.disputes import services as disputes
from labapex_server.disputes.models import Dispute
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.lib import clock, keys
from labapex_server.transparency import certificates
from labapex_server.verification import erasing

pytestmark = pytest.mark.usefixtures("another_platform")


@pytest.fixture(autouse=True)
def _no_throttle_left() -> None:
    cache.clear()


@pytest.fixture
def funded(rig: Host) -> Host:
    ledger.top_up(ledger.account_of(rig.worker.owner), amount=1_000_000, memo="test")
    return rig


def browser(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def test_a_program_contests_and_both_sides_follow_it(
    researcher: User, other_researcher: User, host: User, funded: Host
) -> None:
    job = rejected(researcher, funded, false=5)
    api, theirs, others = Api(host), Api(researcher), Api(other_researcher)
    terms = DisputeTerms.model_validate_json(api.get(f"jobs/{job.pk}/dispute/").content)
    assert (terms.side, terms.obstacle) == ("worker", None)
    assert "only a verified job" in (
        DisputeTerms.model_validate_json(theirs.get(f"jobs/{job.pk}/dispute/").content).obstacle or ""
    )
    asked = json.dumps({"job": str(job.pk), "reason": "it was honest"})
    problem(others.post("disputes/", asked), 404, "not-found")
    problem(theirs.post("disputes/", asked), 409, "conflict")
    reply = api.post("disputes/", asked)
    assert reply.status_code == 201
    made = DisputeView.model_validate_json(reply.content)
    assert (made.state, made.stake, made.ruling) == ("open", terms.stake, None)
    for party in (api, theirs):
        assert DisputePage.model_validate_json(party.get(f"disputes/?job={job.pk}").content).results == (made,)
        assert DisputeView.model_validate_json(party.get(f"disputes/{made.id}/").content) == made
    assert DisputePage.model_validate_json(others.get("disputes/").content).results == ()
    problem(others.get(f"disputes/{made.id}/"), 404, "not-found")
    problem(api.get("disputes/?job=nonsense"), 404, "not-found")

    disputes.go_on(Dispute.objects.get(), beat=nothing)
    signed = DisputeView.model_validate_json(theirs.get(f"disputes/{made.id}/").content).ruling
    assert signed is not None
    verify_signature(keys.verdict_public_key(), signed.ruling, signed.signature)
    assert signed.ruling.outcome == "upheld"


def test_a_dispute_without_a_word_is_refused(researcher: User, funded: Host) -> None:
    job = verified(researcher, funded)
    for reason in ("", "x" * 2001):
        reply = Api(researcher).post("disputes/", json.dumps({"job": str(job.pk), "reason": reason}))
        problem(reply, 400, "invalid")
        assert "reason" in reply.json()["errors"]


def test_a_page_contests_and_shows_the_ruling_to_both_sides_and_to_nobody_else(
    researcher: User, other_researcher: User, host: User, funded: Host
) -> None:
    job = wrongly_judged(trained(researcher, funded, false=5), word="verified", false=5)
    client = browser(researcher)
    assert f"/jobs/{job.pk}/dispute/" in client.get(f"/jobs/{job.pk}/verdict/").content.decode()
    assert f"/jobs/{job.pk}/dispute/" in client.get("/disputes/").content.decode()
    assert client.post(f"/jobs/{job.pk}/dispute/", {"reason": ""}).status_code == 422
    opened = client.post(f"/jobs/{job.pk}/dispute/", {"reason": "<b>it does not learn</b>"})
    dispute = Dispute.objects.get()
    assert opened["Location"] == f"/disputes/{dispute.pk}/"
    assert "running again" in client.get(opened["Location"]).content.decode()
    disputes.go_on(dispute, beat=nothing)

    page = client.get(f"/disputes/{dispute.pk}/").content.decode()
    assert "&lt;b&gt;it does not learn" in page
    assert "Run it again yourself" in page
    assert "reversed" in browser(host).get("/disputes/").content.decode()
    hosts = browser(host).get(f"/disputes/{dispute.pk}/").content.decode()
    assert "whose code and data these are" in hosts
    assert f"/jobs/{job.pk}/" not in hosts  # the job's own pages are the client's
    signed = SignedRuling.model_validate_json(browser(host).get(f"/disputes/{dispute.pk}/ruling.json").content)
    verify_signature(keys.verdict_public_key(), signed.ruling, signed.signature)
    for path in (f"/disputes/{dispute.pk}/", f"/disputes/{dispute.pk}/ruling.json", f"/jobs/{job.pk}/dispute/"):
        assert browser(other_researcher).get(path).status_code == 404
    after = client.get(f"/jobs/{job.pk}/verdict/").content.decode()
    assert "revokes it" in after
    assert f"/disputes/{dispute.pk}/" in after
    assert "already" in client.get(f"/jobs/{job.pk}/dispute/").content.decode()


def test_the_log_tells_everybody_of_a_revocation(researcher: User, funded: Host) -> None:
    job = wrongly_judged(trained(researcher, funded, false=5), word="verified", false=5)
    record = certificates.record_of(job)
    assert record is not None
    address = f"/api/v1/transparency/revocations/{record.digest}"
    assert RevocationStatus.model_validate_json(Client().get(address).content).revoked is None
    ruled(researcher, job)
    assert RevocationStatus.model_validate_json(Client().get(address).content).revoked is not None
    assert "revoked by entry" in Client().get("/transparency/").content.decode()
    assert json.loads(Client().get(f"/api/v1/transparency/revocations/{'ab' * 32}").content)["code"] == "not-found"


def test_a_contested_job_keeps_its_data_until_it_is_ruled(researcher: User, host: User, funded: Host) -> None:
    job = unshown(researcher, funded)
    dispute = disputes.contest(host, job.pk, "the network was down")
    Job.objects.update(ended_at=clock.after(-30 * 24 * 3600))
    until = erasing.evidence_until(Job.objects.get())
    assert until is not None
    assert until > clock.now()
    disputes.go_on(dispute, beat=nothing)
    until = erasing.evidence_until(Job.objects.get())
    assert until is not None
    assert until < clock.now()
