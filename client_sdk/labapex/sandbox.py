"""How a program that is not trusted is started: by the worker for jobs, by the platform for preflights and replays.

The box is bubblewrap, run by an ordinary user: no network, no capabilities, its own processes, of the host's files only
the system's programs and what is named, everything read-only but one folder, of the kernel's calls only those that
`labapex.seccomp` lets through. Nothing of the starter is inherited: no environment, no descriptors, no terminal. What a
program in it keeps from its own children is up to `labapex.landlock`, without which foreign code is refused, too, unless
`LANDLOCK_SETTING` says otherwise.

Root never runs bubblewrap: it would stay uid 0 and could write `/proc/sys`. Root drops to `SANDBOX_USER` first
(`labapex.drop`). That user often cannot even reach the named paths (a home is 0700), so they are first bound, by root in
a private mount namespace, below `STAGE`, where bubblewrap picks them up. Where any of this cannot be had, the program is refused,
unless `UNCONFINED_SETTING` says otherwise.

Limits are per process (`setrlimit`), and on the sum over all processes, which `labapex.watch` adds up.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import pwd
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labapex import landlock, seccomp
from labapex.errors import SandboxUnavailable

log = logging.getLogger(__name__)

UNCONFINED_SETTING = "LABAPEX_RUN_FOREIGN_CODE_WITHOUT_SANDBOX"
LANDLOCK_SETTING = "LABAPEX_RUN_FOREIGN_CODE_WITHOUT_LANDLOCK"
USER_SETTING = "LABAPEX_SANDBOX_USER"
SANDBOX_USER = "nobody"
STAGE = Path("/run/labapex-sandbox")
TMP_BYTES = 1 << 30

_TOOLS_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime")
_HARDWARE = ("/sys/devices/system/cpu", "/sys/devices/system/node")  # PyTorch asks them which kernels the CPU can run

# Root's part: bind each source below the stage, in a mount namespace that dies with the program; then go on as the user
_STAGE_SCRIPT = """
set -eu
stage=$0; n=0
mount -t tmpfs -o mode=0755,nosuid,nodev,size=1m labapex "$stage"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir "$stage/$n"; else : >"$stage/$n"; fi
    mount --rbind "$1" "$stage/$n"
    n=$((n + 1)); shift
done
shift
exec "$@"
"""


@dataclass(frozen=True)
class Confinement:
    """What a program may see and use. Paths are the same inside and outside, but for `placed`. Sizes in bytes."""

    folder: Path  # working directory, the only thing it can write; given to the sandbox's user when root starts it
    read_only: tuple[Path, ...] = ()
    placed: tuple[tuple[Path, Path], ...] = ()  # (path here, path inside), read-only; only in the sandbox
    devices: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)  # all of it
    memory_bytes: int | None = None  # data of one process; None: no limit, as with the next three
    cpu_seconds: int | None = None  # of one process
    processes: int | None = None  # threads included; holds only in the sandbox
    file_bytes: int | None = None  # size of one file
    total_memory_bytes: int | None = None  # of all processes together
    disk_bytes: int | None = None  # of all files in `folder`
    private: tuple[
        tuple[Path, int], ...
    ] = ()  # (folder in `folder`, its size): in memory alone, gone with the program; only in the sandbox


def command(argv: Sequence[str], confinement: Confinement, calls: int) -> list[str]:
    """The command line that runs `argv` confined, for `popen`; `calls` is the filter's descriptor, to be inherited.

    Raises `SandboxUnavailable` where no sandbox can be had and `UNCONFINED_SETTING` does not allow to go without."""
    missing = available()
    if missing is None:
        return [*_watched(confinement, confined=True), *_boxed(argv, confinement, calls)]
    if os.environ.get(UNCONFINED_SETTING) != "1":
        raise SandboxUnavailable(
            f"foreign code may not run here, because no sandbox can be had: {missing}. "
            f"To run it WITHOUT any protection of this machine set {UNCONFINED_SETTING}=1"
        )
    log.warning("%s=1: running foreign code WITHOUT a sandbox (%s)", UNCONFINED_SETTING, missing)
    return [*_watched(confinement, confined=False), *_limits(confinement, confined=False), *argv]


@functools.cache
def available() -> str | None:
    """None where a sandbox can be had (tried out once in each process); else what is missing, and the remedy."""
    if sys.platform != "linux":
        return "the sandbox needs Linux"
    for tool, package in (("bwrap", "bubblewrap"), ("prlimit", "util-linux"), ("sh", "dash")):
        if _which(tool) is None:
            return f"{tool} is missing; install the package {package}"
    if os.geteuid() == 0:
        for tool in ("unshare", "mount"):
            if _which(tool) is None:
                return f"{tool} is missing; install the packages util-linux and mount"
        try:
            if _user().pw_uid == 0:
                return f"{USER_SETTING} names a user with root's rights; name an ordinary one"
        except KeyError as error:
            return f"there is no such user: {error}; name an existing one in {USER_SETTING}"
    if seccomp.program(platform.machine()) is None:
        return f"there is no filter of system calls for {platform.machine()}; use x86_64 or aarch64"
    if landlock.version() == 0:
        if os.environ.get(LANDLOCK_SETTING) != "1":
            return f"{landlock.lacking()}; to go without set {LANDLOCK_SETTING}=1"
        log.warning("%s=1: %s", LANDLOCK_SETTING, landlock.lacking())
    with tempfile.TemporaryDirectory(prefix="labapex-probe-") as name, seccomp.descriptor(platform.machine()) as calls:
        folder = Path(name).resolve()
        if os.geteuid() == 0:
            hand_over(folder)
        try:
            probe = subprocess.run(
                _boxed(["true"], Confinement(folder=folder, environment={"PATH": "/usr/bin:/bin"}), calls),
                env={"PATH": "/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                pass_fds=(calls,),
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"the sandbox could not be tried out: {error}"
    if probe.returncode == 0:
        return None
    said = probe.stderr.decode(errors="replace").strip()[-300:]
    return f"bubblewrap failed here ({said}). {_remedy()}"


def popen(
    argv: Sequence[str], confinement: Confinement, *, wrapper: Sequence[str] = (), **pipes: Any
) -> subprocess.Popen[bytes]:
    """Start `argv` confined, in a session of its own, with nothing inherited but the given `stdin`, `stdout`, `stderr`.

    The program dies with its parent, which is the THREAD that calls this. One that is to live on gets a `wrapper`: a
    command that runs outside of the sandbox, is given the confined command line as arguments and becomes its parent.
    Raises `SandboxUnavailable`."""
    with seccomp.descriptor(platform.machine()) as calls:
        line = [*wrapper, *command(argv, confinement, calls)]
        if os.geteuid() == 0 and available() is None:
            hand_over(confinement.folder)
        return subprocess.Popen(
            line,
            env=dict(confinement.environment),
            cwd=confinement.folder,
            start_new_session=True,
            umask=0o077,
            pass_fds=(calls,),
            **{"stdin": subprocess.DEVNULL, **pipes},
        )


def hand_over(folder: Path) -> None:
    """Root only: give a folder and all in it to the sandbox's user, following no symbolic link."""
    user = _user()
    subprocess.run(  # not by os.walk: an earlier program may have nested folders deeper than Python can go
        [_tool("chown"), "-hR", f"{user.pw_uid}:{user.pw_gid}", "--", str(folder)],
        env={"PATH": _TOOLS_PATH},
        stdin=subprocess.DEVNULL,
        check=True,
    )


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a program that `popen` started and everything that it started; returns when all of it is gone."""
    kill_group(process.pid)
    process.wait()


def kill_group(pid: int) -> None:
    """`kill_tree` for a program whose starter is gone; `pid` is that of `popen`'s process, which must still live."""
    doomed = {pid: _started(pid), **descendants(pid)}
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        log.debug("process group %d is gone already", pid)
    give_up = time.monotonic() + 10
    while left := [p for p, started in doomed.items() if started is not None and _started(p) == started]:
        for process in left:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > give_up:
            raise SandboxUnavailable(f"processes {left} do not end when they are killed")
        doomed.update(descendants(pid))
        time.sleep(0.005)


def most_memory() -> int:
    """Nine tenths of this host's memory, in bytes: what programs may have that nobody limited otherwise."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 9 // 10


def python_paths() -> tuple[Path, ...]:
    """What a confined program needs to see in order to run this very interpreter with its packages."""
    paths = {Path(p) for p in (sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values())}
    paths.add(Path(sys.executable).resolve().parent)
    paths |= {Path(p) for p in sys.path if p.endswith(("/site-packages", "/dist-packages"))}
    return _topmost(p for p in paths if p.is_dir() and not p.is_relative_to("/usr"))


# -- the command line --------------------------------------------------------------------------------------------------


def _boxed(argv: Sequence[str], confinement: Confinement, calls: int) -> list[str]:
    bwrap, as_root = _tool("bwrap"), os.geteuid() == 0
    binds = _binds(confinement)
    sources = [source for _, source, _ in binds]
    line = [
        bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session",
        "--hostname", "labapex", "--seccomp", str(calls), "--proc", "/proc", "--dev", "/dev",
    ]  # fmt: skip
    if confinement.memory_bytes is not None:
        line += ["--size", str(confinement.memory_bytes)]
    line += ["--tmpfs", "/dev/shm", "--size", str(TMP_BYTES), "--perms", "1777", "--tmpfs", "/tmp"]  # noqa: S108
    for name in _SYSTEM:
        if (path := Path(name)).is_symlink():
            line += ["--symlink", str(path.readlink()), name]
    for number, (option, source, place) in enumerate(binds):
        line += [option, str(STAGE / str(number)) if as_root else str(source), str(place)]
    for place, size in confinement.private:
        line += ["--size", str(size), "--perms", "0700", "--tmpfs", str(place)]
    line += ["--remount-ro", "/", "--chdir", str(confinement.folder), "--", *_limits(confinement, confined=True), *argv]
    if not as_root:
        return line
    user = _user()
    STAGE.mkdir(mode=0o755, parents=True, exist_ok=True)
    return [
        _tool("unshare"), "--mount", "--propagation", "private", "--",
        _tool("sh"), "-c", _STAGE_SCRIPT, str(STAGE), *map(str, sources), "--",
        *_python("drop"), str(user.pw_uid), str(user.pw_gid), *line,
    ]  # fmt: skip


def _binds(confinement: Confinement) -> list[tuple[str, Path, Path]]:
    """(option, path here, path inside), parents before children, so that a mount never hides an earlier one."""
    folder = confinement.folder
    if not folder.is_absolute() or folder == Path("/") or any(folder == Path(name) for name in _SYSTEM):
        raise SandboxUnavailable(f"{folder} cannot be a sandbox's folder; name an absolute path to a folder of its own")
    wanted = {Path(n): "--ro-bind" for n in (*_SYSTEM, *_SYSTEM_FILES, *_HARDWARE) if Path(n).exists()}
    wanted = {path: option for path, option in wanted.items() if not (str(path) in _SYSTEM and path.is_symlink())}
    wanted |= dict.fromkeys(confinement.read_only, "--ro-bind")
    wanted |= dict.fromkeys(confinement.devices, "--dev-bind")
    wanted[folder] = "--bind"
    binds = [(option, path, path) for path, option in wanted.items()]
    binds += [("--ro-bind", source, place) for source, place in confinement.placed]
    for _, source, _ in binds:
        if not source.exists():
            raise SandboxUnavailable(f"{source} is to be visible in the sandbox, but does not exist")
    return sorted(binds, key=lambda bind: (len(bind[2].parts), bind[2]))


def _limits(confinement: Confinement, *, confined: bool) -> list[str]:
    limits = {
        "data": confinement.memory_bytes,
        "cpu": confinement.cpu_seconds,
        "fsize": confinement.file_bytes,
        # Outside of a user namespace this would count every process of the user, not just the program's.
        "nproc": confinement.processes if confined else None,
        "core": 0,
    }
    options = [f"--{name}={value}:{value}" for name, value in limits.items() if value is not None]
    return [_tool("prlimit"), *options, "--"]


def _watched(confinement: Confinement, *, confined: bool) -> list[str]:
    """The command that starts `labapex.watch`."""
    line = [*_python("watch"), f"--folder={confinement.folder}"]
    line += [f"--private={place}" for place, _ in confinement.private]
    limits = {
        "memory": confinement.total_memory_bytes,
        "disk": confinement.disk_bytes,
        "processes": confinement.processes if confined else None,
    }
    return [*line, *[f"--{name}={value}" for name, value in limits.items() if value is not None], "--"]


def _python(module: str) -> list[str]:
    """The command that starts a module of this package in this interpreter, whatever environment it is given."""
    source = str(Path(landlock.__file__).parents[1])
    start = f"import sys; sys.path.insert(0, {source!r}); from labapex import {module} as it; sys.exit(it.main(sys.argv[1:]))"
    return [sys.executable, "-I", "-S", "-c", start]


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=_TOOLS_PATH)


def _tool(tool: str) -> str:
    if (path := _which(tool)) is None:
        raise SandboxUnavailable(f"{tool} is missing in {_TOOLS_PATH}")
    return path


def _user() -> pwd.struct_passwd:
    return pwd.getpwnam(os.environ.get(USER_SETTING, SANDBOX_USER))


def _remedy() -> str:
    restricted = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    if restricted.exists() and restricted.read_text().strip() == "1":
        return (
            "AppArmor keeps ordinary programs from making user namespaces here; give bwrap its profile (on Ubuntu: "
            "apt install apparmor-profiles, then load /usr/share/apparmor/extra-profiles/bwrap-userns-restrict)"
        )
    if os.geteuid() == 0:
        return "In a container, root needs the right to mount (CAP_SYS_ADMIN) and user namespaces allowed by seccomp"
    return "Allow user namespaces to ordinary users: /proc/sys/user/max_user_namespaces, or your container's seccomp"


def _topmost(paths: Any) -> tuple[Path, ...]:
    kept: list[Path] = []
    for path in sorted(paths, key=lambda p: len(p.parts)):
        if not any(path.is_relative_to(k) for k in kept):
            kept.append(path)
    return tuple(kept)


# -- processes ---------------------------------------------------------------------------------------------------------


def _stat(pid: int) -> list[str] | None:
    """The fields of `/proc/PID/stat` from the state on; None when the process is gone or only waits to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot: with the pid, its identity."""
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def descendants(root: int) -> dict[int, int | None]:
    """The children of a process and theirs, and the members of its session, with their start times."""
    parents, found = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))) is not None:
            parents[int(entry.name)] = int(fields[1])
            if int(fields[3]) == root:
                found[int(entry.name)] = int(fields[19])
    frontier = {root, *found}
    while frontier := {pid for pid, parent in parents.items() if parent in frontier and pid not in found}:
        found.update({pid: started for pid in frontier if (started := _started(pid)) is not None})
        frontier &= set(found)
    found.pop(root, None)
    return dict(found)
