"""docker/compose.yaml as it is shipped: its processes, two of each, and one of each lost while a job goes through."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import scripts
from tests.e2e.composed import Composed
from tests.e2e.conftest import running
from tests.e2e.services import own_database, own_queue, own_redis, own_store

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    if shutil.which("caddy") is None:
        assert not os.environ.get("CI"), "CI needs caddy"
        pytest.skip("caddy is not installed: nothing would end TLS")
    folder, queue = tmp_path_factory.mktemp("composed"), f"labapex-stack-{uuid.uuid4()}"
    trusted = os.environ.get("SSL_CERT_FILE")
    with own_database() as database, own_redis() as cache, own_queue(queue) as broker, own_store() as store:
        made = Composed(folder, database=database, redis=cache, rabbitmq=broker, queue=queue, store=store)
        try:
            with running(request, folder, made) as started:
                assert isinstance(started, Composed)
                yield started
        finally:
            os.environ.pop("SSL_CERT_FILE")
            if trusted is not None:
                os.environ["SSL_CERT_FILE"] = trusted


def test_a_job_is_verified_and_paid_though_one_of_each_process_is_lost_on_its_way(
    stack: Composed, tmp_path: Path
) -> None:
    with stack.worker("host"):
        job = stack.submit(scripts.job(tmp_path / "long", pause=0.3, audit_segments=100))
        follower = stack.begin("logs", "-f", str(job), "--json")
        stack.until_trained(job, 3)
        stack.services["web-1"].kill()  # agent and client go over to the other one, where they were not there already
        stack.until("the log goes on", lambda: stack.job(job).progress.iterations > 6)
        stack.services["web-2"].kill()  # for a while nobody answers
        stack.services["stages-1"].kill()
        stack.services["web-1"].start()
        stack.until("the platform answers", lambda: stack.answers("web-1"))
        stack.until_state(job, "verifying")
        stack.services["verifier-1"].kill()
        stack.services["clock"].kill()
        stack.services["clock"].start()
        said = follower.wait()
    assert said.code == 0, said.err + stack.logs()
    assert said.summary["loss_logs"] == scripts.ITERATIONS
    assert said.summary["replay_max_error"] == 0.0
    paid = said.summary["paid"]
    assert paid + said.summary["refunded"] == 10_000_000
    assert stack.owner.me().available == paid > 0
    assert stack.client.me().held == 0

    pulled = stack.cli("pull", str(job), "-o", tmp_path / "model")
    assert pulled.code == 0, pulled
    assert list((stack.home("verifier-2") / "leases").rglob("weights*")), "made by the verifier that was left"
    assert list((stack.home("web-1") / "leases").rglob("weights*")), "a copy, of what the store has"
    assert not list((stack.home("web-2") / "leases").rglob("weights*")), "it was dead"
