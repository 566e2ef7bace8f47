"""How long what is stored of a job stays, what is deleted and when, and what its owner is told who asks for it."""

from __future__ import annotations

import hashlib
import io
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from tests.labapex_server.gateway.stage import Host, Run, queued_job
from tests.labapex_server.scenes import finished, request, stand_in, submitted, upload
from tests.labapex_server.verification.test_takeover import EPOCHS, EVERY, PER_EPOCH, SCRIPT, judged, training

from labapex.protocol.api import Stored
from labapex.protocol.requirements import Lock, Package, Wheel
from labapex.protocol.states import Fault, JobState, LeaseState
from labapex_server.accounts.models import User
from labapex_server.jobs import blobs, erasure, packages
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Blob, Erasure, Job, KeptWheel
from labapex_server.ledger import services as ledger
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict, Gone, OverQuota, Refused
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.pipeline import stages
from labapex_server.telemetry import charts
from labapex_server.telemetry import services as telemetry
from labapex_server.telemetry.models import Frame, Leaf, Log, Summary
from labapex_server.transparency import certificates
from labapex_server.verification import erasing, proofs
from labapex_server.verification import services as verification
from labapex_server.verification.models import OpenedState


@pytest.fixture(autouse=True)
def _stand_in(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(settings, monkeypatch)


def configure(settings: Any, **update: Any) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update=update)


def in_days(days: float) -> Any:
    return clock.now() + timedelta(days=days)


@pytest.fixture
def verified(researcher: User, rig: Host) -> Job:
    """A job that was trained truly, judged and paid."""
    job = queued_job(researcher, epochs=EPOCHS, per_epoch=PER_EPOCH, every=EVERY, script=SCRIPT.encode())
    job.hold = ledger.hold(ledger.account_of(researcher), amount=job.budget, job=job.pk, memo="budget")
    job.save()
    run = training(job, rig)
    finished(run)
    assert judged(run).verdict == "verified"
    assert stages.work(job.pk, JobState.SETTLING, stages.settle)
    job.refresh_from_db()
    assert job.state == JobState.VERIFIED
    return job


def files_of(job: Job, home: Path) -> set[str]:
    """What lies there of a job, by kind."""
    (lease,) = Lease.objects.filter(job=job)
    there = {path.parent.name if path.parent.name == "states" else path.name for path in _below(home / "leases")}
    return (
        there | {"blobs" for _ in _below(home / "blobs")} | ({"log"} if Frame.objects.filter(log=lease.pk) else set())
    )


def _below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_each_part_of_a_judged_job_goes_in_its_time_and_the_books_stay(verified: Job, home: Path) -> None:
    weights, digest = verification.weights(verified)
    weights.write_bytes(weights.read_bytes() if weights.exists() else b"weights")
    everything = files_of(verified, home)
    assert {"states", "blobs", "log", "weights.safetensors"} <= everything
    assert erasing.erase_due(in_days(29)).parts == 0
    assert files_of(verified, home) == everything
    assert erasing.erase_due(in_days(31)).parts == 2
    assert files_of(verified, home) == {"log", "weights.safetensors"}
    assert erasing.erase_due(in_days(31)).parts == 0
    assert verification.weights(verified) == (weights, digest)
    with pytest.raises(
        Gone, match=r"the files of this job were deleted on \d{4}-\d\d-\d\d: the job ended 30 days before"
    ):
        proofs.prepare(verified)
    assert erasing.erase_due(in_days(366)).parts == 1
    assert files_of(verified, home) == set()
    with pytest.raises(Gone, match="results"):
        verification.weights(verified)
    # what verdict, receipt and certificate speak of
    assert verification.signed(verified).verdict.verdict == "verified"
    assert certificates.record_of(verified) is not None
    assert Log.objects.get().next == EPOCHS * PER_EPOCH
    assert Leaf.objects.count() > 0
    assert Summary.objects.count() == 0
    told = charts.events(Job.objects.get(pk=verified.pk), "")
    assert told.losses == ()
    assert [each.what for each in told.job.erased] == [Stored.FILES, Stored.STATES, Stored.RESULTS]


def test_what_is_kept_for_ever_is_kept_for_ever(verified: Job, home: Path, settings: Any) -> None:
    configure(settings, files_days=0, states_days=0, results_days=0)
    before = files_of(verified, home)
    assert erasing.erase_due(in_days(36_500)).parts == 0
    assert files_of(verified, home) == before


def test_neither_side_can_have_the_evidence_deleted_while_a_verdict_may_be_contested(verified: Job, home: Path) -> None:
    before = files_of(verified, home)
    asked = erasing.ask(verified)
    assert asked.erase_after is not None
    assert verified.ended_at is not None
    assert asked.erase_after == verified.ended_at + timedelta(days=14)
    assert erasing.forget_files(verified.owner) == 0
    erasing.erase_due(in_days(13))
    assert files_of(verified, home) == before
    erasing.erase_due(in_days(15))
    assert files_of(verified, home) == set()
    view = jobs.view(Job.objects.get())
    assert {each.reason for each in view.erased} == {erasing.BY_OWNER}
    assert view.erase_after is None


def test_a_window_that_is_longer_than_what_is_kept_prolongs_it(verified: Job, home: Path, settings: Any) -> None:
    configure(settings, evidence_days=60, files_days=1, states_days=1, results_days=1)
    assert erasing.erase_due(in_days(59)).parts == 0
    assert erasing.erase_due(in_days(61)).parts == 3


def test_what_nobody_judged_is_deleted_at_once_when_its_owner_asks(researcher: User, rig: Host, home: Path) -> None:
    job = queued_job(researcher)
    with pytest.raises(Conflict, match="stop it first"):
        erasing.ask(job)
    verification.stop(job)
    asked = erasing.ask(job)
    assert asked.erase_after is None
    assert {each.what for each in asked.erasures.all()} == {"files", "states", "results"}
    assert (asked.sealed_index, asked.wrapped_content_key) == (None, None)
    assert not _below(home / "blobs")
    assert not Blob.objects.exists()
    assert erasing.ask(job) == asked  # once more changes nothing


def test_what_a_host_still_adds_to_is_deleted_when_it_has_heard_that_the_job_is_over(run: Run, home: Path) -> None:
    assert jobs.advance(run.lease.job, JobState.FAILED, reason="the platform gave up", fault=Fault.PLATFORM)
    Lease.objects.update(state=LeaseState.RUNNING)  # as if the process had died before it ended the lease
    assert erasing.ask(run.lease.job).erase_after is not None
    telemetry.ingest(run.host.worker.pk, run.executable.frames[0])
    assert erasing.erase_due(clock.now()).parts == 0
    assert marketplace.release_ended() == 1
    assert erasing.erase_due(clock.now()).parts == 1
    assert files_of(run.lease.job, home) == set()


@pytest.mark.django_db
def test_files_that_another_job_has_stay(researcher: User, home: Path) -> None:
    first, second = submitted(researcher, data="data"), submitted(researcher, "another", data="data")
    verification.stop(first)
    erasing.ask(first)
    assert {blob.digest for blob in Blob.objects.all()} == {
        part.digest for part in (*second.files.code, *second.files.data)
    }
    assert len(_below(home / "blobs")) == 2


@pytest.mark.django_db
def test_an_others_equal_file_is_another_file(researcher: User, other_researcher: User) -> None:
    mine, _ = submitted(researcher), submitted(other_researcher)
    verification.stop(mine)
    erasing.ask(mine)
    assert [blob.owner for blob in Blob.objects.all()] == [other_researcher]


@pytest.mark.django_db
def test_a_file_that_no_job_has_goes_when_nobody_wanted_it_for_so_long(researcher: User, home: Path) -> None:
    submitted(researcher)
    upload(researcher, b"unused", "x")
    assert erasing.erase_due(in_days(29)).files == 0
    digest = hashlib.sha256(b"unused").hexdigest()
    Blob.objects.update(wanted_at=clock.now() - timedelta(days=31))
    assert blobs.find(researcher, digest)  # a client who is about to submit asks whether it is here
    assert erasing.erase_due(clock.now()).files == 0
    Blob.objects.filter(digest=digest).update(wanted_at=clock.now() - timedelta(days=31))
    assert erasing.erase_due(clock.now()).files == 1
    assert [path.name for path in _below(home / "blobs")] == [Blob.objects.get().path.name]  # the job's


@pytest.mark.django_db
def test_a_client_who_submits_after_her_files_went_is_told_to_upload_them(researcher: User) -> None:
    asked = request(researcher)
    erasing.forget_files(researcher)
    with pytest.raises(Refused, match=r"not uploaded yet, among them train\.py"):
        jobs.submit(researcher, request=asked)
    upload(researcher, b"fine", "train.py")
    assert jobs.submit(researcher, request=asked)


@pytest.mark.django_db
def test_packages_go_when_no_job_has_them(researcher: User, home: Path) -> None:
    job = submitted(researcher)
    wheel = Wheel(name="einops", version="0.8.1", file="einops-0.8.1-py3-none-any.whl", sha256="ab" * 32, size=1)
    lock = Lock(python="3.11", given=(Package(name="torch", version="2.13"),), wheels=(wheel,))
    Job.objects.filter(pk=job.pk).update(requirements=lock.model_dump(mode="json"))
    kept, loose = packages.path(wheel), packages.path(wheel.model_copy(update={"sha256": "cd" * 32}))
    for path in (kept, loose):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"w")
        KeptWheel.objects.create(sha256=path.name, wanted_at=clock.now())
    assert erasing.erase_due(in_days(29)).wheels == 0
    KeptWheel.objects.update(wanted_at=clock.now() - timedelta(days=31))
    assert erasing.erase_due(clock.now()).wheels == 1
    assert (kept.exists(), loose.exists()) == (True, False)
    verification.stop(job)
    erasing.ask(job)
    assert erasing.erase_due(clock.now()).wheels == 0  # it was found to be needed a moment ago
    assert erasing.erase_due(in_days(31)).wheels == 1
    assert not kept.exists()


@pytest.mark.django_db
def test_what_dead_processes_left_is_deleted_a_day_later(researcher: User, home: Path) -> None:
    with pytest.raises(Refused, match="too early"):
        blobs.store(researcher, "ab" * 32, io.BytesIO(b"begin"), size=100)
    for name in ("leases/x/incoming/3.abc", "work/replay-x/secret"):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_bytes(b"x")
    assert erasing.erase_due(clock.now()).left == 0
    assert erasing.erase_due(in_days(1.5)).left == 3
    assert not _below(home / "uploads") + _below(home / "work") + _below(home / "leases")


def test_a_deletion_that_is_cut_off_is_done_again(verified: Job, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(erasure, "note", die)
        with pytest.raises(KeyboardInterrupt):
            erasing.erase_due(in_days(31))
    assert not Erasure.objects.exists()
    assert erasing.erase_due(in_days(31)).parts == 2
    assert files_of(verified, home) == {"log", "weights.safetensors"}


# -- room --------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_an_account_has_so_much_room_for_files_and_no_more(
    researcher: User, other_researcher: User, settings: Any
) -> None:
    configure(settings, account_bytes=5_000)
    upload(researcher, b"a" * 3_000, "a")
    with pytest.raises(OverQuota, match=r"your files take \d+ bytes of your 5000, and this one has 3000; delete"):
        upload(researcher, b"b" * 3_000, "b")
    upload(other_researcher, b"b" * 3_000, "b")
    upload(researcher, b"a" * 3_000, "a")  # it is here already
    erasing.forget_files(researcher)
    upload(researcher, b"b" * 3_000, "b")


@pytest.mark.django_db
def test_uploads_that_broke_off_take_room_too(researcher: User, settings: Any) -> None:
    configure(settings, account_bytes=3 << 20)
    with pytest.raises(Refused, match="too early"):
        blobs.store(researcher, "ab" * 32, io.BytesIO(bytes(5 << 19)), size=(5 << 19) + 1)
    with pytest.raises(OverQuota):
        upload(researcher, bytes(2 << 20), "b")
    assert erasing.storage(researcher).unfinished_bytes > 0


def test_what_data_takes_is_told_to_its_owner_and_to_the_operator(verified: Job, capsys: Any) -> None:
    found = erasing.storage(verified.owner)
    assert found.files == 1
    assert found.files_bytes == Blob.objects.get().sealed_size
    assert found.states_bytes == sum(state.size for state in OpenedState.objects.all())
    call_command("usage")
    told = capsys.readouterr().out
    for word in ("files of clients", "states, weights", "researcher", "frames of logs", "free of"):
        assert word in told
