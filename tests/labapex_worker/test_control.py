"""The owner's commands reach the running daemon, and nobody else's do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from labapex.errors import MalformedInput, UsageError
from labapex_worker import control
from labapex_worker.control import MAX_QUESTION, Control, Question
from labapex_worker.limits import Limits
from labapex_worker.status import Status
from labapex_worker.wishes import Wish, read, write

STATUS = Status(
    worker=uuid4(), name="box", platform="https://x", pid=1, wish=Wish.WORK, limits=Limits(),
    spool_bytes=0, spool_limit=1, disk_free=2, disk_limit=3,
)  # fmt: skip


class Daemon:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: str | None = None

    async def answer(self, question: Question) -> Status:
        self.asked.append(question.what)
        if self.error is not None:
            raise UsageError(self.error)
        return STATUS


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
async def path(daemon: Daemon, tmp_path: Path) -> AsyncIterator[Path]:
    folder = tmp_path / ("a path that is too long for a socket " * 3)
    folder.mkdir()
    served = Control(folder / "control.sock", daemon.answer)
    await served.open()
    yield folder / "control.sock"
    await served.close()


async def said(path: Path, line: bytes) -> bytes:
    """What comes back for a line that no command of ours would send."""
    with control._short(path) as short:
        reader, writer = await asyncio.open_unix_connection(short)
    writer.write(line)
    try:
        return await reader.read()
    except ConnectionResetError:  # it was closed with something unread
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_question_is_answered(path: Path, daemon: Daemon) -> None:
    assert await asyncio.to_thread(control.ask, path, "reload") == STATUS
    assert daemon.asked == ["reload"]


async def test_the_socket_is_closed_to_others(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_the_daemon_complains_of_is_the_commands_error(path: Path, daemon: Daemon) -> None:
    daemon.error = "config.json cannot be used"
    with pytest.raises(UsageError, match=r"config\.json cannot be used"):
        await asyncio.to_thread(control.ask, path, "reload")


@pytest.mark.parametrize(
    "line",
    [b"\n", b"{}\n", b'{"what": "stop"}\n', b'{"what": "status", "root": true}\n', b"\xff\n", b"[" * 1000 + b"\n"],
)
async def test_what_is_no_question_is_told_so_and_changes_nothing(path: Path, daemon: Daemon, line: bytes) -> None:
    assert json.loads(await said(path, line))["type"] == "problem"
    assert daemon.asked == []


async def test_a_question_that_is_too_long_is_not_read_to_its_end(path: Path, daemon: Daemon) -> None:
    assert await said(path, b" " * (2 * MAX_QUESTION)) == b""
    assert daemon.asked == []


async def test_another_user_is_not_listened_to(path: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_PEER", _Nobody())
    assert await said(path, b'{"what": "status"}\n') == b""
    assert daemon.asked == []


class _Nobody:
    """What the kernel says of a process of user 65534."""

    size = control._PEER.size

    @staticmethod
    def unpack(_: bytes) -> tuple[int, int, int]:
        return 1, 65534, 65534


def test_where_no_daemon_runs_nobody_answers(tmp_path: Path) -> None:
    assert control.ask(tmp_path / "control.sock", "status") is None
    with socket.socket(socket.AF_UNIX) as left:  # by a daemon that was killed
        left.bind(str(tmp_path / "control.sock"))
    assert control.ask(tmp_path / "control.sock", "status") is None


@pytest.mark.parametrize("answer", [b"", b"{}", b"{}\n", b"x" * 100 + b"\n"])
async def test_an_answer_that_makes_no_sense_is_an_error_of_one_line(tmp_path: Path, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        with pytest.raises(MalformedInput):
            await asyncio.to_thread(control.ask, tmp_path / "s", "status")


def test_a_wish_outlives_the_daemon_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wish"
    assert read(path) is Wish.WORK
    for wish in Wish:
        write(path, wish)
        assert read(path) is wish
    write(path, Wish.WORK)
    assert list(tmp_path.iterdir()) == []
    path.write_text("dance\n")
    with pytest.raises(UsageError, match="resume"):
        read(path)
