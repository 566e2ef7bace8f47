"""How the owner's commands reach the running daemon: a unix socket in the worker's folder.

The folder is closed to others (0700), the socket as well (0600), and the kernel tells who is at the other end: the worker's
own user, or root. One line of JSON asks, one line of JSON answers, and the connection is closed. What the owner wants
lies in files (`config.json`, `wish`), written by the command before it asks the daemon to read them again: so the same
command works whether a daemon runs or not, and what it did outlives both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from labapex.errors import LabApexError, MalformedInput, UsageError
from labapex.protocol.canonical import Message, explain, parse
from labapex_worker.status import Status

log = logging.getLogger(__name__)

MAX_QUESTION = 4096
MAX_ANSWER = 1 << 20
SECONDS = 10.0
"""Either side waits that long for the other."""

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Question(Message):
    """`status`: how are you. `reload`: read again what the owner wants, then say how you are."""

    what: Literal["status", "reload"]


class Problem(Message):
    """What was asked for could not be done."""

    type: Literal["problem"] = "problem"
    text: str


_ANSWER: TypeAdapter[Status | Problem] = TypeAdapter(Annotated[Status | Problem, Field(discriminator="type")])


class Control:
    """The daemon's end. `answer` may raise `LabApexError`, whose text the owner then sees."""

    def __init__(self, path: Path, answer: Callable[[Question], Awaitable[Status]]) -> None:
        self._path, self._answer = path, answer
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen; a socket that a killed daemon left behind is replaced."""
        self._path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        with _short(self._path) as short:
            listening.bind(short)
        self._path.chmod(0o600)
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=MAX_QUESTION)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            _, user, _ = _PEER.unpack(peer)
            if user not in (0, os.geteuid()):
                log.warning("user %d tried to command this worker", user)
                return
            async with asyncio.timeout(SECONDS):
                said = await self._say(await reader.readline())
                writer.write(said.model_dump_json().encode() + b"\n")
                await writer.drain()
        except (ValueError, ConnectionError, TimeoutError) as error:  # a line that is too long is a ValueError
            log.warning("the control socket: %s", error or type(error).__name__)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _say(self, line: bytes) -> Status | Problem:
        try:
            return await self._answer(parse(Question, line, limit=MAX_QUESTION))
        except LabApexError as error:
            return Problem(text=str(error))


def ask(path: Path, what: Literal["status", "reload"]) -> Status | None:
    """Ask the daemon that listens at `path`. None where none runs.

    Raises `UsageError` with what the daemon complains of, `MalformedInput` where it answers nothing that makes sense."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(SECONDS)
        try:
            with _short(path) as short:
                line.connect(short)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except PermissionError:
            raise UsageError(f"{path} belongs to another user; run this as that user, or as root") from None
        try:
            line.sendall(json.dumps({"what": what}).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n") and len(answer) <= MAX_ANSWER:
                if not (more := line.recv(65536)):
                    break
                answer += more
        except OSError as error:
            raise MalformedInput(f"the daemon does not answer: {error or type(error).__name__}; try again") from None
    if len(answer) > MAX_ANSWER or not answer.endswith(b"\n"):
        raise MalformedInput("the daemon's answer is cut off; try again")
    try:
        said = _ANSWER.validate_json(answer)
    except ValidationError as error:
        raise MalformedInput(f"the daemon is of another version ({explain(error)}); restart it") from None
    if isinstance(said, Problem):
        raise UsageError(said.text)
    return said


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of the socket that fits into 107 bytes, however long its path is."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
