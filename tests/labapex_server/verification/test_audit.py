"""How much is looked at, of whom: what a host's past changes, and what it cannot."""

from __future__ import annotations

import random
from datetime import timedelta
from fractions import Fraction
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from hypothesis import given
from hypothesis import strategies as st
from tests.labapex.proof.test_challenge import log
from tests.labapex_server.gateway.stage import Host, a_host, queued_job

from labapex.proof.challenge import RANKED_EPOCHS, draw
from labapex.protocol.spec import MAX_AUDIT_SEGMENTS
from labapex.protocol.states import Fault, JobState, LeaseState
from labapex.protocol.verdict import SignedVerdict
from labapex_server.accounts.models import User
from labapex_server.api.examples import EXAMPLES
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.verification import audit, payoff
from labapex_server.workers import reputation
from labapex_server.workers.models import Mark
from labapex_server.workers.reputation import TRUSTED_AFTER

FULL = 44  # the setting's default
VERDICT = SignedVerdict.model_validate(EXAMPLES["SignedVerdict"]).verdict


def leased(client: User, rig: Host, **spec: Any) -> Lease:
    job = queued_job(client, **spec)
    found = marketplace.lease(rig.worker)
    assert found is not None
    assert found[0].job_id == job.pk
    return found[0]


def settled(lease: Lease, rule: str | None = None) -> None:
    """End a lease with a verdict; `rule` decided against it, or none did."""
    Job.objects.filter(pk=lease.job_id).update(state=JobState.SETTLING.value)
    Lease.objects.filter(pk=lease.pk).update(state=LeaseState.FINISHED.value)
    said = {"verdict": "rejected", "fault": Fault.WORKER, "reason": "iteration 3 is false"} if rule else {}
    verdict = VERDICT.model_copy(update={"job": lease.job_id, "lease": lease.pk, "deciding_rule": rule} | said)
    assert marketplace.settle(Lease.objects.get(pk=lease.pk), verdict)


@pytest.mark.parametrize("rule", ["replay", "opening"])
def test_one_proven_lie_or_withheld_state_ends_trust_at_once_and_ten_verified_jobs_regain_it(
    rig: Host, researcher: User, rule: str
) -> None:
    run = leased(researcher, rig, per_epoch=300)
    assert audit.drawn(run) == FULL  # it is new
    settled(run, rule)
    for _ in range(TRUSTED_AFTER):
        run = leased(researcher, rig, per_epoch=300)
        assert audit.drawn(run) == FULL
        settled(run)
    run = leased(researcher, rig, per_epoch=300)
    assert audit.drawn(run) == 200 // 10 - 5
    settled(run, rule)
    assert audit.drawn(leased(researcher, rig, per_epoch=300)) == FULL


def test_what_goes_well_while_a_run_goes_on_does_not_lower_its_audit_and_what_goes_wrong_raises_it(
    rig: Host, researcher: User
) -> None:
    early = leased(researcher, rig)
    Lease.objects.filter(pk=early.pk).update(state=LeaseState.FINISHED.value)  # its host may delay what it is asked for
    for _ in range(TRUSTED_AFTER):
        settled(leased(researcher, rig))
    assert audit.drawn(early) == FULL
    late = leased(researcher, rig)
    assert audit.drawn(late) == audit.LEAST
    settled(early, "replay")
    assert audit.drawn(late) == FULL


def test_what_the_client_asked_for_is_never_lowered(rig: Host, researcher: User) -> None:
    for _ in range(TRUSTED_AFTER):
        settled(leased(researcher, rig))
    asked = leased(researcher, rig, audit_segments=30)
    assert audit.drawn(asked) == 30
    settled(asked, "replay")
    assert audit.drawn(leased(researcher, rig, audit_segments=100)) == 100


def test_a_client_may_ask_for_less_but_not_of_a_host_that_lied(rig: Host, researcher: User) -> None:
    asked = leased(researcher, rig, audit_segments=2)
    assert audit.drawn(asked) == 2
    settled(asked, "opening")
    assert audit.drawn(leased(researcher, rig, audit_segments=2)) == FULL


def test_nobody_earns_trust_by_jobs_of_his_own_but_loses_it_by_them(rig: Host, researcher: User) -> None:
    own = a_host(researcher, "own")
    settled(leased(researcher, own))
    assert reputation.of(own.worker).verified == 0
    settled(leased(researcher, own), "replay")
    assert reputation.of(own.worker).false == 1


@given(
    each=st.integers(1, 150),
    epochs=st.integers(1, 12),
    every=st.integers(1, 9),
    top=st.integers(0, 3),
    seed=st.integers(),
)
def test_of_a_trusted_hosts_run_no_more_than_a_tenth_is_trained_again_unless_it_is_short(
    each: int, epochs: int, every: int, top: int, seed: int
) -> None:
    terms, leaves = log(each * every, epochs, every, [1.0])
    made, full = len(leaves) - 1, audit.segments(len(leaves) - 1, epochs=epochs, top_q=top, trusted=False, full=FULL)
    count = audit.segments(made, epochs=epochs, top_q=top, trusted=True, full=FULL)
    opening = draw(
        terms, leaves, audit_segments=count, top_q=top, pev_percent=10, random=random.Random(seed), ends=False
    )
    least = audit.LEAST + 2 + top * (min(epochs, RANKED_EPOCHS) + 1)
    assert len(opening.segments) <= max(least, made / audit.OVERHEAD)
    assert audit.LEAST <= count < FULL == full


# -- what cheating brings ----------------------------------------------------------------------------------------------


@given(data=st.data(), segments=st.integers(1, 3000), drawn=st.integers(1, 100), pay=st.integers(1, 10**9))
def test_more_audit_never_raises_what_a_lie_brings_and_work_not_done_pays_at_no_rate_but_none(
    data: st.DataObject, segments: int, drawn: int, pay: int
) -> None:
    false = data.draw(st.integers(1, segments))
    saved = Fraction(
        data.draw(st.integers(false, segments)), segments
    )  # more than is false, where it makes the rest cheaper

    def caught(drawn: int) -> Fraction:
        return payoff.caught(drawn=drawn, false=false, segments=segments)

    here = payoff.gain(caught=caught(drawn), saved=saved, pay=pay)
    assert payoff.gain(caught=caught(drawn + 1), saved=saved, pay=pay) <= here
    assert payoff.gain(caught=caught(drawn), saved=Fraction(false, segments), pay=pay) <= 0
    assert payoff.gain(caught=caught(0), saved=Fraction(false, segments), pay=pay) > 0
    deposit = payoff.deposit_needed(caught=caught(drawn), saved=saved, pay=pay)
    assert payoff.gain(caught=caught(drawn), saved=saved, pay=pay, deposit=deposit) <= 0
    assert deposit == 0 or payoff.gain(caught=caught(drawn), saved=saved, pay=pay, deposit=deposit - 1) > 0


def test_the_operator_reads_whether_cheating_pays_at_the_present_settings() -> None:
    out = StringIO()
    call_command("payoff", stdout=out)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("A run of 1000 segments that pays 1 credits")
    rows = [line.replace(" trusted", "-trusted", 1).split() for line in lines[2:12]]
    assert rows[2] == ["not-trusted", "44", "10", "%", "99.1%", "0.1000", "-0.8913", "no", "0.0000"]
    assert rows[4] == ["not-trusted", "44", "once", "4.4%", "1.0000", "0.9560", "YES", "21.7273"]
    assert rows[5] == ["trusted", "22", "1", "%", "20.0%", "0.0100", "-0.1903", "no", "0.0000"]
    with pytest.raises(CommandError, match="--segments"):
        call_command("payoff", "--segments", "0")


def test_a_canary_is_an_accounts_job_once_more_and_all_of_it_is_looked_at_even_of_a_trusted_host(
    rig: Host, researcher: User, operator: User
) -> None:
    for _ in range(TRUSTED_AFTER):
        settled(leased(researcher, rig))
    before = Job.objects.latest("created_at")
    call_command("canary", "researcher", "--chance", "0", stdout=StringIO())
    assert Job.objects.latest("created_at") == before
    call_command("canary", "researcher", stdout=StringIO())
    canary = Job.objects.latest("created_at")
    assert (canary.owner, canary.name, canary.bundle) == (researcher, before.name, before.bundle)
    assert (canary.state, canary.job_spec.audit_segments) == (JobState.SUBMITTED, MAX_AUDIT_SEGMENTS)
    assert audit.drawn(leased(researcher, rig, audit_segments=canary.job_spec.audit_segments)) == MAX_AUDIT_SEGMENTS
    for wrong, why in (
        (["operator"], "verified yet"),
        (["nobody"], "no user"),
        (["researcher", "--chance", "2"], "0 to 1"),
    ):
        with pytest.raises(CommandError, match=why):
            call_command("canary", *wrong)


# -- what the operator is to look at -----------------------------------------------------------------------------------


def fraud() -> str:
    out = StringIO()
    call_command("fraud", stdout=out)
    return out.getvalue()


def test_what_was_found_false_waits_with_its_evidence_until_the_operator_decides(
    rig: Host, researcher: User, cheat: User
) -> None:
    assert fraud() == "nothing to decide of the last 30 days\n"
    other = a_host(cheat, "other")
    settled(leased(researcher, other), "opening")
    false = leased(researcher, rig)
    settled(false, "replay")
    said = fraud()
    assert said.index("false: replay") < said.index("unopened: opening")
    assert f"worker {rig.worker.pk} rig of host: 0 of 100" in said
    assert f"job {false.job_id} of researcher: 0 verified, 2 rejected" in said
    assert "2 host(s) found false" in said
    assert "iteration 3 is false" in said
    call_command("ban", str(rig.worker.pk), "--reason", "seen", stdout=StringIO())
    assert "rig" not in fraud()
    assert "other" in fraud()
    Mark.objects.update(at=clock.now() - timedelta(days=31))
    assert fraud() == "nothing to decide of the last 30 days\n"
