"""Starts the process in which a script runs, for a command that must not run it itself: confined, and with its bits pinned.

The child is `python -m labapex.proof.command`, the only place of these commands where torch is imported. It gets a scratch
folder with `request.json`, `work/` and `states/`, and leaves `report.json` there. The script ran in it: whatever lies in the
folder afterwards is hostile.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

import labapex.errors
from labapex import sandbox
from labapex.errors import LabApexError, SandboxUnavailable
from labapex.proof.determinism import pin
from labapex.proof.folder import opened
from labapex.protocol.canonical import Digest, M, Message, canonical, parse
from labapex.protocol.contract import Contract, Environment, Seed
from labapex.protocol.replay import MAX_REPORT
from labapex.protocol.spec import BundlePath

PROCESSES = 4096
FILE_BYTES = 64 << 30
DISK_BYTES = 256 << 30
TERMS = "terms.json"  # in the folder of a recording that has begun: a `RecordReport`
_SAID = 4000


class RecordRequest(Message):
    """Preflight and record the script in `work/`, or go on with a recording whose terms lie in the folder already.

    `epochs` None: count them by a run of their own."""

    script: BundlePath
    args: tuple[str, ...]
    epochs: int | None = Field(ge=1)
    iterations_per_epoch: int | None = Field(ge=1)
    checkpoint_every: int = Field(ge=1)
    keep_every: int = Field(ge=1)
    threads: int = Field(ge=1)
    seed: Seed
    code: Digest
    data: Digest


class RecordReport(Message):
    """What came of it. The log lies beside it: `leaves.jsonl`, `losses.f64`, `times.f64`, `states/`."""

    problem: str | None = Field(default=None, max_length=20_000)
    contract: Contract | None = None
    environment: Environment | None = None


@contextmanager
def draft(folder: Path) -> Iterator[Path]:
    """`folder` as a scratch folder that an interruption leaves behind, with `states/` and the log in it.

    It may be there from an interrupted recording, or not at all; `work/` and `tmp/` are empty in any case. It is gone once
    the recording is complete, or where it failed before there was anything to go on from."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in ("work", "tmp"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(mode=0o700)
    (folder / "states").mkdir(mode=0o700, exist_ok=True)
    try:
        yield folder
    finally:
        whole = sys.exc_info()[0] is None
        if whole or not (folder / TERMS).exists():
            shutil.rmtree(folder)


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """A private folder with `work/`, `states/` and `tmp/` that is gone afterwards, in `parent`.

    By default not below `/tmp`: a script could not write there then (`labapex.landlock`)."""
    folder = Path(tempfile.mkdtemp(prefix=".labapex-", dir=parent or "/var/tmp")).resolve()  # noqa: S108 - made with 0700
    try:
        for name in ("work", "states", "tmp"):
            (folder / name).mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder)


def run(
    mode: Literal["record", "replay", "preflight"],
    folder: Path,
    *,
    request: Message,
    report: type[M],
    threads: int,
    own: bool = False,
) -> M:
    """Let the child work in a scratch folder and read its report.

    `own`: the script is the user's; then it runs unconfined where no sandbox can be had, and its output goes to our stderr.
    Raises `SandboxUnavailable`, `LabApexError` where the child died, `MalformedInput` for a report that is none.
    """
    (folder / "request.json").write_bytes(canonical(request))
    line = [sys.executable, "-P", "-m", "labapex.proof.command", mode, str(folder)]
    with tempfile.TemporaryFile() as said:
        pipes: dict[str, Any] = {"stdout": 2, "stderr": 2} if own else {"stdout": subprocess.DEVNULL, "stderr": said}
        process = _start(line, _confinement(folder, threads), own, pipes)
        try:
            code = process.wait()
        finally:
            sandbox.kill_tree(process)
        said.seek(max(0, said.seek(0, os.SEEK_END) - _SAID))
        words = said.read().decode(errors="replace").strip().splitlines()
    if code:
        raise LabApexError(f"the process that ran the script ended with {_ending(code)}: {words[-1] if words else ''}")
    with opened(folder, "report.json") as file:
        return parse(report, file.read(MAX_REPORT + 1), limit=MAX_REPORT)


def _start(line: list[str], box: sandbox.Confinement, own: bool, pipes: dict[str, Any]) -> subprocess.Popen[bytes]:
    try:
        return sandbox.popen(line, box, **pipes)
    except SandboxUnavailable:
        if not own:
            raise
    environment = dict(box.environment)
    return subprocess.Popen(
        line, env=environment, cwd=box.folder, stdin=subprocess.DEVNULL, start_new_session=True, umask=0o077, **pipes
    )


def _confinement(folder: Path, threads: int) -> sandbox.Confinement:
    source = Path(labapex.errors.__file__).parents[1]
    visible = {*sandbox.python_paths(), source}
    outermost = [p for p in visible if not any(p != other and p.is_relative_to(other) for other in visible)]
    devices = tuple(sorted(Path("/dev").glob("nvidia*")))
    return sandbox.Confinement(
        folder=folder,
        read_only=tuple(sorted(p for p in outermost if not p.is_relative_to("/usr"))),
        devices=devices,
        environment={
            **pin(threads),
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(folder / "tmp"),
            "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": str(source),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        memory_bytes=None if devices else _memory(),  # CUDA reserves far more than it uses
        total_memory_bytes=sandbox.most_memory(),
        processes=PROCESSES,
        file_bytes=FILE_BYTES,
        disk_bytes=DISK_BYTES,
    )


def _memory() -> int:
    """All that this machine has: a process that wants more is not to take the others down with it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _ending(code: int) -> str:
    """The sandbox passes a signal on as a shell does: 128 and its number."""
    signal = -code if code < 0 else code - 128
    return f"signal {signal}" if signal > 0 else f"exit code {code}"
