"""The door to recording and replay, for a process that was started for one of them. Import it only there: it needs torch.

`determinism.pin(threads)` must be in the process's environment before this module is imported.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch
import torch._dynamo  # each optimizer asks for it: a second of imports, once here rather than in every forked run

from labapex.errors import TrainingFailed
from labapex.proof import preflight as _preflight
from labapex.proof.isolate import isolated
from labapex.proof.record import Recorder
from labapex.proof.regenerate import regenerate as _regenerate
from labapex.proof.replay import replay as _replay
from labapex.proof.runtime import Engine
from labapex.proof.sink import Sink
from labapex.protocol.contract import Contract, Environment
from labapex.protocol.records import Leaf
from labapex.protocol.replay import (
    PreflightReport,
    PreflightRequest,
    RegenerateReport,
    RegenerateRequest,
    ReplayReport,
    ReplayRequest,
)


def train(*, contract: Contract, folder: Path, sink: Sink, after: Leaf | None = None) -> None:
    """Run the contract's script in `folder`/work, recorded: states go to `folder`/states, all else to the sink.

    `after`: a leaf whose state is kept there; by itself the contract's own, where the run comes from another host. It goes on
    from there as if it had never been interrupted, and the sink hears what comes behind it. Runs the script in this very
    process, which is patched for it: call it once.

    Raises `TrainingFailed` with the script's traceback, or where the script did not make the contract's number of
    iterations; `MalformedInput` where the kept state is none of this script's.
    """
    (folder / "states").mkdir(mode=0o700, exist_ok=True)
    recorder = Recorder(contract, folder / "states", sink, after or contract.after)
    engine = Engine.under(contract, folder / "work", recorder)
    engine.told = recorder.told
    try:
        engine.run(contract.threads)
    except TrainingFailed:
        recorder.drain()
        raise
    recorder.close(engine)


def preflight(*, request: PreflightRequest, folder: Path) -> PreflightReport:
    """Try the script in `folder`/work; each run in a forked child. The report says what to mend, or the facts."""
    found = environment_elsewhere(request.threads, folder)
    return _preflight.preflight(request=request, folder=folder, environment=found)


def replay(*, request: ReplayRequest, folder: Path) -> ReplayReport:
    """Replay segments of a run from the states in `folder`/states; each round in a forked child."""
    report = _replay(request=request, folder=folder)
    return report.model_copy(update={"environment": environment_elsewhere(request.contract.threads, folder)})


def regenerate(*, request: RegenerateRequest, job: Path, folder: Path) -> RegenerateReport:
    """Make states anew that the run in the folder `job` did not keep; each round in a forked child."""
    return _regenerate(request=request, job=job, folder=folder)


def environment(threads: int) -> Environment:
    """This host's class: two hosts with equal environments reproduce each other bit for bit."""
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        device, capability = f"cuda: {torch.cuda.get_device_name()}", f"{major}.{minor}"
    else:
        device, capability = f"cpu: {_cpu_model()}", torch.backends.cpu.get_cpu_capability()
    return Environment(
        python=".".join(platform.python_version_tuple()[:2]),
        torch=torch.__version__,
        device=device,
        capability=capability,
        threads=threads,
    )


def environment_elsewhere(threads: int, folder: Path) -> Environment:
    """Asked in a child: a process that has spoken to CUDA once cannot fork children that do."""
    console = folder / "console.log"
    found = isolated(lambda: environment(threads).model_dump(mode="json"), console, writes=())
    return Environment.model_validate(found)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
