from __future__ import annotations

from tests.labapex.cli.conftest import Labapex
from tests.labapex.memory_platform import TOKEN, URL, MemoryPlatform

from labapex.client import Client
from labapex.protocol.spec import JobSpec
from labapex.protocol.states import JobState

SPEC = JobSpec.model_validate({"script": "train.py", "epochs": 3, "budget": "1"})


def a_job(platform: MemoryPlatform, state: JobState) -> str:
    job = platform.add(SPEC)
    verdict = "verified" if state is JobState.VERIFIED else None
    platform.jobs[job.id].view = job.model_copy(update={"state": state, "verdict": verdict})
    return str(job.id)


def test_what_data_takes_is_shown_with_how_long_it_is_kept(labapex: Labapex, platform: MemoryPlatform) -> None:
    platform.blobs["ab" * 32] = b"x" * 2048
    told = labapex("storage").out
    for words in ("2.0 KiB", "of 50.0 GiB; 1 files; kept 30 days after the last job", "kept until you delete them"):
        assert words in told
    assert labapex("storage", "--json").json["files_bytes"] == 2048


def test_a_jobs_data_is_deleted_and_the_job_says_so_from_then_on(labapex: Labapex, platform: MemoryPlatform) -> None:
    job = a_job(platform, JobState.CANCELLED)
    assert "files deleted on 2026-09-1" in labapex("delete", job, "-y").err
    assert "results deleted on" in labapex("show", job).out


def test_of_a_judged_job_it_is_said_when_it_will_be(labapex: Labapex, platform: MemoryPlatform) -> None:
    job = a_job(platform, JobState.VERIFIED)
    done = labapex("delete", job[:8], "-y")
    assert "all of it is deleted on 2026-09-2" in done.err
    assert "until then its verdict may be contested" in done.err


def test_a_job_that_runs_keeps_its_data(labapex: Labapex, platform: MemoryPlatform) -> None:
    done = labapex("delete", a_job(platform, JobState.RUNNING), "-y")
    assert done.code == 1
    assert "stop it first" in done.err


def test_all_files_that_no_job_needs_are_deleted(labapex: Labapex, platform: MemoryPlatform) -> None:
    platform.blobs["ab" * 32] = b"x"
    assert labapex("delete", "--files", "-y", "--json").json["storage"]["files"] == 0


def test_nothing_is_deleted_without_a_name_or_a_word(labapex: Labapex, platform: MemoryPlatform) -> None:
    assert labapex("delete").code == 2
    job = a_job(platform, JobState.CANCELLED)
    assert labapex("delete", job).code != 0  # nobody is there to say yes
    assert f"DELETE jobs/{job}/data/" not in platform.seen


def test_the_same_by_the_sdk(platform: MemoryPlatform) -> None:
    mine = Client(URL, TOKEN, transport=platform.transport)
    job = platform.add(SPEC)
    platform.jobs[job.id].view = job.model_copy(update={"state": JobState.CANCELLED})
    assert len(mine.delete(job.id).erased) == 3
    assert mine.storage().limit_bytes == 50 * 2**30
    assert mine.delete_files().files == 0
