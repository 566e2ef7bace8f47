from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests import wheels
from tests.labapex_server.gateway.stage import ENVIRONMENT, Host, a_host, a_run, key_request, queued_job

from labapex import installed
from labapex.proof.tolerance import PHASES, Calibration, Phase
from labapex.protocol.canonical import canonical
from labapex.protocol.contract import Handover, TorchBuild
from labapex.protocol.limits import Limits
from labapex.protocol.manifest import Manifest
from labapex.protocol.states import Fault, JobState, LeaseState
from labapex.sealing import open_release
from labapex_server.accounts.models import User
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib import childprocess, clock, trust
from labapex_server.lib.errors import Conflict, OtherClass, UnknownBuild
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.verification import services as verification
from labapex_server.workers import reputation
from labapex_server.workers import services as workers
from labapex_server.workers.models import Worker
from labapex_server.workers.reputation import Reputation


def granted(rig: Host) -> Lease:
    found = marketplace.lease(rig.worker)
    assert found is not None
    return found[0]


def state(job: Job) -> str:
    return Job.objects.get(pk=job.pk).state


def silence(lease: Lease) -> None:
    Lease.objects.filter(pk=lease.pk).update(expires_at=clock.now() - timedelta(seconds=1))


def test_the_job_that_waits_longest_is_leased_under_a_signed_contract(rig: Host, researcher: User) -> None:
    first, second = queued_job(researcher), queued_job(researcher)
    found = marketplace.lease(rig.worker)
    assert found is not None
    lease, token = found
    assert lease.job_id == first.pk
    assert (state(first), state(second)) == (JobState.LEASED, JobState.QUEUED)
    manifest = Manifest.model_validate(lease.manifest)
    believed, now = trust.current(), time.time()
    signed = bytes(lease.manifest_signature)
    believed.verify(manifest, signed, key=manifest.key, role="manifest", now=now)
    believed.release(manifest.release, "runner", now)
    assert manifest.worker == rig.worker.pk
    assert manifest.contract == lease.terms
    assert lease.terms.seed == lease.seed
    assert token not in str(Lease.objects.values().get())
    assert 1 <= lease.price_per_epoch * lease.terms.epochs <= first.budget


def test_a_worker_has_one_unfinished_lease_at_a_time(rig: Host, host: User, researcher: User) -> None:
    queued_job(researcher), queued_job(researcher)
    assert marketplace.lease(rig.worker) is not None
    assert marketplace.lease(rig.worker) is None
    assert marketplace.lease(a_host(host, "second").worker) is not None


def test_a_job_is_leased_once(rig: Host, host: User, researcher: User) -> None:
    queued_job(researcher)
    assert marketplace.lease(rig.worker) is not None
    assert marketplace.lease(a_host(host, "second").worker) is None


def test_a_banned_worker_gets_nothing(rig: Host, researcher: User) -> None:
    queued_job(researcher)
    rig.worker.banned = True
    assert marketplace.lease(rig.worker) is None


def test_a_job_whose_budget_does_not_cover_the_workers_price_is_passed_over(rig: Host, researcher: User) -> None:
    job = queued_job(researcher)  # 14 iterations of 10 ms, for at most one credit
    assert job.budget == 1_000_000
    workers.ready(rig.worker, 10**12)
    assert marketplace.lease(rig.worker) is None
    assert state(job) == JobState.QUEUED
    workers.ready(rig.worker, 3_600_000)
    assert granted(rig).price_per_epoch == 71


ROOM = Limits(memory=8 << 30, disk=1 << 40, processes=4096)


@pytest.mark.parametrize("name", ["memory", "disk", "processes"])
def test_a_job_that_asks_for_more_room_than_a_host_has_is_passed_over(rig: Host, researcher: User, name: str) -> None:
    job = queued_job(researcher, limits={"memory": "8G", "disk": "2 GiB", "processes": 100})
    workers.ready(rig.worker, None, ROOM.model_copy(update={name: 99}))
    assert marketplace.lease(rig.worker) is None
    assert state(job) == JobState.QUEUED
    workers.ready(rig.worker, None, ROOM)
    limits = granted(rig).terms.limits
    assert limits is not None
    assert (limits.memory, limits.processes) == (8 << 30, 100)
    assert limits.disk > 2 << 30  # the files and the states that are kept come on top


def test_a_job_that_a_host_has_no_room_for_waits_for_another_and_that_is_no_attempt(
    rig: Host, host: User, researcher: User
) -> None:
    job = queued_job(researcher)
    lease = granted(rig)
    assert marketplace.decline(lease, "memory: 3 GiB of 4 GiB")
    job.refresh_from_db()
    assert (lease.state, job.state, job.attempts) == (LeaseState.DECLINED, JobState.QUEUED, 0)
    assert job.reason == "waits for a worker with the room that it asks for; rig has not: memory: 3 GiB of 4 GiB"
    assert marketplace.lease(rig.worker) is None  # it would decline again
    Lease.objects.filter(pk=lease.pk).update(ended_at=clock.after(-61))
    assert marketplace.lease(rig.worker) is not None


def test_a_lease_whose_keys_were_given_out_is_declined_no_more(rig: Host, researcher: User) -> None:
    queued_job(researcher)
    lease = granted(rig)
    marketplace.release_keys(lease, request=key_request(lease)[0])
    assert not marketplace.decline(Lease.objects.get(pk=lease.pk), "no room")


def test_each_lease_has_a_seed_that_could_not_be_known_before(rig: Host, researcher: User) -> None:
    job = queued_job(researcher)
    first = granted(rig)
    marketplace.fail(first, "disk full")
    assert state(job) == JobState.QUEUED
    assert granted(rig).seed != first.seed


def test_only_the_leases_own_token_opens_it(rig: Host, researcher: User) -> None:
    queued_job(researcher)
    found = marketplace.lease(rig.worker)
    assert found is not None
    lease, token = found
    assert marketplace.authenticate(lease.pk, token) == lease
    assert marketplace.authenticate(lease.pk, token + "x") is None
    assert marketplace.authenticate(lease.pk, "") is None
    assert marketplace.authenticate(rig.worker.pk, token) is None
    marketplace.fail(lease, "over")
    assert marketplace.authenticate(lease.pk, token) is None


def test_the_executables_parts_are_what_its_manifest_says(rig: Host, researcher: User) -> None:
    queued_job(researcher)
    lease = granted(rig)
    layout = marketplace.executable_parts(lease)
    assert sum(map(len, layout.stream())) == layout.size
    assert b"print('training')" not in b"".join(layout.stream())
    manifest = Manifest.model_validate(lease.manifest)
    assert layout.sizes[1 : 1 + len(manifest.sections)] == tuple(section.size for section in manifest.sections)


def test_keys_are_given_once_and_the_same_process_may_ask_again(rig: Host, researcher: User) -> None:
    job = queued_job(researcher)
    lease = granted(rig)
    request, private, _ = key_request(lease)
    sealed = marketplace.release_keys(lease, request=request)
    opened = open_release(private, manifest=Manifest.model_validate(lease.manifest), sealed=sealed)
    assert opened.content_key == jobs.content_key(job)
    lease.refresh_from_db()
    assert opened.run_key == marketplace.run_key(lease)
    assert opened.run_key not in bytes(lease.wrapped_run_key or b"")
    assert marketplace.release_keys(lease, request=request) == sealed
    with pytest.raises(Conflict, match="another process"):
        marketplace.release_keys(lease, request=key_request(lease)[0])
    assert (state(job), lease.state) == (JobState.RUNNING, LeaseState.RUNNING)
    assert Worker.objects.get().environment == request.environment.model_dump()


def test_no_keys_are_given_for_a_job_that_was_stopped(rig: Host, researcher: User) -> None:
    job = queued_job(researcher)
    lease = granted(rig)
    job.refresh_from_db()
    verification.stop(job)
    with pytest.raises(Conflict):
        marketplace.release_keys(lease, request=key_request(lease)[0])


def test_stopping_a_job_releases_its_worker_at_once(rig: Host, researcher: User) -> None:
    run = a_run(queued_job(researcher), rig)
    verification.stop(Job.objects.get())
    run.lease.refresh_from_db()
    assert run.lease.state == LeaseState.FAILED
    assert run.lease.reason == "stopped by its owner"
    assert not marketplace.alive(rig.worker).exists()


def test_heartbeats_keep_a_lease_and_silence_ends_it(rig: Host, researcher: User) -> None:
    job = queued_job(researcher)
    run = a_run(job, rig)
    silence(run.lease)
    marketplace.heartbeat(rig.worker, [run.lease.pk])
    assert marketplace.expire_silent(clock.now()) == 0
    silence(run.lease)
    assert marketplace.expire_silent(clock.now()) == 1
    assert marketplace.expire_silent(clock.now()) == 0
    run.lease.refresh_from_db()
    assert run.lease.state == LeaseState.EXPIRED
    job.refresh_from_db()
    assert (job.state, job.attempts) == (JobState.QUEUED, 1)
    assert "fell silent" in job.reason


def test_workers_are_not_blamed_for_a_silence_of_the_platforms_own(rig: Host, researcher: User) -> None:
    run = a_run(queued_job(researcher), rig)
    silence(run.lease)
    assert marketplace.forgive_silence() == 1
    assert marketplace.expire_silent(clock.now()) == 0
    silence(run.lease)
    assert marketplace.expire_silent(clock.now()) == 1


def test_another_workers_heartbeat_does_not_keep_a_lease(rig: Host, cheat: User, researcher: User) -> None:
    run = a_run(queued_job(researcher), rig)
    silence(run.lease)
    marketplace.heartbeat(a_host(cheat, "cheat").worker, [run.lease.pk])
    assert marketplace.expire_silent(clock.now()) == 1


def test_a_worker_that_only_beats_and_never_starts_is_given_up(rig: Host, researcher: User) -> None:
    job = queued_job(researcher)
    lease = granted(rig)
    Lease.objects.update(granted_at=clock.now() - timedelta(hours=2))
    marketplace.heartbeat(rig.worker, [lease.pk])
    assert marketplace.expire_silent(clock.now()) == 1
    assert state(job) == JobState.QUEUED


def test_a_grant_that_never_arrived_goes_back_to_the_queue(rig: Host, researcher: User) -> None:
    job = queued_job(researcher)
    lease = granted(rig)
    marketplace.reconcile(rig.worker, [lease.pk])
    assert state(job) == JobState.LEASED
    marketplace.reconcile(rig.worker, [])
    assert state(job) == JobState.QUEUED
    assert reputation.of(rig.worker) == Reputation()


def test_five_lost_leases_end_a_job_with_a_reason(rig: Host, researcher: User) -> None:
    job = queued_job(researcher)
    for _ in range(5):
        marketplace.fail(granted(rig), "no space left")
    job.refresh_from_db()
    assert job.state == JobState.FAILED
    assert Fault(job.fault) is Fault.WORKER
    assert "after 5 leases" in job.reason
    assert "no space left" in job.reason
    assert reputation.of(rig.worker).lost == 5


def test_a_script_that_fails_at_the_worker_ends_the_job_for_its_client(rig: Host, researcher: User) -> None:
    job = queued_job(researcher)
    marketplace.fail(a_run(job, rig).lease, "exit code 3", script="ValueError: negative dimension")
    job.refresh_from_db()
    assert (job.state, job.fault) == (JobState.FAILED, Fault.CLIENT)
    assert job.reason == "ValueError: negative dimension"
    assert reputation.of(rig.worker) == Reputation()


def test_an_executable_that_dies_without_the_scripts_error_in_its_log_is_the_hosts_matter(
    rig: Host, researcher: User
) -> None:
    job = queued_job(researcher)
    marketplace.fail(a_run(job, rig).lease, "it was ended by signal 9")
    assert state(job) == JobState.QUEUED


def test_a_lease_given_up_for_dead_cannot_finish_its_successors_run(rig: Host, researcher: User) -> None:
    job = queued_job(researcher)
    old = a_run(job, rig).lease
    silence(old)
    marketplace.expire_silent(clock.now())
    a_run(Job.objects.get(), rig)
    assert not marketplace.finish(old)
    marketplace.fail(old, "late words")
    assert state(job) == JobState.RUNNING


def test_finishing_twice_is_finishing_once(rig: Host, researcher: User) -> None:
    job = queued_job(researcher)
    lease = a_run(job, rig).lease
    assert marketplace.finish(lease)
    assert marketplace.finish(lease)
    assert state(job) == JobState.CHALLENGED


# -- classes of hosts --------------------------------------------------------------------------------------------------

OTHER = ENVIRONMENT.model_copy(update={"device": "cpu: another one"})


def asks(lease: Lease) -> bytes:
    """An executable on a host of another class asks for its keys."""
    request = key_request(lease)[0].model_copy(update={"environment": OTHER})
    return marketplace.release_keys(Lease.objects.get(pk=lease.pk), request=request)


def calibrate(home: Path, every: int, error: float) -> None:
    phases = tuple(Phase(until=until, segments=100, error=error) for until in PHASES)
    found = Calibration(worker=OTHER, verifier=ENVIRONMENT, checkpoint_every=every, phases=phases)
    (home / "tolerances").mkdir(parents=True, exist_ok=True)
    (home / "tolerances" / "a.json").write_bytes(b"{}")  # no calibration: it does not count
    (home / "tolerances" / "b.json").write_bytes(canonical(found))


def test_work_that_could_not_be_judged_is_not_begun(rig: Host, host: User, researcher: User) -> None:
    job = queued_job(researcher)
    lease = granted(rig)
    with pytest.raises(
        OtherClass, match=r"could not judge .*cpu: another one.* no calibration of this pair of classes"
    ):
        asks(lease)
    lease.refresh_from_db()
    job.refresh_from_db()
    assert (lease.state, lease.sealed_keys, job.state, job.attempts) == (LeaseState.FAILED, None, JobState.QUEUED, 0)
    assert job.reason.startswith("waits for a worker of a class that this platform can judge; rig is of another: cpu:")
    assert marketplace.lease(a_host(host, "second").worker) is not None


def test_a_worker_whose_class_is_known_gets_no_job_that_it_could_not_be_judged_on(
    rig: Host, researcher: User, home: Path
) -> None:
    queued_job(researcher), queued_job(researcher, every=4)
    with pytest.raises(OtherClass):
        asks(granted(rig))
    assert marketplace.lease(rig.worker) is None
    calibrate(home, every=4, error=1e-3)
    assert granted(rig).terms.checkpoint_every == 4


def test_a_worker_that_connects_anew_may_be_of_another_class_by_now(rig: Host, researcher: User) -> None:
    queued_job(researcher)
    with pytest.raises(OtherClass):
        asks(granted(rig))
    workers.arrived(rig.worker, (), lacks_torch=False)
    again = granted(rig)
    assert marketplace.release_keys(Lease.objects.get(pk=again.pk), request=key_request(again)[0])


@pytest.mark.parametrize(("every", "error", "begins"), [(3, 1e-3, True), (4, 1e-3, False), (3, 0.05, False)])
def test_another_class_is_let_in_where_every_phase_of_the_run_has_a_line(
    rig: Host, researcher: User, home: Path, every: int, error: float, begins: bool
) -> None:
    calibrate(home, every, error)
    job = queued_job(researcher)
    lease = granted(rig)
    if begins:
        assert asks(lease)
        assert state(job) == JobState.RUNNING
    else:
        with pytest.raises(OtherClass):
            asks(lease)
        assert state(job) == JobState.QUEUED


def test_a_run_that_was_let_in_gets_its_keys_again_whatever_became_of_the_calibration(
    rig: Host, researcher: User, home: Path
) -> None:
    calibrate(home, 3, 1e-3)
    queued_job(researcher)
    lease = granted(rig)
    request = key_request(lease)[0].model_copy(update={"environment": OTHER})
    sealed = marketplace.release_keys(Lease.objects.get(pk=lease.pk), request=request)
    (home / "tolerances" / "b.json").unlink()
    assert marketplace.release_keys(Lease.objects.get(pk=lease.pk), request=request) == sealed


# -- going on with the run of another class ----------------------------------------------------------------------------


def handed_over(job: Job, rig: Host) -> Lease:
    """The host is lost, and the run can go on behind its first leaf."""
    run = a_run(job, rig)
    silence(run.lease)
    marketplace.expire_silent(clock.now())
    leaf = next(run.executable.leaves())
    handover = Handover(lease=run.lease.pk, leaf=leaf, held=(leaf.index,))
    assert marketplace.hand_over(marketplace.lost_lease(job), handover, "goes on")
    return run.lease


def test_a_run_waits_so_long_for_its_class_and_is_then_begun_anew_by_another(
    rig: Host, host: User, researcher: User, home: Path, settings: Any
) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"handover_seconds": 0.001, "handover_wait_seconds": 600})
    calibrate(home, 3, 1e-3)
    job = queued_job(researcher)
    lost = handed_over(job, rig)

    def lost_for(seconds: float) -> None:
        Lease.objects.filter(pk=lost.pk).update(ended_at=clock.now() - timedelta(seconds=seconds))

    other = a_host(host, "other")
    Worker.objects.filter(pk=other.worker.pk).update(environment=OTHER.model_dump(mode="json"))
    lost_for(590)
    assert marketplace.lease(other.worker) is None
    lost_for(610)
    unknown = granted(a_host(host, "not heard of yet"))
    assert unknown.terms.after is not None, "it may well be of that class"
    with pytest.raises(OtherClass, match="it waits for such a one"):
        asks(unknown)
    begun = granted(other)
    assert (begun.terms.after, begun.terms.handovers, Job.objects.get().handovers) == (None, (), [])
    assert begun.seed != lost.seed


def test_a_run_goes_on_with_a_host_of_its_class_however_long_it_waited(
    rig: Host, researcher: User, settings: Any
) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"handover_seconds": 0.001, "handover_wait_seconds": 0})
    job = queued_job(researcher)
    lost = handed_over(job, rig)
    assert granted(rig).seed == lost.seed


# -- builds of torch ---------------------------------------------------------------------------------------------------


def put_on_record(home: Path, digest: str, torch: str = ENVIRONMENT.torch) -> None:
    (home / "builds").mkdir(parents=True, exist_ok=True)
    (home / "builds" / "a.json").write_bytes(b"{}")  # no build: it does not count
    (home / "builds" / f"{digest[:4]}.json").write_bytes(canonical(TorchBuild(torch=torch, files=1, digest=digest)))


def asks_with(lease: Lease, build: str | None) -> bytes:
    request = key_request(lease)[0].model_copy(update={"torch_build": build})
    return marketplace.release_keys(Lease.objects.get(pk=lease.pk), request=request)


@pytest.mark.parametrize("build", ["cd" * 32, None], ids=["another", "none told"])
def test_a_build_of_torch_that_is_not_on_record_gets_no_keys_and_no_further_job_until_it_connects_anew(
    rig: Host, host: User, researcher: User, home: Path, build: str | None
) -> None:
    put_on_record(home, "ab" * 32)
    job = queued_job(researcher)
    lease = granted(rig)
    with pytest.raises(UnknownBuild, match="none of the 1 that this platform has on record; install torch anew"):
        asks_with(lease, build)
    lease.refresh_from_db()
    job.refresh_from_db()
    assert (lease.state, lease.sealed_keys, job.state, job.attempts) == (LeaseState.FAILED, None, JobState.QUEUED, 0)
    assert "a worker with a build of torch that is on record; rig has another" in job.reason
    assert marketplace.lease(rig.worker) is None
    workers.arrived(rig.worker, (), lacks_torch=False)
    assert asks_with(granted(rig), "ab" * 32)
    job.refresh_from_db()
    assert job.reason == "training, on torch 2.13, of build abababababababab, on record"


@pytest.mark.parametrize("build", ["cd" * 32, None], ids=["another", "none told"])
def test_where_no_build_of_its_version_is_on_record_every_build_is_accepted_and_marked(
    rig: Host, researcher: User, home: Path, build: str | None
) -> None:
    put_on_record(home, "ab" * 32, torch="2.12")
    job = queued_job(researcher)
    assert asks_with(granted(rig), build)
    job.refresh_from_db()
    assert job.reason.startswith("training, on torch 2.13, of ")
    assert job.reason.endswith(", an unknown build")


def supply(home: Path, folder: Path, digest: str) -> TorchBuild:
    """The platform's own torch to be supplied, as if it had been locked with this digest."""
    own = installed.find(childprocess.site_packages())
    assert own is not None
    torch, _ = wheels.supplied(wheels.a_torch(folder, own.version))
    build = torch.build.model_copy(update={"digest": digest})
    (home / "torch").mkdir(exist_ok=True)
    (home / "torch" / "own.json").write_bytes(canonical(torch.model_copy(update={"build": build})))
    return build


def test_a_worker_without_torch_gets_jobs_with_the_platforms_own_and_none_while_that_is_not_supplied(
    rig: Host, researcher: User, home: Path, tmp_path: Path
) -> None:
    own = installed.find(childprocess.site_packages())
    assert own is not None
    job = queued_job(researcher)
    workers.arrived(rig.worker, (), lacks_torch=True)
    assert marketplace.lease(rig.worker) is None
    supply(home, tmp_path, "ab" * 32)  # the platform's was another one when it was locked
    assert marketplace.lease(rig.worker) is None
    build = supply(home, tmp_path, own.digest)
    put_on_record(home, "cd" * 32)  # a rule for torch that hosts install
    lease = granted(rig)
    manifest = Manifest.model_validate(lease.manifest)
    assert manifest.torch is not None
    assert manifest.torch.build == build
    assert asks_with(lease, own.digest)
    job.refresh_from_db()
    assert job.reason == f"training, on torch 2.13, of build {own.digest[:16]}, from this platform"


def test_a_worker_that_was_given_torch_and_has_another_gets_no_keys_and_no_further_job(
    rig: Host, host: User, researcher: User, home: Path, tmp_path: Path
) -> None:
    own = installed.find(childprocess.site_packages())
    assert own is not None
    supply(home, tmp_path, own.digest)
    job = queued_job(researcher)
    workers.arrived(rig.worker, (), lacks_torch=True)
    with pytest.raises(
        UnknownBuild, match=r"not the one that this platform supplied; delete the worker's environments/"
    ):
        asks_with(granted(rig), "cd" * 32)
    job.refresh_from_db()
    assert (job.state, job.attempts) == (JobState.QUEUED, 0)
    assert marketplace.lease(rig.worker) is None
    second = granted(a_host(host, "second"))
    assert second.manifest["torch"] is None, "a host with torch of its own is given none"
