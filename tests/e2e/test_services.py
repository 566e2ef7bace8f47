"""The same flow on what larger installations run: PostgreSQL, Redis or RabbitMQ, and Celery as a program of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import scripts
from tests.e2e.conftest import running
from tests.e2e.services import own_database, own_queue, own_redis
from tests.e2e.stack import Stack

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def services(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A platform on PostgreSQL with this broker; live updates go through Redis in both."""
    folder = tmp_path_factory.mktemp(f"on-{request.param}")
    queue = f"labapex-e2e-{uuid.uuid4()}"
    with own_database() as database, own_redis() as cache, own_queue(queue) as rabbitmq:
        settings = {
            "LABAPEX_DATABASE_URL": database,
            "LABAPEX_CHANNEL_URL": cache,
            "LABAPEX_BROKER_URL": cache if request.param == "redis" else rabbitmq,
            "LABAPEX_QUEUE": queue,
            "LABAPEX_CLAIM_SECONDS": "5",  # after which a dead pipeline's work is taken up by another one
        }
        with running(request, folder, Stack(folder, settings=settings, pipeline=True)) as started:
            yield started


def test_a_job_is_verified_though_the_pipeline_is_killed_in_the_middle_of_its_replay(
    services: Stack, tmp_path: Path
) -> None:
    assert services.pipeline is not None
    assert not (services.folder / "platform" / "platform.sqlite3").exists()
    with services.worker("host"):
        job = services.submit(scripts.job(tmp_path / "replayed", pause=0.15, audit_segments=100))
        follower = services.begin("logs", "-f", str(job), "--json")
        services.until_state(job, "verifying")
        services.pipeline.kill()
        assert services.job(job).state.value == "verifying"  # it was in time
        services.pipeline.start()
        said = follower.wait()
    assert said.code == 0, said.err + services.logs()
    assert said.summary["loss_logs"] == scripts.ITERATIONS
    assert said.summary["replay_max_error"] == 0.0
    paid = said.summary["paid"]
    assert paid + said.summary["refunded"] == 10_000_000
    assert services.owner.me().available == paid > 0
    assert services.client.me().held == 0
