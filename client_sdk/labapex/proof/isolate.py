"""Runs a function that executes a client's script in a forked child, and brings back the JSON that it returns.

The engine patches its whole process and a script may do anything to it, so each run gets a process of its own. The parent has
imported torch once but never computed with it: forking is safe only before torch's thread pools exist.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labapex.errors import LabApexError, TrainingFailed

MAX_RESULT = 64 << 20


def isolated(function: Callable[[], dict[str, Any]], console: Path) -> dict[str, Any]:
    """Call `function` in a child whose output is appended to the file `console`. Returns what it returned.

    Raises `TrainingFailed` with the message of any error, or with the cause of the child's death.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(function, console, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read(MAX_RESULT + 1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise TrainingFailed(f"the script's process was ended by {name}; SIGKILL usually means that memory ran out")
    if len(data) > MAX_RESULT or not data:
        raise TrainingFailed(f"the script's process ended with code {os.waitstatus_to_exitcode(status)} and no result")
    result: dict[str, Any] = json.loads(data)
    if "problem" in result:
        raise TrainingFailed(str(result["problem"]))
    return result


def _work(function: Callable[[], dict[str, Any]], console: Path, writer: int) -> None:
    """In the child: never returns."""
    code = 1
    try:
        log = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            result = function()
        except LabApexError as error:
            result = {"problem": str(error)[-20_000:]}
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(result).encode())
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
