"""What pages show besides the feed: stations, clock, earnings."""

from __future__ import annotations

import pytest
from tests.browser.stage import Story

from labapex.protocol.records import column
from labapex.protocol.states import Fault, JobState, LeaseState
from labapex_server.accounts.models import User
from labapex_server.jobs import services as jobs
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry.models import Frame
from labapex_server.web import reads

BEGAN = 1_790_000_000.0


@pytest.fixture
def story(researcher: User, host: User) -> Story:
    return Story(owner=researcher, host=host, began=BEGAN, epochs=2).submitted()


def statuses(story: Story) -> dict[str, str]:
    story.job.refresh_from_db()
    return {step.title: step.status for step in reads.timeline(story.job)}


def test_each_station_is_waited_for_then_now_then_done(story: Story) -> None:
    assert statuses(story)["Preflight"] == "now"
    story.queued()
    assert statuses(story) | {"Preflight": "done", "Sealed executable": "done", "Lease": "now"} == statuses(story)
    story.running().trained(20)
    assert statuses(story)["Commitments while training"] == "now"
    (lease,) = (step.words for step in reads.timeline(story.job) if step.title == "Lease")
    assert "Its reputation: 0 of 100 (new: nothing of it was judged yet)." in lease
    assert statuses(story)["Challenge"] == "waiting"
    story.trained().challenged().opened(0)
    assert statuses(story)["Opened states"] == "now"
    story.opened(17, 18, 64, 92).judged()
    assert set(statuses(story).values()) == {"done"}
    assert "Verdict: verified" in statuses(story)


def test_a_refused_job_failed_in_its_preflight_and_reached_nothing_else(story: Story) -> None:
    jobs.advance(story.job, JobState.REFUSED, reason="NameError")
    found = statuses(story)
    assert found.pop("Preflight") == "failed"
    assert set(found.values()) <= {"waiting", "done"}
    assert found["Sealed executable"] == "waiting"


def test_a_rejected_job_says_where_it_failed(story: Story) -> None:
    story.queued().running().trained().challenged().opened(0, 17, 18, 64, 92).judged(failing="replay")
    found = statuses(story)
    assert found["Verdict: rejected"] == "failed"
    assert [title for title, status in found.items() if status == "failed"] == ["Verdict: rejected"]


def test_a_verdict_that_was_overturned_leaves_the_stations_of_the_job_as_they_were(story: Story) -> None:
    story.queued().running().trained().challenged().opened(0, 17, 18, 64, 92).judged()
    before = statuses(story)
    assert jobs.advance(story.job, JobState.REJECTED, reason="ruled false", fault=Fault.WORKER)
    after = statuses(story)
    assert list(after)[:-2] == list(before)[:-2]
    assert "waiting" not in after.values()


def test_a_lost_lease_stays_in_the_timeline(story: Story) -> None:
    story.queued().running().trained(30)
    Lease.objects.filter(pk=story.lease.pk).update(state=LeaseState.EXPIRED.value, reason="silent for 30 s")
    jobs.advance(story.job, JobState.QUEUED)
    assert statuses(story)["A lease was lost"] == "failed"
    story.began += 60
    story.running(worker="attic").trained(10)
    words = {step.title: step.words for step in reads.timeline(story.job)}
    assert "silent for 30 s" in words["A lease was lost"]
    assert words["Lease"].startswith("attic")


def test_the_clock_ties_iterations_to_times_and_goes_on_where_it_was_left(story: Story) -> None:
    story.queued().running().trained(100)
    knots = reads.clock(story.job, after=-1)
    assert knots[:2] == [(0, BEGAN + 12), (25, BEGAN + 17)]
    assert reads.clock(story.job, after=50) == knots[3:]
    assert reads.clock(story.job, after=75) == []


def test_a_lying_clock_cannot_run_backwards_or_leave_the_numbers(story: Story) -> None:
    story.queued().running().trained(75)
    frames = Frame.objects.filter(log=story.lease.pk).order_by("seq")
    frames.filter(seq=1).update(times=column([float("nan")] * 25))
    frames.filter(seq=2).update(times=column([1.0] * 25))
    assert reads.clock(story.job, after=-1) == [(0, BEGAN + 12)]


def test_a_job_without_a_lease_has_no_clock(story: Story) -> None:
    assert reads.clock(story.job, after=-1) == []


def test_a_machine_earned_what_was_paid_for_its_work(story: Story, host: User) -> None:
    story.queued().running().trained().challenged().opened(0, 17, 18, 64, 92).judged()
    assert reads.earnings([story.worker.pk], host) == {story.worker.pk: 500_000}


def test_the_rest_of_ones_own_budget_is_no_earning(researcher: User) -> None:
    own = Story(owner=researcher, host=researcher, began=BEGAN, epochs=2)
    own.submitted().queued().running().trained().challenged().opened(0, 17, 18, 64, 92).judged()
    assert reads.earnings([own.worker.pk], researcher) == {own.worker.pk: 500_000}
