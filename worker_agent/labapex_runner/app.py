"""What the runner does with its command line: train without arguments, or preflight, replay and regenerate in a folder."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

from labapex import durable
from labapex.errors import LabApexError, UsageError
from labapex.protocol.canonical import M, Message, parse
from labapex.protocol.replay import PreflightRequest, RegenerateRequest, ReplayRequest
from labapex_runner import host, supervisor

AGENT_SOCKET, JOB_FOLDER = "LABAPEX_AGENT_SOCKET", "LABAPEX_JOB_FOLDER"
MEMORY_EVENTS = "LABAPEX_MEMORY_EVENTS"  # set where the host keeps the job in a control group
MAX_REQUEST = 64 << 20
USAGE = """usage: a job's executable, without arguments   trains; needs LABAPEX_AGENT_SOCKET and LABAPEX_JOB_FOLDER
       runner preflight FOLDER                 reads FOLDER/request.json, writes FOLDER/report.json
       runner replay FOLDER                    likewise
       a job's executable, regenerate FOLDER JOB   likewise, with what training left in the folder JOB"""


def main(arguments: list[str]) -> int:
    """The exit status. Multiprocessing's children of a frozen program are started with this program, and end here."""
    multiprocessing.freeze_support()
    try:
        match arguments:
            case []:
                return _train()
            case ["preflight", folder]:
                return _preflight(Path(folder))
            case ["replay", folder]:
                return _replay(Path(folder))
            case ["regenerate", folder, job]:
                return _regenerate(Path(folder), Path(job).absolute())
            case _:
                raise UsageError(USAGE)
    except LabApexError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _train() -> int:
    for name in (AGENT_SOCKET, JOB_FOLDER):
        if name not in os.environ:
            raise UsageError(f"{name} is not set\n{USAGE}")
    # Taken out: a script must find the same environment here as in a replay, and the agent is not its business.
    agent, folder = (Path(os.environ.pop(name)).absolute() for name in (AGENT_SOCKET, JOB_FOLDER))
    events = os.environ.pop(MEMORY_EVENTS, None)
    if getattr(sys, "frozen", False):
        host.die_with_parent(os.getppid())  # the bootloader, which is what the agent knows and kills
    return supervisor.supervise(Path(sys.executable), folder, agent, memory_events=Path(events) if events else None)


def _preflight(folder: Path) -> int:
    def work(request: PreflightRequest) -> Message:
        host.prepare(request.threads, folder)
        from labapex.proof import engine  # brings torch along, from the host

        return engine.preflight(request=request, folder=folder)

    return _answer(folder, PreflightRequest, work)


def _replay(folder: Path) -> int:
    def work(request: ReplayRequest) -> Message:
        host.prepare(request.contract.threads, folder)
        from labapex.proof import engine

        return engine.replay(request=request, folder=folder)

    return _answer(folder, ReplayRequest, work)


def _regenerate(folder: Path, job: Path) -> int:
    def work(request: RegenerateRequest) -> Message:
        host.prepare(request.contract.threads, folder)
        from labapex.proof import engine

        return engine.regenerate(request=request, job=job, folder=folder.absolute())

    return _answer(folder, RegenerateRequest, work)


def _answer(folder: Path, model: type[M], work: Callable[[M], Message]) -> int:
    folder = folder.absolute()
    host.harden()
    report = work(parse(model, _read(folder / "request.json"), limit=MAX_REQUEST))
    durable.write(folder / "report.json", report.model_dump_json().encode())
    return 0


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_REQUEST + 1)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
