"""Whose turn it is. What a host must have for a job stands in `test_offers.py`."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st
from tests.labapex_server.gateway.stage import Host, a_host, queued_job

from labapex_server.accounts.models import User
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.matching import in_turn


class Waiting(NamedTuple):
    number: int
    owner: str
    priority: int


QUEUES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-10, 10)), max_size=12).map(
    lambda jobs: [Waiting(number, *job) for number, job in enumerate(jobs)]
)


def given_out(waiting: list[Waiting]) -> list[Waiting]:
    """All of them, one at a time as hosts come, each exchanging its turn with the one whose turn it takes."""
    given = []
    left = list(waiting)
    while left:
        job, turn = next(in_turn(left, lambda each: each.owner, lambda each: each.priority))
        left[left.index(job)], left[left.index(turn)] = turn, job
        left.remove(job)
        given.append(job)
    return given


@given(QUEUES)
def test_a_priority_moves_nobody_elses_turn(waiting: list[Waiting]) -> None:
    assert [job.owner for job in given_out(waiting)] == [job.owner for job in waiting]


@given(QUEUES)
def test_a_client_has_all_his_jobs_by_priority(waiting: list[Waiting]) -> None:
    found = sorted(given_out(waiting), key=lambda job: job.owner)  # stable
    for _, own in groupby(found, key=lambda job: job.owner):
        priorities = [job.priority for job in own]
        assert priorities == sorted(priorities, reverse=True)


@given(QUEUES)
def test_without_priorities_they_go_as_they_wait(waiting: list[Waiting]) -> None:
    equal = [job._replace(priority=0) for job in waiting]
    assert given_out(equal) == equal


def test_of_a_clients_jobs_the_more_urgent_is_leased_and_another_client_keeps_his_place(
    rig: Host, host: User, researcher: User, other_researcher: User
) -> None:
    queued_job(researcher, name="idle", priority=-1)
    queued_job(other_researcher, name="other")
    queued_job(researcher, name="urgent", priority=5)
    names = []
    for worker in (rig.worker, a_host(host, "second").worker, a_host(host, "third").worker):
        found = marketplace.lease(worker)
        assert found is not None
        names.append(found[0].job.name)
    assert names == ["urgent", "other", "idle"]
