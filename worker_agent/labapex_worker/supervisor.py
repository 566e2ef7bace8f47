"""The leases' executables on this host: their folders, their start, and the socket that is each one's only way out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO
from uuid import UUID

from labapex import environments, executable, sandbox
from labapex.errors import MalformedInput, UsageError
from labapex.proof.determinism import pin
from labapex.protocol.canonical import Message
from labapex.protocol.frames import MAX_MESSAGE
from labapex.protocol.packing import pack
from labapex.sandbox import Confinement
from labapex_worker import cgroups, devices, journal, room
from labapex_worker.config import Config, Home

log = logging.getLogger(__name__)

_TOOLS = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
_LENGTH = struct.Struct(">I")
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
BROKEN_LIMIT = 3  # protocol errors after which an executable is given up
WRITE_BUFFER = 4 << 20
INSIDE = Path("/door")  # where a job finds its socket: a short path, however long the one outside
EVENTS_INSIDE = Path("/memory.events")  # and where what the kernel counts of its control group
OWN_BYTES, OWN_PROCESSES = 256 << 20, 16  # what runs a job takes besides it, of memory and of disk
AT_ONCE_BYTES = (
    512 << 20
)  # what a script may write to memory before its supervisor looks: the limit is to be named, not met
SOCKET_PATH_BYTES = 107  # sun_path in Linux's unix(7), less its closing zero


class Folder:
    """What belongs to one lease on this disk. See config.py for the layout."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.executable = path / "executable"
        self.part = path / "executable.part"
        self.door = path / "door"
        self.socket = path / "door" / "agent.sock"
        self.wheels = path / "wheels"
        self.job = path / "job"
        self.group = path / "group.json"  # the limits of the run's control group, where it has one
        self.chunks = path / "chunks.bin"  # what is handed in when chunks are asked for

    @property
    def again(self) -> Folder:
        """Where states that were not kept are made anew, in `job/states/` as ever."""
        return Folder(self.path / "again")

    def create(self) -> None:
        for folder in (self.path, self.door, self.job):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.door.chmod(0o755)  # the sandbox's user may be another; the folder above stays closed

    def open_state(self, index: int) -> IO[bytes]:
        """The state file of a leaf for reading. Raises `OSError` or `MalformedInput`."""
        return self._open_kept(f"{index}.safetensors")

    def open_tree(self, index: int) -> IO[bytes]:
        """The hashes of that state's tree, which were written beside it. Raises `OSError` or `MalformedInput`."""
        return self._open_kept(f"{index}.tree")

    def _open_kept(self, name: str) -> IO[bytes]:
        """A file that was kept of a leaf.

        The job folder is written by hostile code: a link in it must not make us hand out another file of this host, nor
        a pipe stop us."""
        folder = os.open(self.job, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            states = os.open("states", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                file = os.open(name, flags, dir_fd=states)
            finally:
                os.close(states)
        finally:
            os.close(folder)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise MalformedInput(f"{name} is not a file")
        return os.fdopen(file, "rb")

    def remove(self) -> None:
        """Delete it all, whatever rights the job gave to its files and however deep it nested them.

        Links are deleted, never followed. Raises `OSError` where something is left."""
        if not self.path.exists():
            return
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            said = subprocess.run(
                [*command, "--", str(self.path)], env=_TOOLS, stdin=subprocess.DEVNULL, capture_output=True, check=False
            ).stderr
        if self.path.exists():
            raise OSError(f"{self.path} could not be deleted: {said[-300:].decode(errors='replace').strip()}")


def start(
    lease: UUID,
    home: Home,
    config: Config,
    *,
    threads: int,
    packages: Path | None = None,
    torch: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a verified executable in the sandbox, with an environment built from nothing. `packages`: the job's own; `torch`:
    the platform's, in place of the host's."""
    folder = Folder(home.lease(lease))
    door = INSIDE if sandbox.available() is None else folder.door
    if len(os.fsencode(door / folder.socket.name)) > SOCKET_PATH_BYTES:
        raise UsageError(f"{home.path} is too long a path for sockets without a sandbox; choose a shorter --home")
    box = confinement(config, folder.job, see=(folder.executable,), threads=threads, torch=torch)
    box = replace(
        box,
        placed=((folder.door, INSIDE),),
        private=_private(config, folder),
        environment={
            **box.environment,
            "LABAPEX_AGENT_SOCKET": str(door / folder.socket.name),
            "LABAPEX_JOB_FOLDER": str(folder.job),
        },
    )
    entering: tuple[str, ...] = ()
    if (group := cgroups.of_run(lease.hex)) is not None:
        limits = _group_limits(folder, box)
        folder.group.write_text(json.dumps(limits))
        group.create(limits)
        entering = group.entering()
        events = EVENTS_INSIDE if sandbox.available() is None else group.events
        box = replace(
            box,
            placed=(*box.placed, (group.events, EVENTS_INSIDE)),
            environment={**box.environment, "LABAPEX_MEMORY_EVENTS": str(events)},
        )
    return journal.start(folder.path, [str(folder.executable)], environments.mounted(box, packages), entering=entering)


def renew(lease: UUID, home: Home) -> None:
    """Give a run that goes on the limits with which it was started, in its control group. Raises `OSError`."""
    folder = Folder(home.lease(lease))
    if (group := cgroups.of_run(lease.hex)) is not None and folder.group.exists():
        group.renew(json.loads(folder.group.read_text()))


def _group_limits(folder: Folder, box: Confinement) -> dict[str, str]:
    """Those of a run's control group: what its contract allows, its files in memory included, and what it takes besides; and no
    more than the owner allows. So a job that meets them has taken more than its contract says."""
    assert box.total_memory_bytes is not None
    allowed = executable.inspect(folder.executable).manifest.contract.limits
    if allowed is None:
        return cgroups.limits(memory=box.total_memory_bytes, processes=box.processes)
    files = allowed.disk + AT_ONCE_BYTES if box.private else 0
    memory = min(allowed.memory + files + OWN_BYTES, box.total_memory_bytes)
    processes = allowed.processes + OWN_PROCESSES
    return cgroups.limits(memory=memory, processes=min(processes, box.processes or processes))


def _private(config: Config, folder: Folder) -> tuple[tuple[Path, int], ...]:
    """The folders of a job that lie in memory alone, with the size of each: where the client's files are opened, and `tmp`.

    None where there is no room: twice what was sent, as scripts write beside it, and for all that the contract allows to be
    written besides all the memory that it allows. And none where the host does not keep every state: these files have to outlive
    the run then."""
    most = config.private_bytes if config.private_bytes is not None else sandbox.most_memory() // 4
    manifest = executable.inspect(folder.executable).manifest
    terms, size = manifest.contract, most
    fits = 2 * sum(section.size for section in manifest.sections) <= most
    if terms.limits is not None:
        size = terms.limits.disk + AT_ONCE_BYTES
        written = terms.limits.disk - len(terms.kept_leaves()) * terms.facts.state_bytes  # states lie on the disk
        fits = fits and terms.limits.memory + written <= room.allowed_memory(config)
    if terms.keep_every > 1 or not fits:
        log.info("lease %s: code and data lie on this disk, in the clear, while the job runs", terms.lease)
        return ()
    return tuple((folder.job / name, size) for name in ("work", "tmp"))


def confinement(
    config: Config, folder: Path, *, see: tuple[Path, ...], threads: int, torch: Path | None = None
) -> Confinement:
    """The sandbox of an executable that writes into `folder` and reads what else it may `see`. `torch`: as for `start`."""
    site_packages = config.site_packages if torch is None else (torch,)
    see = (*see, *site_packages, *config.read_only)
    return Confinement(
        folder=folder,
        read_only=tuple(path for path in see if not path.is_relative_to("/usr")),
        devices=devices.nodes(),
        environment={
            **pin(threads),
            **devices.visible(),
            "LABAPEX_SITE_PACKAGES": os.pathsep.join(map(str, site_packages)),
            "TMPDIR": str(folder),  # where the executable unpacks itself; scripts get another
            "USER": "job",
            "LOGNAME": "job",
            "LANG": "C.UTF-8",
            "PATH": "/usr/bin:/bin",
            "PYTHONHASHSEED": "0",
        },
        total_memory_bytes=room.allowed_memory(config) + OWN_BYTES,
        disk_bytes=config.disk_bytes + OWN_BYTES,
        processes=None if config.processes is None else config.processes + OWN_PROCESSES,
    )


class Door:
    """The unix socket of one lease. Messages are length-prefixed (u32, big-endian) msgpack.

    One executable speaks at a time; a new connection takes the place of the old one. `hear` is called with each message
    and the process it came from, `may_speak` tells whether a process may speak at all, `broken` is called once when the
    executable has broken the protocol too often."""

    def __init__(
        self,
        path: Path,
        *,
        may_speak: Callable[[int], bool],
        hear: Callable[[bytes, int], None],
        broken: Callable[[str], None],
    ) -> None:
        self._path = path
        self._may_speak, self._hear, self._broken = may_speak, hear, broken
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._errors = 0

    async def open(self) -> None:
        """Listen; a socket that a killed daemon left behind is replaced."""
        self._path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            listening.bind(f"/proc/self/fd/{folder}/{self._path.name}")  # the path itself may be too long for a socket
        finally:
            os.close(folder)
        self._path.chmod(0o666)  # its folder is closed to all but the lease's sandbox
        self._server = await asyncio.start_unix_server(self._serve, sock=listening)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._writer is not None:
            self._writer.close()
        if self._server is not None:
            await self._server.wait_closed()

    def send(self, message: Message) -> None:
        """Send if the executable is connected; what it missed it asks for again."""
        writer = self._writer
        if writer is None or writer.is_closing():
            return
        if writer.transport.get_write_buffer_size() > WRITE_BUFFER:
            log.warning("%s: the executable does not read; its connection is closed", self._path.parent.parent.name)
            writer.transport.abort()
            return
        data = pack(message)
        writer.write(_LENGTH.pack(len(data)) + data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: socket.socket = writer.get_extra_info("socket")
        pid, _, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        lease = self._path.parent.parent.name
        if not self._may_speak(pid):
            log.warning("lease %s: process %d tried to speak for the executable", lease, pid)
            writer.close()
            return
        if self._writer is not None:
            self._writer.close()
        self._writer = writer
        try:
            while True:
                (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                if size > MAX_MESSAGE:
                    raise MalformedInput(f"a message of {size} bytes; at most {MAX_MESSAGE} are accepted")
                data = await reader.readexactly(size)
                if not self._may_speak(pid):
                    raise MalformedInput(f"process {pid} is not the executable")
                self._hear(data, pid)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            log.debug("lease %s: the executable hung up", lease)
        except MalformedInput as error:
            self._errors += 1
            log.warning("lease %s: the executable broke the protocol: %s", lease, error)
            if self._errors == BROKEN_LIMIT:
                self._broken(f"the executable broke the protocol {self._errors} times, the last time so: {error}")
        finally:
            if self._writer is writer:
                self._writer = None
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
