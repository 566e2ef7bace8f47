"""A daemon and its host's devices: a GPU, as a stub of its driver tells of it, and their speed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from uuid import uuid4

import pytest
from tests import wheels
from tests.labapex_worker.cast import Cast
from tests.labapex_worker.speed import chain
from tests.nvml import traces

from labapex import drivers, sandbox
from labapex.protocol.canonical import canonical
from labapex.protocol.frames import TrialAnswer, TrialBegin, TrialPart, TrialPrepare, TrialReady, TrialShow
from labapex_worker import packages

missing = sandbox.available()
pytestmark = pytest.mark.skipif(missing is not None, reason=f"no sandbox can be had: {missing}")


def with_driver(cast: Cast, library: Path, trace: str) -> None:
    """The host has an NVIDIA driver, which plays a trace."""
    (cast.folder / "trace").write_text(trace)
    cast.variables |= {"LD_LIBRARY_PATH": str(library.parent), "NVML_TRACE": str(cast.folder / "trace")}


async def test_a_gpu_that_is_lost_in_mid_run_gives_the_lease_back_with_this_reason(
    cast: Cast, nvml_library: Path
) -> None:
    await cast.enrol()
    with_driver(cast, nvml_library, traces.lost(after=2))
    held = cast.a_job(frames=9, wait_at=3)
    await cast.gateway.offer(held)
    await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.failed)
    assert "NVIDIA H200: GPU is lost" in (held.failed or "")
    await cast.gateway.until(lambda: cast.gateway.connections > 1)
    assert [device.kind for device in cast.gateway.devices if device.usable] == ["cpu"]


async def test_what_the_agent_sees_of_the_gpu_is_sent_beside_the_log(cast: Cast, nvml_library: Path) -> None:
    await cast.enrol()
    with_driver(cast, nvml_library, traces.resnet())
    held = cast.a_job(frames=9, wait_at=3)
    await cast.gateway.offer(held)
    await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: len(held.frames) == 3)
    assert [device.name for device in cast.gateway.devices] == ["Tesla V100-SXM2-16GB"]
    await cast.gateway.until(lambda: held.observations)
    assert {reading.device for reading in held.observations} == {traces.UUID}
    assert all(reading.job_utilisation == 0 for reading in held.observations), "no process of the trace is the job's"


async def test_a_daemon_computes_a_speed_trial_in_the_sandbox_and_shows_it(cast: Cast) -> None:
    await cast.enrol()
    await cast.labapex_worker("run")
    await cast.gateway.until(lambda: cast.gateway.books.ready)
    trial, seeds = uuid4(), (b"1" * 32, b"2" * 32)
    assert await cast.gateway.ask(TrialPrepare(trial=trial, size=128, rounds=3)) == TrialReady(trial=trial)
    answers = [await cast.gateway.ask(TrialBegin(trial=trial, seed=seed)) for seed in seeds]
    part = await cast.gateway.ask(TrialShow(trial=trial, number=1))
    assert isinstance(part, TrialPart)
    expected = [chain(trial, seed, 128, 3) for seed in seeds]
    assert answers == [TrialAnswer(trial=trial, digest=hashlib.sha256(each).digest()) for each in expected]
    assert part.data == expected[1]


async def test_a_host_without_torch_says_that_its_speed_cannot_be_measured(cast: Cast, tmp_path: Path) -> None:
    await cast.enrol()
    config = json.loads(cast.home.config.read_text())
    cast.home.config.write_text(json.dumps({**config, "read_only": [], "site_packages": [str(tmp_path)]}))

    await cast.labapex_worker("run")
    await cast.gateway.until(lambda: cast.gateway.books.ready)
    said = await cast.gateway.ask(TrialPrepare(trial=uuid4(), size=128, rounds=3))
    assert isinstance(said, TrialReady)
    assert said.problem == "the speed of this host could not be measured: ModuleNotFoundError: No module named 'torch'"

    torch, found = wheels.supplied(wheels.a_torch(tmp_path, text="raise ImportError('the platform has sent this one')"))
    packages.store(cast.home, cast.home.load()).make(torch.packages, found)
    cast.home.torch.write_bytes(canonical(torch))  # as a job leaves it
    said = await cast.gateway.ask(TrialPrepare(trial=uuid4(), size=128, rounds=3))
    assert isinstance(said, TrialReady)
    assert said.problem.endswith("ImportError: the platform has sent this one")


async def test_a_host_without_torch_has_the_build_that_its_driver_runs_once_a_job_brought_it(
    cast: Cast, nvml_library: Path, tmp_path: Path
) -> None:
    await cast.enrol()
    with_driver(cast, nvml_library, traces.H200.replace("driver 580.95.05", "driver 550.54.14"))
    config = json.loads(cast.home.config.read_text())
    cast.home.config.write_text(json.dumps({**config, "site_packages": [str(tmp_path / "none")]}))
    (tmp_path / "none").mkdir()
    await cast.labapex_worker("run")
    await cast.gateway.until(lambda: cast.gateway.books.ready)
    assert cast.gateway.lacks_torch
    (gpu,) = cast.gateway.devices
    held = {version: wheels.a_torch(tmp_path, version) for version in ("2.13.0+cpu", "2.13.0+cu126", "2.13.0+cu130")}
    chosen = drivers.choose(list(held), gpu, own="2.13.0+cpu")  # as the platform does
    torch, found = wheels.supplied(held[chosen])
    cast.gateway.wheels = {wheel.sha256: path.read_bytes() for wheel, path in found.items()}
    job = cast.a_job(frames=3, torch=torch)
    await cast.gateway.offer(job)
    await cast.gateway.until(lambda: job.fin)
    there = packages.torch(cast.home, cast.home.load())
    assert there is not None
    assert drivers.installed([there]) == drivers.Build("2.13.0+cu126", "12.6")
    _, out, _ = await cast.said("check", "--json")
    (build,) = [each for each in json.loads(out) if each["what"] == "torch build"]
    assert build["good"]
    assert build["detail"].endswith("2.13.0+cu126 is built for CUDA 12.6")
