"""The trainer as its supervisor sees it: a process that was forked before any key existed, and what leads to it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labapex import sandbox
from labapex.errors import SandboxUnavailable
from labapex_runner import host, trainer


@dataclass(frozen=True)
class Child:
    """Its process, and this side's descriptors of its pipes; what comes through them does not block."""

    pid: int
    events: int
    control: int
    stdout: int
    stderr: int

    def go(self) -> bool:
        """Let it begin. False: it has ended already."""
        try:
            os.write(self.control, trainer.GO)
        except BrokenPipeError:
            return False
        return True

    def ended(self) -> int | None:
        """The status with which it has ended, as `waitpid` tells it, once; None: it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return status if pid else None

    def kill(self) -> None:
        """End it and its process group, without waiting."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def kill_all(self) -> None:
        """End it with all that it started, wherever that went."""
        try:
            sandbox.kill_group(self.pid)
        except SandboxUnavailable as error:
            print(f"error: {error}", file=sys.stderr)  # the sandbox's own end takes them along


def fork(train: Callable[[int, int], int]) -> Child | int:
    """Fork a process that does `train`, which is given the descriptors to write events to and to read the control from.

    In that process returns what `train` did, the exit status."""
    parent = os.getpid()
    pipes = [os.pipe() for _ in range(4)]
    (events, events_in), (control_out, control), (stdout, stdout_in), (stderr, stderr_in) = pipes
    pid = os.fork()
    if pid == 0:
        host.die_with_parent(parent)
        os.setpgid(0, 0)
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(stdout_in, 1)
        os.dup2(stderr_in, 2)
        for descriptor in (events, control, stdout, stderr, stdout_in, stderr_in):
            os.close(descriptor)
        # Made anew: the old objects were set up for another kind of file. A line is sent when it is printed.
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)
        return train(events_in, control_out)
    for descriptor in (events_in, control_out, stdout_in, stderr_in):
        os.close(descriptor)
    for descriptor in (events, stdout, stderr):
        os.set_blocking(descriptor, False)
    return Child(pid, events, control, stdout, stderr)


def ending(status: int) -> str:
    """How it ended, in words. A signal may be anybody's."""
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with status {os.waitstatus_to_exitcode(status)}"
