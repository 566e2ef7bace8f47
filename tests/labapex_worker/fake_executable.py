"""A program that speaks the executable's side of the socket, run inside the sandbox in place of a frozen runner.

`make` wraps it into a real, signed executable: its bootloader is a shell script that starts this file. What it does is
written in the contract's arguments, NAME=VALUE:

    frames=N            so many frames, of two losses each
    wait_at=N           before frame N wait until the agent has answered on a second connection
    exit=N              instead of finishing: exit with N once all frames are acknowledged
    states=N            write so many state files
    link=PATH           make state 0 a symbolic link to PATH
    keep=M              keep the states of every M-th leaf only; how to make others anew:
    again=wait          not before there is a file `go`
    again=broken        not at all, and say why
    again=dies          not at all, and say nothing
"""

from __future__ import annotations

import os
import shlex
import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from tests.labapex.authority import Authority

    from labapex.protocol.manifest import SuppliedTorch
    from labapex.protocol.requirements import Lock

COOKIE = struct.Struct("!8sIIII64s")
COOKIE_MAGIC = b"MEI\014\013\012\013\016"


def make(
    folder: Path,
    *,
    authority: Authority,
    worker: UUID,
    lease: UUID,
    job: UUID,
    plan: dict[str, object],
    packages: Lock | None = None,
    torch: SuppliedTorch | None = None,
    start: Sequence[str | Path] = (sys.executable, Path(__file__).resolve()),
    release: str = "1.0",
    padding: int = 50_000,
) -> bytes:
    """The bytes of a signed executable, whose runner was released as `release`.

    `start` is the command that it runs, with its own path and its arguments."""
    from labapex import executable
    from labapex.protocol.canonical import digest
    from labapex.protocol.contract import Contract, ScriptFacts
    from labapex.protocol.limits import Limits
    from labapex.protocol.manifest import Index, Manifest
    from labapex.protocol.requirements import Lock

    packages = packages or Lock()

    bootloader, archive = folder / "bootloader", folder / "runner.pkg"
    bootloader.write_bytes(f'#!/bin/sh\nexec {shlex.join(map(str, start))} "$0" "$@"\nexit 9\n'.encode())
    table = release.encode().ljust(padding, b".")  # one release is one runner
    archive.write_bytes(table + COOKIE.pack(COOKIE_MAGIC, len(table) + COOKIE.size, 0, 0, 311, bytes(64)))
    runner = executable.load_runner(folder)
    section = executable.seal_index(Index(entries=()), bytes(32))
    facts = ScriptFacts(
        loop="x:1", iterations_per_epoch=2, has_loader=True, gradients_are_state=False, parameters=1, state_bytes=1
    )
    contract = Contract(
        job=job,
        lease=lease,
        seed="0" * 64,
        code="0" * 64,
        data="0" * 64,
        requirements=digest(packages),
        script="train.py",
        args=tuple(f"{name}={value}" for name, value in plan.items()),
        epochs=1,
        checkpoint_every=1,
        keep_every=int(str(plan.get("keep", 1))),
        threads=1,
        limits=Limits(memory=int(str(plan.get("memory", 1 << 20))), disk=1 << 20, processes=64),
        facts=facts,
    )
    manifest = Manifest(
        key=authority.manifest_key,
        release=authority.release(runner, version=release),
        bootloader_size=runner.bootloader_size,
        archive_size=runner.archive_size,
        sections=(executable.describe(section),),
        worker=worker,
        contract=contract,
        requirements=packages,
        torch=torch,
        expires_at=int(time.time()) + 3600,
    )
    laid_out = executable.layout(runner, [section], manifest, authority.sign(manifest))
    return b"".join(laid_out.stream())


class Executable:
    """Frames are kept until the agent acknowledges them; the connection is made anew whenever it breaks."""

    def __init__(self, path: Path) -> None:
        from labapex import executable, sealing
        from labapex.protocol.frames import genesis

        self.manifest = executable.inspect(path).manifest
        contract = self.manifest.contract
        self.lease = contract.lease
        self.plan = dict(argument.split("=", 1) for argument in contract.args)
        self.private, self.public = sealing.new_hpke_keys()
        self.signing, self.signing_public = sealing.new_signing_keys()
        self.run_key = b""
        self.unacked: dict[int, bytes] = {}
        self.seq = 0
        self.head = genesis(self.lease)
        self.connections = 0
        self.connection: socket.socket | None = None

    def main(self) -> int:
        folder = Path(os.environ["LABAPEX_JOB_FOLDER"])
        states = folder / "states"
        states.mkdir()
        for index in range(0, int(self.plan.get("states", 0)), int(self.plan.get("keep", 1))):
            (states / f"{index}.safetensors").write_bytes(b"state %d " % index * 1000)
        if "link" in self.plan:
            (states / "0.safetensors").unlink(missing_ok=True)
            (states / "0.safetensors").symlink_to(self.plan["link"])
        self.get_keys()
        for number in range(int(self.plan["frames"])):
            while number == int(self.plan.get("wait_at", -1)) and self.connections < 2:
                self.listen()
            self.make_frame()
        while self.unacked:
            self.listen()
        if "exit" in self.plan:
            print("Traceback: it went wrong", file=sys.stderr)
            return int(self.plan["exit"])
        self.finish()
        return 0

    def regenerate(self, folder: Path, job: Path) -> int:
        from labapex.protocol.replay import RegenerateReport, RegenerateRequest

        wanted = RegenerateRequest.model_validate_json((folder / "request.json").read_bytes())
        while self.plan.get("again") == "wait" and not (folder / "go").exists():
            time.sleep(0.05)
        if self.plan.get("again") == "dies":
            return 7
        (folder / "states").mkdir(exist_ok=True)
        for index in wanted.states:
            assert not (job / "states" / f"{index}.safetensors").exists()
            (folder / "states" / f"{index}.safetensors").write_bytes(b"made %d again " % index)
        broken = self.plan.get("again") == "broken"
        report = RegenerateReport(problem="state 1 came out otherwise" if broken else None, made=wanted.states)
        (folder / "report.json").write_text(report.model_dump_json())
        return 0

    def get_keys(self) -> None:
        from labapex import sealing
        from labapex.protocol.contract import Environment
        from labapex.protocol.frames import KeyRelease, KeyRequest
        from labapex.protocol.packing import pack

        environment = Environment(python="3.11", torch="2", device="cpu: x", capability="AVX2", threads=1)
        request = KeyRequest(
            lease=self.lease, hpke_key=self.public, signing_key=self.signing_public, environment=environment
        )
        while not self.run_key:
            self.say(pack(request))
            while (message := self.listen()) is not None:
                if isinstance(message, KeyRelease):
                    keys = sealing.open_release(self.private, manifest=self.manifest, sealed=message.sealed)
                    self.run_key = keys.run_key
                    break

    def make_frame(self) -> None:
        from labapex import sealing
        from labapex.protocol.packing import pack
        from labapex.protocol.records import FrameBody, column

        losses = [float(2 * self.seq), float(2 * self.seq + 1)]
        frame = sealing.seal_frame(
            self.run_key,
            lease=self.lease,
            seq=self.seq,
            first=2 * self.seq,
            prev=self.head,
            body=FrameBody(losses=column(losses), times=column(losses)),
        )
        self.seq, self.head = self.seq + 1, frame.hash
        self.unacked[frame.seq] = pack(frame)
        self.say(self.unacked[frame.seq])

    def finish(self) -> None:
        from labapex import sealing
        from labapex.protocol.frames import Fin, FinAck, fin_bytes
        from labapex.protocol.packing import pack

        text = fin_bytes(lease=self.lease, seq=self.seq, total=2 * self.seq, head=self.head)
        signature = sealing.sign(self.signing, text)
        fin = Fin(lease=self.lease, seq=self.seq, total=2 * self.seq, head=self.head, signature=signature)
        while True:
            self.say(pack(fin))
            while (message := self.listen()) is not None:
                if isinstance(message, FinAck):
                    return

    # -- the socket ----------------------------------------------------------------------------------------------------

    def say(self, data: bytes) -> None:
        try:
            self.connected().sendall(struct.pack(">I", len(data)) + data)
        except OSError:
            self.connection = None  # asked for again by Welcome

    def listen(self) -> object:
        """The next message; None where the connection broke. Acknowledgements and gaps are dealt with here."""
        from labapex.protocol.frames import Ack, Nack, Welcome, to_executable

        connection = self.connected()
        try:
            data = self.exactly(connection, *struct.unpack(">I", self.exactly(connection, 4)))
        except OSError:
            self.connection = None
            return None
        message = to_executable(data)
        match message:
            case Ack():
                self.unacked = {seq: frame for seq, frame in self.unacked.items() if seq > message.seq}
            case Nack():
                self.resend(message.expected)
            case Welcome():
                self.unacked = {seq: frame for seq, frame in self.unacked.items() if seq >= message.seq}
                self.resend(message.seq)
        return message

    def resend(self, first: int) -> None:
        for seq, frame in list(self.unacked.items()):
            if seq >= first:
                self.say(frame)

    def connected(self) -> socket.socket:
        from labapex.protocol.frames import Open
        from labapex.protocol.packing import pack

        while self.connection is None:
            attempt = socket.socket(socket.AF_UNIX)
            try:
                attempt.connect(os.environ["LABAPEX_AGENT_SOCKET"])
                data = pack(Open(lease=self.lease))
                attempt.sendall(struct.pack(">I", len(data)) + data)
            except OSError:
                attempt.close()
                time.sleep(0.05)  # the real one backs off too
                continue
            self.connection = attempt
            self.connections += 1
        return self.connection

    @staticmethod
    def exactly(connection: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not (piece := connection.recv(size - len(data))):
                raise ConnectionResetError
            data += piece
        return data


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "client_sdk"))
    played = Executable(Path(sys.argv[1]))
    if sys.argv[2:3] == ["regenerate"]:
        raise SystemExit(played.regenerate(Path(sys.argv[3]), Path(sys.argv[4])))
    raise SystemExit(played.main())
