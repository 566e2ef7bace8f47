"""Foreign code on the platform: the frozen runner as a confined child with a folder, a time limit and a report.

The child runs a client's script, so everything it leaves behind is hostile: links, huge files, reports that lie.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import stat
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Literal, TypeVar

from django.conf import settings

from labapex import environments, sandbox, watch
from labapex.errors import LabApexError, MalformedInput
from labapex.proof.determinism import pin
from labapex.protocol.canonical import Message, canonical, parse
from labapex.protocol.limits import Limits
from labapex.protocol.replay import MAX_REPORT

M = TypeVar("M", bound=Message)
_SAID = 4000
_LIMIT = re.compile(r"^limit: (the job .*) \((memory|processes)\)$", re.MULTILINE)  # as `labapex.watch` says it
_TICK = 0.1
_BEAT = 2.0


class ChildFailed(LabApexError):
    """The child ended without a report. `said` is the end of its standard error: foreign text."""

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


class ChildExceeded(ChildFailed):
    """The child was ended because it took more than it may, which the message names."""


class ChildTimedOut(ChildFailed):
    """The child was killed at its time limit."""


@contextmanager
def private_folder(prefix: str) -> Iterator[Path]:
    """A folder of mode 0700 below `home/work` that is gone afterwards, whatever was left in it."""
    parent = settings.LABAPEX.private_folder("work")
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=parent)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run(
    mode: Literal["preflight", "replay"],
    folder: Path,
    *,
    request: Message,
    report: type[M],
    threads: int,
    seconds: float,
    beat: Callable[[], None],
    runner: Path | None = None,
    packages: Path | None = None,
    limits: Limits | None = None,
) -> M:
    """Hand `request` to the runner in `folder` and read its report. `runner`: another one than the current; `packages`: the
    script's own; `limits`: memory and processes that are less than a child's usual.

    `beat` is called every two seconds; when it raises, the child is killed.
    Raises `ChildFailed`, `ChildExceeded`, `ChildTimedOut`, `SandboxUnavailable`, and `MalformedInput` for a report that is none.
    """
    (folder / "request.json").write_bytes(canonical(request))
    box = _confinement(folder, threads, _command(runner))
    if limits is not None:
        box = replace(box, total_memory_bytes=limits.memory, processes=limits.processes)
    process = sandbox.popen(
        [*_command(runner), mode, str(folder)],
        environments.mounted(box, packages),
        wrapper=_dies_with_us(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    said = _Tail(process.stderr)
    try:
        _wait(process, seconds, beat)
    finally:
        sandbox.kill_tree(process)
        text = said.text()
    if process.returncode == watch.EXCEEDED and (named := _LIMIT.search(text)) is not None:
        raise ChildExceeded(f"{named[1]}: ask for more in labapex.yaml (limits.{named[2]})")
    if process.returncode:
        raise ChildFailed(f"the {mode} ended with {_ending(process.returncode)} and left no report", text)
    return parse(report, read_hostile(folder / "report.json", limit=MAX_REPORT), limit=MAX_REPORT)


def tool(
    line: list[str],
    folder: Path,
    *,
    environment: dict[str, str],
    seconds: float,
    beat: Callable[[], None],
    file_bytes: int,
    memory_bytes: int,
) -> tuple[int, str]:
    """Run a program that is ours, and reads what strangers wrote, in `folder`; its exit code and the end of what it said.

    It is not confined, but has nothing of our environment, and limits. Raises `ChildTimedOut`, and whatever `beat` does."""
    process = subprocess.Popen(
        [*_dies_with_us(), *line],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    for kind, most in (
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ProcessLookupError):  # it has ended already
            resource.prlimit(process.pid, kind, (most, most))
    said = _Tail(process.stdout)
    try:
        _wait(process, seconds, beat)
    finally:
        sandbox.kill_tree(process)
    return process.returncode, said.text()


def site_packages() -> tuple[Path, ...]:
    """Where the runner finds torch, and what it runs with."""
    return tuple(map(Path, _site_packages().split(os.pathsep)))


def read_hostile(path: Path, *, limit: int) -> bytes:
    """A file that foreign code wrote: an ordinary file of bounded size, no link. Raises `MalformedInput`."""
    with open_hostile(path, limit=limit) as file:
        return file.read(limit)


def open_hostile(path: Path, *, limit: int) -> IO[bytes]:
    """`read_hostile`, to be read as a stream."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise MalformedInput(f"{path.name} cannot be read: {error.strerror}") from None
    file = os.fdopen(descriptor, "rb")
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size > limit:
        file.close()
        raise MalformedInput(f"{path.name} is not an ordinary file of at most {limit} bytes")
    return file


def _command(runner: Path | None) -> list[str]:
    config = settings.LABAPEX
    return list(config.runner_command) or [str(runner or config.runner_dir / "runner")]


def _site_packages() -> str:
    named: str = settings.LABAPEX.site_packages
    return named or os.pathsep.join(dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))))


def _confinement(folder: Path, threads: int, command: list[str]) -> sandbox.Confinement:
    config = settings.LABAPEX
    packages = _site_packages()
    visible = [Path(path) for path in packages.split(os.pathsep)]
    visible += [Path(word) for word in command if Path(word).is_absolute() and Path(word).exists()]
    if config.runner_command:  # the runner's place is taken by a program of this interpreter
        visible += sandbox.python_paths()
    return sandbox.Confinement(
        folder=folder,
        read_only=_topmost(visible),
        devices=tuple(sorted(Path("/dev").glob("nvidia*"))),
        environment={
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TMPDIR": str(folder),  # where the runner unpacks itself; scripts get another
            "LABAPEX_SITE_PACKAGES": packages,
            **pin(threads),
        },
        memory_bytes=config.child_memory_bytes,
        total_memory_bytes=config.child_memory_bytes,
        processes=config.child_processes,
        file_bytes=config.child_file_bytes,
        disk_bytes=config.child_disk_bytes,
    )


def _topmost(paths: list[Path]) -> tuple[Path, ...]:
    """Without those that lie below another: one mount shows them all."""
    kept: list[Path] = []
    for path in sorted(set(paths), key=lambda each: len(each.parts)):
        if not any(path.is_relative_to(folder) for folder in kept):
            kept.append(path)
    return tuple(kept)


def _dies_with_us() -> list[str]:
    """A killed platform leaves no child behind."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _wait(process: subprocess.Popen[bytes], seconds: float, beat: Callable[[], None]) -> None:
    began = last = time.monotonic()
    while True:
        try:
            process.wait(timeout=_TICK)
            return
        except subprocess.TimeoutExpired:
            now = time.monotonic()
        if now - began > seconds:
            raise ChildTimedOut(f"it did not end within {seconds:g} seconds")
        if now - last > _BEAT:
            last = now
            beat()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


class _Tail:
    """The last characters of a pipe, however much comes out of it."""

    def __init__(self, pipe: IO[bytes] | None) -> None:
        self._pipe = pipe
        self._kept = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        if self._pipe is not None:
            with self._pipe:
                while data := os.read(self._pipe.fileno(), 65536):
                    self._kept = (self._kept + data)[-_SAID:]

    def text(self) -> str:
        """What was kept, once the writers are gone."""
        self._thread.join(timeout=5)
        return self._kept.decode(errors="replace")
