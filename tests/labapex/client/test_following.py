"""What is told of a job: everything, once, whoever was away meanwhile."""

from __future__ import annotations

import pytest
from tests.labapex.client.submitted import SPEC
from tests.labapex.memory_platform import (
    SAMPLE,
    Chapter,
    MemoryPlatform,
    problem,
    unreachable,
)

from labapex.client import Client
from labapex.client.connection import ATTEMPTS
from labapex.errors import (
    PlatformUnreachable,
)
from labapex.protocol.states import JobState


def test_follow_tells_everything_once_and_ends_with_the_job(platform: MemoryPlatform, client: Client) -> None:
    job = platform.add(SPEC).id
    losses = [loss for events in client.follow(job) for loss in events.losses]
    assert losses == [2.0 / (i + 1) for i in range(10)] + [None, 0.1]
    assert client.job(job).state is JobState.VERIFIED


def test_follow_outlives_a_platform_that_is_away_and_loses_nothing(
    platform: MemoryPlatform, client: Client, sleeps: list[float]
) -> None:
    job = platform.add(SPEC).id
    trouble: list[str] = []
    following = client.follow(job, on_trouble=lambda error: trouble.append(str(error)))
    told = [next(following), next(following)]
    platform.faults.extend([unreachable] * (3 * ATTEMPTS))
    told += following
    assert [loss for events in told for loss in events.losses] == [2.0 / (i + 1) for i in range(10)] + [None, 0.1]
    assert len(trouble) == 3


def test_follow_outlives_an_error_inside_the_platform(platform: MemoryPlatform, client: Client) -> None:
    platform.faults.append(lambda request: problem(500, "internal", "something went wrong"))
    assert [events.job.state for events in client.follow(platform.add(SPEC).id)][-1] is JobState.VERIFIED


def test_follow_gives_up_when_nobody_answers_for_longer_than_its_patience(
    platform: MemoryPlatform, client: Client
) -> None:
    job = platform.add(SPEC).id
    platform.faults.extend([unreachable] * (50 * ATTEMPTS))
    with pytest.raises(PlatformUnreachable):
        list(client.follow(job, patience=60))


def test_what_was_said_together_with_the_end_is_told_to_its_last_page(
    platform: MemoryPlatform, client: Client, sleeps: list[float]
) -> None:
    platform.story = [
        Chapter(JobState.VERIFIED, losses=(1.0,)),
        Chapter(JobState.VERIFIED, losses=(0.5,)),
        Chapter(JobState.VERIFIED, samples=(SAMPLE,)),
    ]
    job = platform.add(SPEC).id
    told = list(client.follow(job))
    assert [events.first for events in told if events.losses] == [0, 1]
    assert told[2].samples == (SAMPLE,)
    assert sleeps == []


def test_all_jobs_walks_every_page(platform: MemoryPlatform, client: Client) -> None:
    ids = [platform.add(SPEC).id for _ in range(5)]
    assert [job.id for job in client.all_jobs()] == list(reversed(ids))
