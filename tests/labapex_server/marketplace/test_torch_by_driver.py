"""Which build of torch comes with the jobs of a host that has none: its driver decides, as a stub of NVML plays it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import wheels
from tests.labapex_server.gateway.stage import ENVIRONMENT, Host, key_request, queued_job
from tests.nvml import traces
from tests.nvml.stub import Play

from labapex import installed, nvml
from labapex.proof.tolerance import PHASES, Calibration, Phase
from labapex.protocol.canonical import canonical
from labapex.protocol.contract import TorchBuild
from labapex.protocol.devices import Device
from labapex.protocol.manifest import Manifest, SuppliedTorch
from labapex_server.accounts.models import User
from labapex_server.lib import childprocess
from labapex_server.lib.errors import OtherClass
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.workers import services as workers
from labapex_server.workers.models import Worker

CPU = Device(kind="cpu", name="AMD EPYC")


@pytest.fixture
def held(home: Path, tmp_path: Path) -> dict[str, TorchBuild]:
    """The platform's own build and two for GPUs, to be supplied; by their labels."""
    own = installed.find(childprocess.site_packages())
    assert own is not None
    release, found = own.version.partition("+")[0], {}
    (home / "torch").mkdir()
    for number, label in enumerate(("own", "cu126", "cu130")):
        version = own.version if label == "own" else f"{release}+{label}"
        lock, _ = wheels.locked([wheels.a_torch(tmp_path / "wheels", version)])
        digest = own.digest if label == "own" else f"{number}" * 64
        found[label] = TorchBuild(torch=version, files=2, digest=digest)
        (home / "torch" / f"{label}.json").write_bytes(canonical(SuppliedTorch(build=found[label], packages=lock)))
    return found


def a_gpu(play: Play, driver: str) -> Device:
    play(traces.H200.replace("driver 580.95.05", f"driver {driver}"))
    (device,) = nvml.Driver().devices()
    return device


def leased(rig: Host) -> Lease:
    found = marketplace.lease(rig.worker)
    assert found is not None
    return found[0]


@pytest.mark.parametrize(("driver", "label"), [("580.95.05", "cu130"), ("550.54.14", "cu126"), (None, "own")])
def test_a_job_brings_the_build_that_the_hosts_driver_runs(
    play: Play, rig: Host, researcher: User, held: dict[str, TorchBuild], driver: str | None, label: str
) -> None:
    queued_job(researcher)
    workers.arrived(rig.worker, [CPU if driver is None else a_gpu(play, driver)], lacks_torch=True)
    torch = Manifest.model_validate(leased(rig).manifest).torch
    assert torch is not None
    assert torch.build == held[label]
    assert torch.packages.wheels[0].version == held[label].torch


def test_a_host_whose_driver_runs_none_of_them_gets_no_job_until_it_has_another(
    play: Play, rig: Host, researcher: User, held: dict[str, TorchBuild]
) -> None:
    queued_job(researcher)
    workers.arrived(rig.worker, [a_gpu(play, "470.223.02")], lacks_torch=True)
    assert marketplace.lease(rig.worker) is None
    workers.arrived(rig.worker, [a_gpu(play, "550.54.14")], lacks_torch=True)
    assert leased(rig)


def test_the_class_of_a_host_is_that_of_the_build_that_it_gets_now(
    play: Play, rig: Host, researcher: User, home: Path, held: dict[str, TorchBuild]
) -> None:
    job = queued_job(researcher)
    workers.arrived(rig.worker, [a_gpu(play, "580.95.05")], lacks_torch=True)
    (home / "torch" / "cu130.json").rename(home / "cu130.json")  # not held yet
    lease = leased(rig)
    there = ENVIRONMENT.model_copy(update={"torch": held["cu126"].torch, "device": "cuda: NVIDIA H200"})
    request = key_request(lease)[0].model_copy(update={"environment": there, "torch_build": held["cu126"].digest})
    with pytest.raises(OtherClass, match=r"could not judge .*torch 2\.[0-9.]+\+cu126"):
        marketplace.release_keys(lease, request=request)
    assert marketplace.lease(rig.worker) is None, "its class is known now, and nothing of it could be judged"
    newer = there.model_copy(update={"torch": held["cu130"].torch})
    phases = tuple(Phase(until=until, segments=100, error=0.001) for until in PHASES)
    found = Calibration(
        worker=newer, verifier=ENVIRONMENT, checkpoint_every=job.job_spec.checkpoint_every, phases=phases
    )
    (home / "tolerances").mkdir()
    (home / "tolerances" / "a.json").write_bytes(canonical(found))
    assert marketplace.lease(rig.worker) is None, "the calibration is of another build"
    (home / "cu130.json").rename(home / "torch" / "cu130.json")
    manifest = Manifest.model_validate(leased(rig).manifest)
    assert manifest.torch is not None
    assert manifest.torch.build == held["cu130"]
    assert Worker.objects.get(pk=rig.worker.pk).torch_build == held["cu126"].digest, (
        "which it has had, and is no stranger"
    )
