"""A platform is backed up while it runs, destroyed, restored, and goes on; nothing is paid twice and nobody is blamed."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from tests.labapex_server.gateway.stage import Host, Run, a_host, a_true_state, queued_job
from tests.labapex_server.scenes import finished, stand_in, submitted
from tests.labapex_server.verification.test_takeover import (
    EPOCHS,
    EVERY,
    PER_EPOCH,
    SCRIPT,
    hand_in,
    judged,
    lose,
    send,
    training,
)

from labapex.protocol.frames import Nack
from labapex.protocol.states import Fault, JobState
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.ledger.audit import audit
from labapex_server.ledger.models import Transfer
from labapex_server.lib import clock, keys
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.pipeline import stages
from labapex_server.pipeline import sweep as sweeping
from labapex_server.telemetry import services as telemetry
from labapex_server.telemetry.writer import writer
from labapex_server.transparency import certificates
from labapex_server.transparency import services as transparency
from labapex_server.verification import services as verification
from labapex_server.verification import stopping
from labapex_server.verification.models import Challenge
from labapex_server.workers.models import Mark

TOTAL = EPOCHS * PER_EPOCH


@pytest.fixture(autouse=True)
def _stand_in(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(settings, monkeypatch)
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"handover_seconds": 0.001})


@pytest.fixture(autouse=True)
def _tools() -> None:
    if connection.vendor == "postgresql" and not (shutil.which("pg_dump") and shutil.which("pg_restore")):
        pytest.skip("pg_dump is missing (Debian: postgresql-client)")


def a_job(owner: User, name: str) -> Job:
    """One that waits for a worker, its budget held."""
    job = queued_job(owner, name=name, epochs=EPOCHS, per_epoch=PER_EPOCH, every=EVERY, script=SCRIPT.encode())
    job.hold = ledger.hold(ledger.account_of(owner), amount=job.budget, job=job.pk, memo="budget")
    job.save()
    return job


def opened(run: Run) -> None:
    lease = verification.finished_lease(Job.objects.get(pk=run.lease.job_id))
    verification.challenge(lease)
    for index in Challenge.objects.get(lease=lease).wanted:
        verification.accept_state(lease, index, io.BytesIO(a_true_state(index)))


def stage(job: Job, state: JobState, work: Callable[..., None]) -> JobState:
    assert stages.work(job.pk, state, work), (job.name, state)
    return JobState(Job.objects.get(pk=job.pk).state)


class World:
    """A platform with a job in each kind of state, each by a host of its own."""

    def __init__(self, owner: User, host: User) -> None:
        self.owner, self.host = owner, host
        self.jobs: dict[str, Job] = {}
        self.runs: dict[str, Run] = {}
        self._run("verified")
        judged(self._finished("verified"))
        stage(self.jobs["verified"], JobState.SETTLING, stages.settle)
        self._run("settling")
        judged(self._finished("settling"))
        self._run("verifying")
        opened(self._finished("verifying"))
        for name in ("challenged", "released"):
            self._run(name)
            verification.challenge(verification.finished_lease(Job.objects.get(pk=self._finished(name).lease.job_id)))
        self._run("resuming")
        send(self.runs["resuming"], 12)
        hand_in(self.runs["resuming"], 0, 2, 4)
        lose(self.runs["resuming"])
        for name in ("running", "ahead"):
            self._run(name)
            send(self.runs[name], 8)
        self.jobs["leased"] = a_job(owner, "leased")
        assert marketplace.lease(a_host(host, "leased").worker) is not None
        self.jobs["queued"] = a_job(owner, "queued")
        self.jobs["submitted"] = submitted(owner, "fine", name="submitted")
        self.jobs["cancelled"] = stopping.stop(submitted(owner, "fine", name="cancelled"))

    def _run(self, name: str) -> None:
        self.jobs[name] = a_job(self.owner, name)
        self.runs[name] = training(self.jobs[name], a_host(self.host, name))

    def _finished(self, name: str) -> Run:
        finished(self.runs[name])
        return self.runs[name]

    def job(self, name: str) -> Job:
        return Job.objects.get(pk=self.jobs[name].pk)

    def state(self, name: str) -> JobState:
        return JobState(self.job(name).state)

    def states(self) -> dict[str, JobState]:
        return {name: self.state(name) for name in self.jobs}


EACH = {
    "verified": JobState.VERIFIED, "settling": JobState.SETTLING, "verifying": JobState.VERIFYING,
    "challenged": JobState.CHALLENGED, "released": JobState.CHALLENGED, "resuming": JobState.RESUMING,
    "running": JobState.RUNNING, "ahead": JobState.RUNNING, "leased": JobState.LEASED, "queued": JobState.QUEUED,
    "submitted": JobState.SUBMITTED, "cancelled": JobState.CANCELLED,
}  # fmt: skip


def destroy(home: Path) -> None:
    """Database and home are gone."""
    writer.stop()
    writer.forget()
    keys.forget()
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("DROP SCHEMA public CASCADE")
            cursor.execute("CREATE SCHEMA public")
        connections.close_all()
    else:
        name = Path(str(connection.settings_dict["NAME"]))
        connections.close_all()
        for path in (name, *(name.with_name(name.name + end) for end in ("-wal", "-shm"))):
            path.unlink(missing_ok=True)
    shutil.rmtree(home)
    home.mkdir(mode=0o700)
    (home / "keys").mkdir(mode=0o700)
    (home / "keys" / "django").write_text("of the first command")


@pytest.fixture
def world(rig: Host, researcher: User, host: User) -> World:
    made = World(researcher, host)
    assert made.states() == EACH
    return made


def test_a_platform_with_a_job_in_each_state_is_destroyed_restored_and_goes_on(
    world: World, home: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "backup"
    public, head = keys.verdict_public_key(), transparency.head()
    token = accounts.issue_token(world.owner, name="laptop")
    call_command("backup", folder)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "database", "files.tar", "keys.tar"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
    # what the lost platform did afterwards, the restored one knows nothing of
    stage(world.jobs["settling"], JobState.SETTLING, stages.settle)
    for frame in world.runs["ahead"].executable.frames:
        telemetry.ingest(world.runs["ahead"].host.worker.pk, frame)
    destroy(home)
    (tmp_path / "safe").mkdir()
    apart = (folder / "keys.tar").rename(tmp_path / "safe" / "keys.tar")
    call_command("restore", folder, keys=apart)
    assert "what happened since is not known here any more" in capsys.readouterr().out
    assert all(path.stat().st_mode & 0o077 == 0 for path in home.rglob("*"))

    assert world.states() == EACH
    assert keys.verdict_public_key() == public
    assert accounts.authenticate_token(token).user == world.owner
    assert verification.weights(world.job("verified"))[0].exists()
    assert certificates.record_of(world.job("verified")) is not None
    assert transparency.head() == head

    # the platform goes on where the backup was taken, and so do its hosts
    assert stage(world.jobs["settling"], JobState.SETTLING, stages.settle) is JobState.VERIFIED
    assert stage(world.jobs["verifying"], JobState.VERIFYING, stages.verify) is JobState.SETTLING
    assert stage(world.jobs["verifying"], JobState.SETTLING, stages.settle) is JobState.VERIFIED
    opened(world.runs["challenged"])
    assert stage(world.jobs["challenged"], JobState.VERIFYING, stages.verify) is JobState.SETTLING
    assert stage(world.jobs["challenged"], JobState.SETTLING, stages.settle) is JobState.VERIFIED
    assert stage(world.jobs["resuming"], JobState.RESUMING, stages.resume) is JobState.QUEUED
    assert stage(world.jobs["submitted"], JobState.SUBMITTED, stages.preflight) is JobState.PACKAGING
    finished(world.runs["running"])
    assert world.state("running") is JobState.CHALLENGED

    # one host has sent more than is here now: it is told so, and gives the lease back, which is nobody's fault
    last = world.runs["ahead"].executable.frames[-1]
    assert isinstance(telemetry.ingest(world.runs["ahead"].host.worker.pk, last), Nack)
    marketplace.fail(Lease.objects.get(pk=world.runs["ahead"].lease.pk), "its log was forgotten")
    # another was told that it may delete all, and did
    swept = sweeping.sweep(clock.now() + timedelta(seconds=601))
    assert swept.late >= 1
    released = world.job("released")
    assert (released.state, released.fault) == (JobState.FAILED, Fault.PLATFORM)
    assert "restored from a backup" in released.reason
    assert set(Mark.objects.exclude(worker=world.runs["resuming"].host.worker).values_list("finding", flat=True)) == {
        "verified"
    }

    found = audit()
    assert (found.escrow, found.overdrawn) == (0, 0)
    paid = [world.job(name) for name in ("verified", "settling", "verifying", "challenged")]
    due = sum(ledger.outcome(job.hold).paid for job in paid)
    assert all(ledger.outcome(job.hold).paid > 0 for job in paid)
    assert ledger.balance(ledger.account_of(world.host)).available == due
    assert Transfer.objects.filter(credit__user=world.host).count() == len(paid)


def test_a_backup_is_complete_or_is_refused_before_anything_is_changed(
    rig: Host, researcher: User, home: Path, tmp_path: Path
) -> None:
    a_job(researcher, "queued")
    folder = tmp_path / "backup"
    call_command("backup", folder)
    with pytest.raises(CommandError, match="not there yet"):
        call_command("backup", folder)
    with pytest.raises(CommandError, match=r"restore into an empty|restore where no database is"):
        call_command("restore", folder)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    with (damaged / "files.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"\xff")
    destroy(home)
    with pytest.raises(CommandError, match=r"files\.tar is not the file that belongs to this backup"):
        call_command("restore", damaged)
    with pytest.raises(CommandError, match=r"keys\.tar: No such file"):
        call_command("restore", folder, keys=tmp_path / "keys.tar")
    newer = tmp_path / "newer"
    shutil.copytree(folder, newer)
    manifest = json.loads((newer / "manifest.json").read_text())
    manifest["migrations"]["jobs"] = "9999_from_the_future"
    (newer / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CommandError, match="newer release"):
        call_command("restore", newer)
    assert {path.name for path in home.iterdir()} == {"keys"}
    call_command("restore", folder)
    assert Job.objects.get().state == JobState.QUEUED


def test_no_password_of_the_database_stands_in_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from labapex_server.pipeline import backup

    seen: list[Any] = []
    monkeypatch.setitem(connection.settings_dict, "PASSWORD", "hunter2")
    monkeypatch.setattr("shutil.which", lambda name: name)

    def run(line: list[str], env: dict[str, str], **_: Any) -> Any:
        seen.append((line, env["PGPASSWORD"]))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("subprocess.run", run)
    backup._postgresql(["pg_dump", "--format=custom"])
    assert seen == [(["pg_dump", "--format=custom"], "hunter2")]
