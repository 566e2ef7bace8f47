"""Executables and an agent for tests: the other side of the runner, played in memory."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from tests.labapex.authority import Authority

from labapex import executable, sealing
from labapex.protocol import frames
from labapex.protocol.canonical import Message
from labapex.protocol.contract import Contract, ScriptFacts
from labapex.protocol.manifest import Index, IndexEntry, Manifest, ReleasedKeys
from labapex.protocol.packing import pack
from labapex.protocol.records import FrameBody, uncolumn
from labapex.trust import Trust

COOKIE = struct.Struct("!8sIIII64s")


def fake_runner(
    folder: Path, bootloader: bytes = b"\x7fELF" + bytes(300), code: bytes = b"archive" * 50
) -> executable.Runner:
    """Two files with the outer form of a frozen runner, small enough to flip each bit of."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bootloader").write_bytes(bootloader)
    cookie = COOKIE.pack(b"MEI\014\013\012\013\016", len(code) + COOKIE.size, len(code), 0, 311, b"libpython3.11.so")
    (folder / "runner.pkg").write_bytes(code + cookie)
    return executable.load_runner(folder)


@dataclass
class Made:
    """An executable on disk, and everything that its platform knows."""

    path: Path
    layout: executable.Layout
    manifest: Manifest
    worker: UUID
    trust: Trust
    keys: ReleasedKeys
    files: dict[str, bytes]


def contract(*, script: str = "train.py", threads: int = 1, epochs: int = 1, iterations: int = 4) -> Contract:
    facts = ScriptFacts(
        loop=f"{script}:1",
        iterations_per_epoch=iterations,
        has_loader=False,
        gradients_are_state=False,
        parameters=1,
        state_bytes=8,
    )
    return Contract(
        job=uuid4(), lease=uuid4(), seed="5e" * 32, code="c0" * 32, data="da" * 32, script=script, args=(),
        epochs=epochs, checkpoint_every=2, threads=threads, facts=facts,
    )  # fmt: skip


def new_keys() -> ReleasedKeys:
    return ReleasedKeys(content_key=sealing.new_key(), run_key=sealing.new_key())


def make(
    folder: Path,
    files: dict[str, bytes],
    *,
    runner: executable.Runner | None = None,
    keys: ReleasedKeys | None = None,
    terms: Contract | None = None,
) -> Made:
    """Seal, sign and write `folder/executable`, as the platform does."""
    runner, keys = runner or fake_runner(folder / "runner"), keys or new_keys()
    worker, authority = uuid4(), Authority()
    entries, sealed = [], []
    for path, data in files.items():
        key = sealing.new_key()
        sealed.append(sealing.seal_bytes(data, key))
        entries.append(IndexEntry(path=path, digest=hashlib.sha256(data).hexdigest(), size=len(data), key=key.hex()))
    sections = [executable.seal_index(Index(entries=tuple(entries)), keys.content_key), *sealed]
    manifest = Manifest(
        key=authority.manifest_key,
        release=authority.release(runner),
        bootloader_size=runner.bootloader_size,
        archive_size=runner.archive_size,
        sections=tuple(executable.describe(section) for section in sections),
        worker=worker,
        contract=terms or contract(),
        expires_at=2_000_000_000,
    )
    layout = executable.layout(runner, sections, manifest, authority.sign(manifest))
    path = folder / "executable"
    executable.write(path, layout)
    return Made(path, layout, manifest, worker, authority.trust, keys, files)


@dataclass
class Received:
    """A lease's log as its receiver holds it."""

    frames: list[frames.Data] = field(default_factory=list)
    bodies: list[FrameBody] = field(default_factory=list)
    fin: frames.Fin | None = None
    request: frames.KeyRequest | None = None

    @property
    def losses(self) -> list[float]:
        return [loss for body in self.bodies for loss in uncolumn(body.losses)]

    @property
    def failure(self) -> str | None:
        return next((body.failure for body in self.bodies if body.failure is not None), None)

    @property
    def series(self) -> dict[str, dict[int, float]]:
        found: dict[str, dict[int, float]] = {}
        for each in (series for body in self.bodies for series in body.series):
            found.setdefault(each.name, {}).update(zip(each.iterations, uncolumn(each.values), strict=True))
        return found

    def console(self, stream: str) -> str:
        return "".join(c.text for body in self.bodies for c in body.console if c.stream == stream)


class Agent(threading.Thread):
    """Agent and platform in one: a listening socket that releases keys and acknowledges what it stored.

    `drop_after` cuts each connection after that many messages, as an agent that is killed again and again."""

    def __init__(self, path: Path, made: Made, *, drop_after: int | None = None) -> None:
        super().__init__(daemon=True)
        self.made, self.received, self.drop_after = made, Received(), drop_after
        self.lease = made.manifest.contract.lease
        self.connections = 0
        self._closed = False
        self.error: Exception | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()

    def run(self) -> None:
        try:
            while self.received.fin is None:
                connection, _ = self._listener.accept()
                self.connections += 1
                with connection:
                    self._serve(connection)
        except Exception as error:  # noqa: BLE001  (shown by the test)
            if not self._closed:
                self.error = error

    def close(self) -> None:
        """Stop listening; wakes a thread that waits for a connection."""
        self._closed = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self.join(timeout=10)
        self._listener.close()

    def _serve(self, connection: socket.socket) -> None:
        count = 0
        while (message := self._read(connection)) is not None:
            count += 1
            if self.drop_after is not None and count > self.drop_after:
                return
            for answer in self.answers(message):
                data = pack(answer)
                connection.sendall(struct.pack(">I", len(data)) + data)

    @staticmethod
    def _read(connection: socket.socket) -> Message | None:
        def exactly(size: int) -> bytes | None:
            data = b""
            while len(data) < size:
                if not (piece := connection.recv(size - len(data))):
                    return None
                data += piece
            return data

        if (head := exactly(4)) is None:
            return None
        data = exactly(struct.unpack(">I", head)[0])
        return None if data is None else frames.from_executable(data)

    def answers(self, message: Message) -> list[Message]:
        held = self.received
        head = held.frames[-1].hash if held.frames else frames.genesis(self.lease)
        if isinstance(message, frames.KeyRequest):
            assert held.request in (None, message), "a second set of keys was asked for"
            held.request = message
            sealed = sealing.seal_release(message.hpke_key, manifest=self.made.manifest, keys=self.made.keys)
            return [frames.KeyRelease(lease=self.lease, sealed=sealed)]
        if isinstance(message, frames.Open):
            return [frames.Welcome(lease=self.lease, seq=len(held.frames), next=len(held.losses), head=head)]
        if isinstance(message, frames.Data):
            if message.seq > len(held.frames):
                return [frames.Nack(lease=self.lease, expected=len(held.frames))]
            if message.seq == len(held.frames):
                assert message.prev == head
                assert message.first == len(held.losses)
                held.bodies.append(sealing.open_frame(self.made.keys.run_key, message))
                held.frames.append(message)
            last = held.frames[-1]
            return [frames.Ack(lease=self.lease, seq=last.seq, head=last.hash)]
        if isinstance(message, frames.Fin):
            if message.seq != len(held.frames):
                return [frames.Nack(lease=self.lease, expected=len(held.frames))]
            assert message.head == head
            assert message.total == len(held.losses)
            assert held.request is not None
            signed = frames.fin_bytes(lease=self.lease, seq=message.seq, total=message.total, head=message.head)
            sealing.verify(held.request.signing_key, signed, message.signature)
            held.fin = message
            return [frames.FinAck(lease=self.lease)]
        raise AssertionError(f"unexpected {message}")


__all__ = ["Agent", "Made", "Received", "contract", "fake_runner", "make", "new_keys"]
