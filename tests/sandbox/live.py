"""A job that trains in a worker's sandbox, and how its processes look to others on the host."""

from __future__ import annotations

import json
import os
import pwd
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.labapex_runner import jobs
from tests.sandbox.cell import RUNNER

from labapex import executable, sandbox, sealing
from labapex.protocol.canonical import Message, parse
from labapex.protocol.frames import KeyRequest
from labapex.protocol.manifest import Index
from labapex_runner.build import build
from labapex_worker import journal, supervisor
from labapex_worker.config import Config, Home, own_site_packages

DATA = b"what the client gave to be learnt from "
SCRIPT = b"""\
# a remark that only its author knows
import json, os, shutil, subprocess
from pathlib import Path

kept = Path("data/secret.txt").read_bytes() * 3
debugger, tried = shutil.which("gdb"), {}
for name, pid in (("supervisor", os.getppid()), ("trainer", os.getpid())):
    if debugger:
        asked = [debugger, "-nx", "-batch", "-p", str(pid), "-ex", "x/2gx $sp"]
        tried[name] = subprocess.run(asked, capture_output=True, text=True).stderr
print(json.dumps({"gdb": tried}), flush=True)
while True:
    os.read(0, 1) or __import__("signal").pause()
"""
WAIT_SECONDS = 120
CHUNK = 4 << 20


class Platform(jobs.Agent):
    """Agent and platform in one, that remembers which process asked for the keys, and when the script has spoken."""

    def __init__(self, path: Path, made: jobs.Made) -> None:
        super().__init__(path, made)
        self.peer = 0
        self.spoke = threading.Event()

    def _serve(self, connection: socket.socket) -> None:
        peer = struct.Struct("3i")
        asked = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, peer.size)
        self.peer = peer.unpack(asked)[0]
        super()._serve(connection)

    def answers(self, message: Message) -> list[Message]:
        given = super().answers(message)
        if "\n" in self.received.console("stdout"):
            self.spoke.set()
        return given


@dataclass(frozen=True)
class Live:
    """A run under way, with everything that its platform knows; pids as the host counts them."""

    home: Home
    folder: supervisor.Folder
    made: jobs.Made
    supervisor: int
    trainers: tuple[int, ...]  # the trainer, and all that it started
    request: KeyRequest
    log: jobs.Received
    said: dict[str, Any]

    @property
    def keys(self) -> dict[str, bytes]:
        """Every key that the platform gave out, also as the index spells them."""
        whole = self.made.layout.parts[1]
        assert isinstance(whole, bytes)
        index = parse(Index, sealing.open_bytes(whole, self.made.keys.content_key), limit=1 << 20)
        spelled = {f"key of {entry.path}, spelled": entry.key.encode() for entry in index.entries}
        files = {f"key of {entry.path}": bytes.fromhex(entry.key) for entry in index.entries}
        return {"run key": self.made.keys.run_key, "content key": self.made.keys.content_key, **files, **spelled}


@contextmanager
def running(script: bytes = SCRIPT, **settings: Any) -> Iterator[Live]:
    """A job in the genuine sandbox, started as the daemon starts it, until the caller has seen enough."""
    build(RUNNER)
    with tempfile.TemporaryDirectory(prefix="labapex-live-", dir="/var/tmp") as name:
        home, lease = Home(Path(name).resolve() / "home"), uuid4()
        home.create()
        folder = supervisor.Folder(home.lease(lease))
        folder.create()
        files = {"train.py": script, "data/secret.txt": DATA * 100, "helper_of_mine.py": b"x = 'an idea of mine'\n"}
        terms = jobs.contract().model_copy(update={"lease": lease})
        made = jobs.make(folder.path, files, runner=executable.load_runner(RUNNER), terms=terms)
        made.path.chmod(0o755)
        config = Config(
            platform="http://127.0.0.1", worker=made.worker, name="live", root=made.trust.root,
            site_packages=own_site_packages(), processes=256, **settings,
        )  # fmt: skip
        agent = Platform(folder.socket, made)
        folder.socket.chmod(0o666)
        agent.start()
        try:
            process = supervisor.start(lease, home, config, threads=1)
            if not agent.spoke.wait(WAIT_SECONDS):
                raise RuntimeError(f"the job did not get on: {journal.last_words(folder.path)}{agent.error or ''}")
            assert agent.received.request is not None
            trainers = tuple(sandbox.descendants(agent.peer))
            said = json.loads(agent.received.console("stdout").splitlines()[0])
            yield Live(home, folder, made, agent.peer, trainers, agent.received.request, agent.received, said)
        finally:
            journal.kill(folder.path)
            process.wait()
            agent.close()


def memory(pid: int) -> Iterator[bytes]:
    """All that a process can read of its own memory, in pieces that overlap by 64 bytes. For root."""
    with Path(f"/proc/{pid}/maps").open() as listed, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
        for line in listed.read().splitlines():
            span, mode, *_, name = line.split(maxsplit=5) + ([""] if line.count(" ") < 5 else [])
            if not mode.startswith("r") or name in ("[vvar]", "[vvar_vclock]", "[vsyscall]"):
                continue
            start, stop = (int(each, 16) for each in span.split("-"))
            for at in range(start, stop, CHUNK):
                file.seek(at)
                try:
                    yield file.read(min(CHUNK + 64, stop - at))
                except OSError:  # a page of a file that is not there, or of a device
                    continue


def holds(pid: int, needles: dict[str, bytes]) -> set[str]:
    """The names of those needles that lie somewhere in a process's memory."""
    found: set[str] = set()
    for piece in memory(pid):
        found |= {name for name, needle in needles.items() if name not in found and needle in piece}
    return found


def signing_key(pid: int, public: bytes) -> bytes | None:
    """The private half of a signing key, from a process's memory: one of Python's strings of 32 bytes."""
    size = struct.pack("<Q", sealing.KEY_BYTES)  # ob_size, then the hash, then the bytes
    tried: set[bytes] = set()
    for piece in memory(pid):
        at = piece.find(size)
        while at >= 0:
            candidate = piece[at + 16 : at + 16 + sealing.KEY_BYTES]
            if at % 8 == 0 and candidate not in tried and len(set(candidate)) > 16:
                tried.add(candidate)
                if len(candidate) == sealing.KEY_BYTES and sealing.public_signing_key(candidate) == public:
                    return candidate
            at = piece.find(size, at + 1)
    return None


def as_sandbox_user(argv: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program outside of every sandbox as the very user that jobs run as. For root."""
    user = pwd.getpwnam(os.environ.get(sandbox.USER_SETTING, sandbox.SANDBOX_USER))
    return subprocess.run(
        argv, user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", env={"PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
