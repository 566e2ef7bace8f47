"""What `make chaos` rests on: a schedule that can be had again, a line that does what it is told, an oracle that sees."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import UUID

import pytest
from asgiref.sync import sync_to_async
from tests.chaos.line import Line
from tests.chaos.oracle import judge
from tests.chaos.schedule import ON_MESSAGES, Fault, Kind, schedule
from tests.labapex_server.gateway.agent import PATIENCE, Agent
from tests.labapex_server.gateway.stage import Run
from websockets.exceptions import ConnectionClosed, InvalidMessage

from labapex.protocol.frames import Ack, Nack, Open, Welcome
from labapex_server.telemetry import services as telemetry
from labapex_server.telemetry.models import Frame, Log


def test_the_same_seed_gives_the_same_schedule_and_another_one_another() -> None:
    assert schedule(7, 600, 2) == schedule(7, 600, 2)
    assert schedule(7, 600, 2) != schedule(8, 600, 2)


def test_ten_minutes_hold_a_thousand_faults_of_every_kind() -> None:
    faults = schedule(1, 600, 2)
    assert len(faults) >= 1000
    assert {fault.kind for fault in faults} == set(Kind)
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)


def acknowledged(run: Run) -> dict[tuple[UUID, int], bytes]:
    for frame in run.executable.frames:
        telemetry.ingest(run.host.worker.pk, frame)
    return {(run.lease.pk, frame.seq): frame.hash for frame in run.executable.frames}


def test_the_oracle_finds_nothing_wrong_with_a_log_that_is_whole(run: Run) -> None:
    found = judge(acknowledged(run))
    assert (found["frames"], found["records"]) == (len(run.executable.frames), run.executable.contract.iterations)
    assert not found["wrong"]["records"]
    assert not found["wrong"]["acknowledged"]
    assert "is running" in found["wrong"]["states"][0]  # a job that has not come to its end


def test_the_oracle_misses_a_frame_that_was_acknowledged_and_is_not_there(run: Run) -> None:
    told = acknowledged(run)
    Frame.objects.filter(seq=2).delete()
    wrong = judge(told)["wrong"]
    assert wrong["records"]
    assert wrong["acknowledged"] == [f"frame 2 of {run.lease.pk} is not stored"]


def test_the_oracle_sees_a_frame_that_is_another_than_was_acknowledged(run: Run) -> None:
    told = acknowledged(run)
    told[run.lease.pk, 1] = bytes(32)
    assert "as another than" in judge(told)["wrong"]["acknowledged"][0]


def test_the_oracle_sees_a_changed_byte_and_a_log_that_says_too_much(run: Run) -> None:
    told = acknowledged(run)
    Frame.objects.filter(seq=1).update(payload=b"another")
    assert "frame 1" in judge(told)["wrong"]["records"][0]
    Log.objects.update(seq=99)
    assert "says 99 frames" in judge({})["wrong"]["records"][-1]


@pytest.fixture
def line(platform: str) -> Iterator[Line]:
    with Line(int(platform.rsplit(":", 1)[1])).strung() as strung:
        yield strung


async def delivered(line: Line, run: Run) -> None:
    """Send the log as an agent does, over as many connections as it takes, until all of it is acknowledged."""
    frames = run.executable.frames
    while True:
        try:
            async with Agent(line.url, run.host, leases=(run.lease.pk,)) as agent:
                await agent.say(Open(lease=run.lease.pk))
                position = (await agent.expect(Welcome)).seq
                while position < len(frames):
                    await agent.say(*frames[position : position + 3])
                    answer = await agent.hear()
                    if isinstance(answer, Ack):
                        position = answer.seq + 1
                    elif isinstance(answer, Nack):
                        position = answer.expected
                return
        except (OSError, ConnectionClosed, InvalidMessage):
            continue


@pytest.mark.parametrize("kind", [*ON_MESSAGES, Kind.CUT])
async def test_the_line_does_its_worst_and_each_frame_is_stored_once(line: Line, run: Run, kind: Kind) -> None:
    for number in range(3):
        line.do(Fault(0, kind, 0, True, 8 * 300 + number))
    async with asyncio.timeout(PATIENCE):
        await delivered(line, run)
    found = await sync_to_async(judge)(dict(line.acknowledged))
    assert not found["wrong"]["records"]
    assert not found["wrong"]["acknowledged"]
    assert found["frames"] == len(run.executable.frames)
    if kind is not Kind.CUT:  # there may have been no connection to cut yet
        assert line.applied[kind] >= 1
