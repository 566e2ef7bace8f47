"""States that a run did not keep, made anew by its executable from those that it did: a second confined run beside it.

It writes into a folder of its own, `again/` (config.py), and reads what the job left behind. Like the job it lives on when the
daemon ends; the next one finds it by its journal. What it leaves is as hostile as the job's.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from labapex import environments, executable
from labapex.errors import LabApexError
from labapex.proof.folder import opened
from labapex.protocol.canonical import canonical, parse
from labapex.protocol.contract import Contract
from labapex.protocol.replay import RegenerateReport, RegenerateRequest
from labapex_worker import journal, supervisor
from labapex_worker.config import Config
from labapex_worker.supervisor import Folder

TRIES = 3  # of a run that is killed; what it had made is not made again
MAX_REPORT = 1 << 20


class CannotRegenerate(LabApexError):
    """A state that was not kept cannot be made anew."""


def contract(folder: Folder) -> Contract:
    """The terms of a lease, from its executable, which was verified when it was fetched."""
    return executable.inspect(folder.executable).manifest.contract


def start(
    folder: Folder,
    config: Config,
    states: tuple[int, ...],
    packages: Path | None = None,
    torch: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Begin to make states of a lease's run anew. `packages` and `torch`: those with which it was started."""
    again, terms = folder.again, contract(folder)
    again.create()
    for stale in (again.path / "pid", again.path / "exit", again.job / "report.json", again.job / "request.json"):
        stale.unlink(missing_ok=True)  # a link goes, and not what it leads to
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(again.job / "request.json", flags, 0o600), "wb") as file:
        file.write(canonical(RegenerateRequest(contract=terms, states=states)))
    see = (folder.executable, folder.job)
    confinement = supervisor.confinement(config, again.job, see=see, threads=terms.threads, torch=torch)
    line = [str(folder.executable), "regenerate", str(again.job), str(folder.job)]
    return journal.start(again.path, line, environments.mounted(confinement, packages))


def made(folder: Folder) -> frozenset[int]:
    """The states that were made anew; none while a run goes on, or where it was killed.

    Raises `CannotRegenerate` with what the run says, `MalformedInput` where it says nothing that can be read."""
    match journal.look(folder.again.path):
        case journal.Ended(0):
            with opened(folder.again.job, "report.json") as file:
                report = parse(RegenerateReport, file.read(MAX_REPORT + 1), limit=MAX_REPORT)
            if report.problem is not None:
                raise CannotRegenerate(report.problem)
            return frozenset(report.made)
    return frozenset()
