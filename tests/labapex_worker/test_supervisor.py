from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from labapex.errors import MalformedInput
from labapex.protocol.frames import MAX_MESSAGE, FinAck, Open, to_executable
from labapex.protocol.packing import pack
from labapex_worker.supervisor import BROKEN_LIMIT, Door, Folder


@pytest.fixture
def folder() -> Iterator[Folder]:
    made = Folder(Path(tempfile.mkdtemp(prefix="lw-")) / "lease")
    made.create()
    yield made
    made.remove()
    made.path.parent.rmdir()


# -- the folder --------------------------------------------------------------------------------------------------------


def test_a_state_is_read(folder: Folder) -> None:
    (folder.job / "states").mkdir()
    (folder.job / "states" / "7.safetensors").write_bytes(b"state")
    with folder.open_state(7) as file:
        assert file.read() == b"state"


def test_no_link_on_the_way_to_a_state_is_followed(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "0.safetensors").write_bytes(b"the host's")
    (folder.job / "states").symlink_to(tmp_path)
    with pytest.raises(OSError):
        folder.open_state(0)
    (folder.job / "states").unlink()
    (folder.job / "states").mkdir()
    (folder.job / "states" / "0.safetensors").symlink_to(tmp_path / "0.safetensors")
    with pytest.raises(OSError):
        folder.open_state(0)


def test_a_pipe_or_a_folder_is_no_state_and_stops_nobody(folder: Folder) -> None:
    (folder.job / "states").mkdir()
    os.mkfifo(folder.job / "states" / "0.safetensors")
    (folder.job / "states" / "1.safetensors").mkdir()
    for index in (0, 1):
        with pytest.raises(MalformedInput, match="not a file"):
            folder.open_state(index)


def test_removal_leaves_nothing_and_touches_nothing_outside(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("the host's")
    deep = folder.job / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    (deep / "link").symlink_to(tmp_path)
    deep.chmod(0o000)
    (folder.job / "a").chmod(0o000)
    at = os.open(folder.job, os.O_RDONLY)
    for _ in range(2500):  # deeper than a path or a recursion can go
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    folder.remove()
    assert not folder.path.exists()
    assert (tmp_path / "kept").exists()
    folder.remove()


# -- the door ----------------------------------------------------------------------------------------------------------


class Heard:
    """A door with somebody behind it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: asyncio.Queue[bytes] = asyncio.Queue()
        self.broken: list[str] = []
        self.allowed = True
        self.door = Door(path, may_speak=lambda pid: self.allowed, hear=self.hear, broken=self.broken.append)

    def hear(self, data: bytes, pid: int) -> None:
        assert pid == os.getpid()
        if data == b"bad":
            raise MalformedInput("bad")
        self.said.put_nowait(data)

    async def knock(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path)


@pytest.fixture
async def heard(folder: Folder) -> AsyncIterator[Heard]:
    made = Heard(folder.socket)
    await made.door.open()
    yield made
    await made.door.close()


def framed(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


async def closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()


async def test_messages_pass_both_ways_however_they_are_cut(heard: Heard) -> None:
    reader, writer = await heard.knock()
    data = framed(pack(Open(lease=uuid4()))) * 2
    for start in range(0, len(data), 7):
        writer.write(data[start : start + 7])
        await writer.drain()
    assert framed(await heard.said.get()) + framed(await heard.said.get()) == data
    told = FinAck(lease=uuid4())
    heard.door.send(told)
    (size,) = struct.unpack(">I", await reader.readexactly(4))
    assert to_executable(await reader.readexactly(size)) == told
    writer.close()


async def test_a_message_that_is_too_long_is_refused_before_it_is_read(heard: Heard) -> None:
    reader, writer = await heard.knock()
    writer.write(struct.pack(">I", MAX_MESSAGE + 1))
    await closed(reader, writer)


async def test_an_executable_that_keeps_breaking_the_protocol_is_given_up_once(heard: Heard) -> None:
    for _ in range(BROKEN_LIMIT + 1):
        reader, writer = await heard.knock()
        writer.write(framed(b"bad"))
        await closed(reader, writer)
    assert len(heard.broken) == 1


async def test_a_process_that_may_not_speak_is_not_heard(heard: Heard) -> None:
    heard.allowed = False
    reader, writer = await heard.knock()
    await closed(reader, writer)
    assert heard.said.empty()


async def test_a_process_that_may_no_longer_speak_is_cut_off(heard: Heard) -> None:
    reader, writer = await heard.knock()
    writer.write(framed(b"first"))
    assert await heard.said.get() == b"first"
    heard.allowed = False
    writer.write(framed(b"second"))
    await closed(reader, writer)
    assert heard.said.empty()


async def test_a_new_connection_takes_the_place_of_the_old_one(heard: Heard) -> None:
    old = await heard.knock()
    old[1].write(framed(b"1"))
    await heard.said.get()
    new_reader, new_writer = await heard.knock()
    new_writer.write(framed(b"2"))
    await heard.said.get()
    await closed(*old)
    heard.door.send(FinAck(lease=uuid4()))
    assert await new_reader.readexactly(4)
    new_writer.close()


async def test_what_is_told_to_nobody_is_dropped(heard: Heard) -> None:
    heard.door.send(FinAck(lease=uuid4()))


async def test_a_socket_that_a_killed_daemon_left_behind_is_replaced(heard: Heard) -> None:
    second = Heard(heard.path)
    await second.door.open()
    _, writer = await second.knock()
    writer.write(framed(b"hello"))
    assert await second.said.get() == b"hello"
    writer.close()
    await second.door.close()
