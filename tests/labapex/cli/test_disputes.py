"""A verdict contested at the command line."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from tests.labapex.cli.conftest import Labapex
from tests.labapex.memory_platform import MemoryPlatform

from labapex.protocol.ruling import FalseSegment, Moved, Outcome, Ruling, Side
from labapex.protocol.spec import JobSpec

SPEC = JobSpec.model_validate({"script": "train.py", "epochs": 3, "budget": 10})


@pytest.fixture
def job(labapex: Labapex, platform: MemoryPlatform) -> UUID:
    """A verified job."""
    added = platform.add(SPEC).id
    assert labapex("logs", "-f", added).code == 0
    return added


def a_ruling(job: UUID) -> Ruling:
    return Ruling(
        dispute=UUID(int=77),
        job=job,
        lease=UUID(int=7),
        side=Side.CLIENT,
        contested="ab" * 32,
        outcome=Outcome.REVERSED,
        because="iterations 20 to 24 were run again, twice, and came out otherwise",
        false=FalseSegment(
            segment=4, start=20, stop=25, agreed="aa" * 32, committed="bb" * 32, recomputed="cc" * 32, origin=20
        ),
        rules=(),
        blamed=UUID(int=7),
        segments_executed=2,
        segments=15,
        seconds=0.5,
        worker_environment=None,
        verifier_environment=None,
        verdict="dd" * 32,
        revoked="ee" * 32,
        stake=1_677,
        charged=0,
        moved=(Moved(payer="the platform's guarantee", payee="ada", amount=1_677, why="given back"),),
        issued_at=1.79e9 + 60,
    )


def test_what_contesting_would_take_is_told_before_anything_is_opened(
    labapex: Labapex, platform: MemoryPlatform, job: UUID
) -> None:
    result = labapex("dispute", job)
    assert result.code == 0
    assert "0.001677 credits, given back if you are right" in result.out
    assert f"labapex dispute {job} --reason" in result.out
    assert platform.disputes == []


def test_a_reason_opens_a_dispute_and_a_second_look_shows_it(
    labapex: Labapex, platform: MemoryPlatform, job: UUID
) -> None:
    assert "There are none" in labapex("disputes").err
    result = labapex("dispute", job, "--reason", "it does not learn")
    assert result.code == 0
    assert "by the client: it does not learn" in " ".join(result.out.split())
    assert "0 of 15 segments" in labapex("dispute", str(job)[:6]).out
    assert "0 of 15 segments run again" in labapex("disputes").out


def test_a_ruling_is_shown_with_its_evidence_once_its_signature_is_checked(
    labapex: Labapex, platform: MemoryPlatform, job: UUID
) -> None:
    platform.disputes.append(platform.dispute(job, "it does not learn", a_ruling(job)))
    result = labapex("dispute", job)
    assert result.code == 0
    told = " ".join(result.out.split())
    for words in ("reversed", "cc" * 32, "0.001677 credits from the platform's guarantee to ada", "ee" * 32):
        assert words in told
    assert "The ruling's signature is good" in result.err
    assert "labapex replay proof --from 20 --steps 5" in result.err
    assert json.loads(labapex("dispute", job, "--json").out)["ruling"]["ruling"]["outcome"] == "reversed"

    forged = platform.disputes[0].ruling
    assert forged is not None
    changed = forged.model_copy(update={"ruling": forged.ruling.model_copy(update={"charged": 1})})
    platform.disputes[0] = platform.disputes[0].model_copy(update={"ruling": changed})
    assert "signature" in labapex("dispute", job).err
    assert labapex("dispute", job).code == 1
