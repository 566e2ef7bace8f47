"""The workers' door, through a real server and a real socket."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import uuid
from typing import Any

import pytest
from tests.labapex_server.gateway.agent import A_CPU, Agent
from tests.labapex_server.gateway.stage import Host, Run, a_challenge, a_host, a_run, key_request, queued_job
from tests.labapex_server.gateway.test_trial import SMALL, chain
from tests.labapex_server.scenes import finished
from tests.labapex_server.telemetry.executable import Executable, rehashed

from labapex.protocol.devices import Observation
from labapex.protocol.frames import (
    Ack,
    Failed,
    FinAck,
    Grant,
    Greeting,
    Heartbeat,
    Idle,
    KeyRelease,
    Nack,
    Nonce,
    Observed,
    Open,
    OpenChunks,
    OpenStates,
    Paused,
    Ready,
    Refusal,
    Released,
    Stop,
    TrialAnswer,
    TrialBegin,
    TrialOver,
    TrialPart,
    TrialPrepare,
    TrialReady,
    TrialShow,
    Welcome,
)
from labapex.protocol.manifest import Manifest
from labapex.protocol.states import JobState, LeaseState
from labapex.sealing import open_release
from labapex_server.accounts.models import User
from labapex_server.gateway import connection as door
from labapex_server.gateway import limits
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry import services as telemetry
from labapex_server.telemetry.models import Frame
from labapex_server.telemetry.offload import offload
from labapex_server.verification import services as verification
from labapex_server.workers import speed
from labapex_server.workers.models import SpeedTrial, Worker


async def lease_row(run: Run) -> Lease:
    return await offload(Lease.objects.select_related("job").get, pk=run.lease.pk)


# -- who is there ------------------------------------------------------------------------------------------------------


async def test_a_worker_that_signs_the_nonce_is_greeted_with_its_leases(platform: str, run: Run) -> None:
    async with Agent(platform, run.host, leases=(run.lease.pk,)) as agent:
        assert agent.greeting is not None
        assert agent.greeting.leases == (run.lease.pk,)
    worker = await offload(Worker.objects.get, pk=run.host.worker.pk)
    assert worker.devices == [A_CPU.model_dump(mode="json")]
    assert worker.last_seen_at is not None
    assert not worker.lacks_torch


async def test_a_host_that_says_so_when_it_connects_lacks_torch(platform: str, run: Run) -> None:
    async with Agent(platform, run.host, hello=False) as agent:
        await agent.say(agent.signed(await agent.expect(Nonce), lacks_torch=True))
        await agent.expect(Greeting)
    assert (await offload(Worker.objects.get, pk=run.host.worker.pk)).lacks_torch


async def test_a_paused_worker_gets_no_job_and_its_reason_is_kept_until_it_wants_work(
    platform: str, rig: Host, researcher: User
) -> None:
    async with Agent(platform, rig) as agent:
        await agent.say(Ready(), Paused(reason="the GPU is too hot"))
        await agent.say(Open(lease=uuid.uuid4()))  # is refused, and so answered after what was said before
        await agent.expect(Refusal)
        assert (await offload(Worker.objects.get, pk=rig.worker.pk)).paused == "the GPU is too hot"
        job = await offload(queued_job, researcher)
        await agent.say(Ready(price_per_hour=7_200_000))
        grant = await agent.expect(Grant)
        assert grant.job == job.pk
    worker = await offload(Worker.objects.get, pk=rig.worker.pk)
    assert (worker.paused, worker.price_per_hour) == ("", 7_200_000)
    lease = await offload(Lease.objects.get, pk=grant.lease)
    assert lease.price_per_epoch == 141


@pytest.mark.parametrize("price", [0, -1, 10**12 + 1, 2**70])
async def test_a_price_that_is_none_ends_the_connection(platform: str, rig: Host, price: int) -> None:
    async with Agent(platform, rig) as agent:
        await agent.say(Ready.model_construct(price_per_hour=min(price, 2**63)))
        assert await agent.closed() == door.MALFORMED


async def test_a_signature_over_another_nonce_is_refused(platform: str, rig: Host) -> None:
    async with Agent(platform, rig, hello=False) as first, Agent(platform, rig, hello=False) as second:
        replayed = first.signed(await first.expect(Nonce))
        await second.expect(Nonce)
        await second.say(replayed)
        refusal = await second.expect(Refusal)
        assert (refusal.code, refusal.fatal) == ("unknown-worker", True)
        assert await second.closed() == door.REFUSED


async def test_an_unknown_and_a_banned_worker_hear_the_same(platform: str, rig: Host, host: User) -> None:
    banned = await offload(a_host, host, "banned")
    await offload(Worker.objects.filter(pk=banned.worker.pk).update, banned=True)
    said = []
    for changes, who in (({"worker": uuid.uuid4()}, rig), ({}, banned)):
        async with Agent(platform, who, hello=False) as agent:
            await agent.say(agent.signed(await agent.expect(Nonce), **changes))
            said.append(await agent.expect(Refusal))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "first",
    [b"", b"\xc1", b"\x81", os.urandom(300), "text", b"\x93" * 5000, b"\x80"],
    ids=["empty", "no msgpack", "cut", "random", "text", "deep", "no type"],
)
async def test_garbage_ends_the_connection_with_a_reason(platform: str, rig: Host, first: bytes | str) -> None:
    async with Agent(platform, rig, hello=False) as agent:
        await agent.expect(Nonce)
        await agent.say(first)
        assert (await agent.expect(Refusal)).fatal
        assert await agent.closed() == door.MALFORMED
    async with Agent(platform, rig) as again:
        assert again.greeting is not None


async def test_nothing_is_heard_before_hello(platform: str, run: Run) -> None:
    async with Agent(platform, run.host, hello=False) as agent:
        await agent.say(run.executable.frames[0])
        assert (await agent.expect(Refusal)).code == "protocol"
        assert await agent.closed() == door.MALFORMED
    assert not await offload(Frame.objects.exists)


async def test_a_message_over_the_limit_ends_the_connection(platform: str, rig: Host) -> None:
    async with Agent(platform, rig) as agent:
        await agent.say(bytes((1 << 20) + 1))
        assert await agent.closed() == 1009


async def test_another_version_of_the_protocol_is_told_to_update(platform: str, rig: Host) -> None:
    async with Agent(platform, rig, hello=False) as agent:
        await agent.say(agent.signed(await agent.expect(Nonce), version=2))
        assert "update" in (await agent.expect(Refusal)).message


async def test_who_does_not_introduce_himself_is_sent_away(
    platform: str, rig: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HELLO_SECONDS", 0.05)
    async with Agent(platform, rig, hello=False) as agent:
        assert await agent.closed() == door.SILENT


async def test_a_newer_connection_of_a_worker_ends_the_older(platform: str, rig: Host) -> None:
    async with Agent(platform, rig) as older, Agent(platform, rig) as newer:
        assert (await older.expect(Refusal)).code == "fenced"
        assert await older.closed() == door.FENCED
        await newer.say(Ready())
        assert await newer.expect(Idle)


async def test_a_worker_banned_meanwhile_is_sent_away_at_its_heartbeat(platform: str, rig: Host) -> None:
    async with Agent(platform, rig) as agent:
        await offload(Worker.objects.filter(pk=rig.worker.pk).update, banned=True)
        await agent.say(Heartbeat())
        assert await agent.closed() == door.REFUSED


# -- work --------------------------------------------------------------------------------------------------------------


async def test_a_ready_worker_is_granted_a_job_that_comes_later(platform: str, rig: Host, researcher: User) -> None:
    async with Agent(platform, rig) as agent:
        await agent.say(Ready())
        await agent.expect(Idle)
        job = await offload(queued_job, researcher)
        grant = await agent.expect(Grant)
        assert (grant.job, grant.name, grant.threads) == (job.pk, "digits", 1)
    assert (await offload(Job.objects.get, pk=job.pk)).state == JobState.LEASED


async def test_keys_are_given_to_the_executable_once_and_again_to_the_same(
    platform: str, rig: Host, researcher: User
) -> None:
    await offload(queued_job, researcher)
    async with Agent(platform, rig) as agent:
        await agent.say(Ready())
        grant = await agent.expect(Grant)
        lease = await offload(Lease.objects.get, pk=grant.lease)
        request, private, _ = key_request(lease)
        await agent.say(request)
        release = await agent.expect(KeyRelease)
        assert open_release(private, manifest=Manifest.model_validate(lease.manifest), sealed=release.sealed).run_key
        await agent.say(request)
        assert await agent.expect(KeyRelease) == release
        await agent.say(key_request(lease)[0])
        refusal = await agent.expect(Refusal)
        assert (refusal.code, refusal.fatal, refusal.lease) == ("conflict", False, grant.lease)


async def test_an_executable_of_a_class_that_cannot_be_judged_gets_no_keys_and_its_worker_no_such_job(
    platform: str, rig: Host, researcher: User
) -> None:
    job = await offload(queued_job, researcher)
    async with Agent(platform, rig) as agent:
        await agent.say(Ready())
        grant = await agent.expect(Grant)
        lease = await offload(Lease.objects.get, pk=grant.lease)
        request = key_request(lease)[0]
        other = request.environment.model_copy(update={"torch": "2.14"})
        await agent.say(request.model_copy(update={"environment": other}))
        refusal = await agent.expect(Refusal)
        assert (refusal.code, refusal.fatal, refusal.lease) == ("other-class", False, grant.lease)
        assert (await agent.expect(Released)).lease == grant.lease
        await agent.say(Ready())
        await agent.expect(Idle)
    async with Agent(platform, rig) as agent:  # it may have the platform's torch by now
        await agent.say(Ready())
        assert (await agent.expect(Grant)).job == job.pk


async def test_a_worker_that_could_not_start_gives_the_job_back(platform: str, rig: Host, researcher: User) -> None:
    job = await offload(queued_job, researcher)
    async with Agent(platform, rig) as agent:
        await agent.say(Ready())
        grant = await agent.expect(Grant)
        await agent.say(Failed(lease=grant.lease, reason="no space left on the device"))
        assert (await agent.expect(Released)).lease == grant.lease
    assert (await offload(Job.objects.get, pk=job.pk)).state == JobState.QUEUED


async def test_a_grant_that_never_arrived_goes_back_to_the_queue(platform: str, rig: Host, researcher: User) -> None:
    job = await offload(queued_job, researcher)
    async with Agent(platform, rig) as agent:
        await agent.say(Ready())
        lost = await agent.expect(Grant)
        agent.kill()
    async with Agent(platform, rig) as agent:
        assert agent.greeting is not None
        assert agent.greeting.leases == ()
        await agent.say(Ready())
        again = await agent.expect(Grant)
        assert again.job == job.pk
        assert again.lease != lost.lease


async def test_a_stopped_job_is_released(platform: str, run: Run) -> None:
    async with Agent(platform, run.host, leases=(run.lease.pk,)) as agent:
        await offload(verification.stop, run.lease.job)
        released = await agent.expect(Released)
        assert released.lease == run.lease.pk
        assert "stopped" in released.reason


async def test_a_job_that_is_stopped_after_an_epoch_is_stopped_and_not_released(platform: str, run: Run) -> None:
    async with Agent(platform, run.host, leases=(run.lease.pk,)) as agent:
        await agent.say(Open(lease=run.lease.pk))
        await agent.expect(Welcome)
        frames = run.executable.frames
        await agent.say(*frames[:-1])
        await agent.expect(Ack)
        await offload(verification.stop, await offload(Job.objects.get, pk=run.lease.job_id))
        await agent.say(frames[-1])  # it was on its way
        assert (await agent.expect(Stop)).lease == run.lease.pk
        assert (await lease_row(run)).state == LeaseState.FINISHED
    async with Agent(platform, run.host, leases=(run.lease.pk,)) as agent:
        assert (await agent.expect(Stop)).lease == run.lease.pk  # it may not have heard


async def test_heartbeats_prolong_only_own_leases(platform: str, run: Run, cheat: User) -> None:
    stranger = await offload(a_host, cheat, "stranger")
    soon = clock.after(2)
    await offload(Lease.objects.update, expires_at=soon)
    async with Agent(platform, stranger) as agent:
        await agent.say(Heartbeat(leases=(run.lease.pk, uuid.uuid4())), Ready())
        await agent.expect(Idle)
        assert (await lease_row(run)).expires_at == soon
    async with Agent(platform, run.host) as agent:
        await agent.say(Heartbeat(leases=(run.lease.pk,)), Open(lease=run.lease.pk))
        await agent.expect(Welcome)
        assert (await lease_row(run)).expires_at > soon


# -- the log -----------------------------------------------------------------------------------------------------------


async def test_a_log_is_streamed_acknowledged_and_ended(platform: str, run: Run) -> None:
    async with Agent(platform, run.host, leases=(run.lease.pk,)) as agent:
        await agent.say(Open(lease=run.lease.pk))
        assert (await agent.expect(Welcome)).seq == 0
        await agent.say(*run.executable.frames)
        await agent.acknowledged(run.executable.frames[-1])
        await agent.say(run.executable.fin())
        assert (await agent.expect(FinAck)).lease == run.lease.pk
    assert await offload(telemetry.losses, run.lease) == run.executable.losses
    assert (await lease_row(run)).state == LeaseState.FINISHED


async def test_an_end_right_behind_the_frames_waits_for_their_commit(platform: str, run: Run) -> None:
    async with Agent(platform, run.host, leases=(run.lease.pk,)) as agent:
        await agent.say(*run.executable.frames, run.executable.fin())
        assert await agent.expect(FinAck)


@pytest.mark.parametrize("seed", range(3))
async def test_cut_connections_leave_nothing_missing_and_nothing_doubled(
    platform: str, rig: Host, researcher: User, seed: int
) -> None:
    job = await offload(queued_job, researcher, per_epoch=60, every=10)
    run = await offload(a_run, job, rig, frame_losses=3)
    frames, sent = run.executable.frames, 0
    cuts = [5, 1, 9, 3, 7, 2][seed:]
    while sent < len(frames):
        async with Agent(platform, rig, leases=(run.lease.pk,)) as agent:
            await agent.say(Open(lease=run.lease.pk))
            held = await agent.expect(Welcome)
            assert held.seq == 0 or held.head == frames[held.seq - 1].hash
            sent = held.seq
            batch = frames[sent : sent + (cuts.pop() if cuts else len(frames))]
            await agent.say(*batch)
            if cuts:
                agent.kill()
            elif batch:
                await agent.acknowledged(batch[-1])
    assert await offload(telemetry.losses, run.lease) == run.executable.losses
    assert await offload(Frame.objects.count) == len(frames)


async def test_a_gap_and_a_flipped_bit_are_asked_for_again(platform: str, run: Run) -> None:
    frames = run.executable.frames
    broken = frames[0].model_copy(update={"payload": frames[0].payload[:-1] + b"\0"})
    async with Agent(platform, run.host, leases=(run.lease.pk,)) as agent:
        await agent.say(broken)
        assert await agent.expect(Nack) == Nack(lease=run.lease.pk, expected=0)
        await agent.say(frames[1])
        assert await agent.expect(Nack) == Nack(lease=run.lease.pk, expected=0)
        await agent.say(frames[0])
        assert await agent.expect(Ack) == Ack(lease=run.lease.pk, seq=0, head=frames[0].hash)


async def test_a_frame_of_another_workers_lease_is_refused_and_that_lease_lives(
    platform: str, run: Run, cheat: User
) -> None:
    stranger = await offload(a_host, cheat, "stranger")
    async with Agent(platform, stranger) as agent:
        await agent.say(run.executable.frames[0])
        refusal = await agent.expect(Refusal)
        assert (refusal.lease, refusal.fatal) == (run.lease.pk, False)
        await agent.say(Failed(lease=run.lease.pk, reason="out of spite"), Ready())
        await agent.expect(Idle)
    assert (await lease_row(run)).state == LeaseState.RUNNING
    assert not await offload(Frame.objects.exists)


async def test_frames_of_an_unknown_lease_are_refused(platform: str, rig: Host) -> None:
    invented = Executable(await offload(_contract_of_nobody))
    async with Agent(platform, rig) as agent:
        await agent.say(invented.frames[0])
        assert (await agent.expect(Refusal)).code == "not-running"


def _contract_of_nobody() -> Any:
    from tests.labapex_server.telemetry.executable import a_contract

    return a_contract()


async def test_a_forked_log_ends_the_lease(platform: str, run: Run) -> None:
    frames = run.executable.frames
    async with Agent(platform, run.host, leases=(run.lease.pk,)) as agent:
        await agent.say(frames[0], frames[1], rehashed(frames[1], payload=b"another past"))
        refusal = await agent.expect(Refusal)
        assert (refusal.code, refusal.lease) == ("fork", run.lease.pk)
        assert (await agent.expect(Released)).lease == run.lease.pk
    assert (await lease_row(run)).state == LeaseState.FAILED


async def test_an_expired_lease_takes_nothing_more_and_is_released(platform: str, run: Run) -> None:
    async with Agent(platform, run.host, leases=(run.lease.pk,)) as agent:
        await agent.say(run.executable.frames[0])
        await agent.acknowledged(run.executable.frames[0])
        await offload(Lease.objects.update, expires_at=clock.after(-1))
        await offload(marketplace.expire_silent, clock.now())
        await agent.say(run.executable.frames[1])
        assert (await agent.expect(Refusal)).code == "not-running"
        assert (await agent.expect(Released)).lease == run.lease.pk
    assert await offload(Frame.objects.count) == 1


async def test_more_frames_than_may_be_in_flight_only_wait(
    platform: str, rig: Host, researcher: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FRAMES_IN_FLIGHT", 2)
    job = await offload(queued_job, researcher, per_epoch=100, every=50)
    run = await offload(a_run, job, rig, frame_losses=1)
    async with Agent(platform, rig, leases=(run.lease.pk,)) as agent:
        await agent.say(*run.executable.frames)
        await agent.acknowledged(run.executable.frames[-1])


# -- the challenge -----------------------------------------------------------------------------------------------------


async def test_a_challenge_is_passed_on_and_again_after_a_reconnect(platform: str, run: Run) -> None:
    async with Agent(platform, run.host, leases=(run.lease.pk,)) as agent:
        challenge = await offload(a_challenge, run)
        opening = await agent.expect(OpenStates)
        assert opening.indices == (0, 2)
        assert opening.deadline == pytest.approx(challenge.deadline.timestamp())
    async with Agent(platform, run.host, leases=(run.lease.pk,)) as agent:
        assert await agent.expect(OpenStates) == opening


async def test_the_rounds_of_a_challenge_are_passed_on_one_after_the_other(
    platform: str, rig: Host, researcher: User
) -> None:
    run = await offload(a_run, await offload(queued_job, researcher, layout=True), rig)
    async with Agent(platform, rig, leases=(run.lease.pk,)) as agent:
        lease = verification.finished_lease
        job = await offload(finished, run)
        await offload(lambda: verification.challenge(lease(job)))
        asked = await agent.expect(OpenChunks)
        assert (asked.number, asked.indices) == (0, tuple(range(len(run.lease.terms.leaf_steps()))))
        answer = io.BytesIO(run.executable.answer())
        await offload(lambda: verification.accept_chunks(lease(job), 0, answer))
        drawn = await offload(lambda: verification.challenge(lease(job)))
        assert (await agent.expect(OpenStates)).indices == tuple(drawn.indices)


async def test_two_agents_that_reconnect_at_once_leave_one(platform: str, rig: Host) -> None:
    agents = [Agent(platform, rig) for _ in range(4)]

    async def come(agent: Agent) -> int | Greeting | None:
        async with agent:
            await asyncio.sleep(0)
            return agent.greeting

    assert len(await asyncio.gather(*map(come, agents))) == 4
    async with Agent(platform, rig) as last:
        await last.say(Ready())
        assert await last.expect(Idle)


async def test_the_agents_own_readings_of_the_gpu_are_kept_beside_the_log(platform: str, run: Run) -> None:
    reading = Observation(at=1.0, device="GPU-1", utilisation=90, memory=1000)
    async with Agent(platform, run.host, leases=(run.lease.pk,)) as agent:
        await agent.say(Observed(lease=run.lease.pk, readings=(reading,)), Open(lease=run.lease.pk))
        await agent.expect(Welcome)  # messages are taken one after the other
    assert await offload(telemetry.observations, run.lease) == [reading]


@pytest.fixture
def trials(rig: Host, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers have to show their speed, with a small chain."""
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"trial_hours": 24})
    monkeypatch.setattr(speed, "CPU_PLAN", SMALL)


async def measured(agent: Agent, *, products: int | None = None) -> None:
    """Answer a speed trial to its end; `products`: stop each chain after so many."""
    asked = await agent.expect(TrialPrepare)
    await agent.say(TrialReady(trial=asked.trial))
    results = []
    while isinstance(said := await agent.hear(), TrialBegin):
        results.append(chain(asked.trial, said.seed, products=products))
        await agent.say(TrialAnswer(trial=asked.trial, digest=hashlib.sha256(results[-1]).digest()))
    assert isinstance(said, TrialShow)
    await agent.say(TrialPart(trial=asked.trial, offset=0, data=results[said.number]))
    await agent.expect(TrialOver)


async def test_a_new_worker_shows_its_speed_before_its_first_job_and_not_again_before_its_second(
    platform: str, rig: Host, trials: None, researcher: User
) -> None:
    await offload(queued_job, researcher)
    async with Agent(platform, rig) as agent:
        await agent.say(Ready())
        await measured(agent)
        assert isinstance(await agent.hear(), Grant)
    worker = await offload(Worker.objects.get, pk=rig.worker.pk)
    row = await offload(SpeedTrial.objects.get)
    assert worker.speed == row.gflops
    assert (row.problem, row.size, row.rounds, len(row.attempts)) == ("", SMALL.size, SMALL.rounds, 3)
    assert worker.next_trial_at is not None
    assert worker.next_trial_at > clock.now()


async def test_a_worker_that_shows_a_false_result_has_no_speed_and_its_trial_says_so(
    platform: str, rig: Host, trials: None
) -> None:
    async with Agent(platform, rig) as agent:
        await agent.say(Ready())
        await measured(agent, products=1)
        assert isinstance(await agent.hear(), Idle)
    row = await offload(SpeedTrial.objects.get)
    assert (row.gflops, row.problem) == (None, "the result is not that of the chain that was asked for")


async def test_a_worker_that_cannot_show_its_speed_gets_work_that_asks_for_none(
    platform: str, rig: Host, trials: None, researcher: User
) -> None:
    await offload(queued_job, researcher)
    async with Agent(platform, rig) as agent:
        await agent.say(Ready())
        asked = await agent.expect(TrialPrepare)
        await agent.say(TrialReady(trial=asked.trial, problem="no torch"))
        await agent.expect(Grant)
    row = await offload(SpeedTrial.objects.get)
    assert row.problem == "no torch"
