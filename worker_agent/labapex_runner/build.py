"""Freeze the generic runner, once for all jobs: `python -m labapex_runner.build --out DIR`.

Leaves in DIR `bootloader` and `runner.pkg`, of which every job's executable is made, `runner` (both together, for the
modes preflight and replay), `digest`, and `packages.json`: which packages are frozen into it, with their versions. The
build runs in an environment of its own, DIR/venv, that holds the runner's packages at the locked versions and nothing
else: whatever else is installed would find its way into the executable. A digest over all inputs makes a second build
return at once.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from labapex.errors import LabApexError, UsageError

FROZEN = ("cryptography", "msgpack", "nvidia-ml-py", "packaging", "psutil", "pydantic", "rfc8785")
ROOTS = (*FROZEN, "pyinstaller")
OWN = (
    "labapex/__init__.py",
    "labapex/drop.py",
    "labapex/durable.py",
    "labapex/errors.py",
    "labapex/executable.py",
    "labapex/installed.py",
    "labapex/landlock.py",
    "labapex/nvml.py",
    "labapex/sandbox.py",
    "labapex/sealing.py",
    "labapex/seccomp.py",
    "labapex/session.py",
    "labapex/trial.py",
    "labapex/trust.py",
    "labapex/watch.py",
    "labapex/protocol",
    "labapex/proof",
    "labapex_runner",
)
DEFAULT_LOCK = Path(__file__).parents[2] / "requirements.txt"


class BuildFailed(LabApexError):
    """The runner could not be built; the message says what the machine lacks or shows the end of the log."""


def build(out: Path, lock: Path = DEFAULT_LOCK) -> bool:
    """Build the runner into `out` unless it is there already; True if something was built. Raises `BuildFailed`."""
    if not lock.is_file():
        raise UsageError(f"{lock} does not exist; name the lock file with --requirements")
    pins = subset(lock.read_text(), ROOTS)
    sources = dict(_sources())
    wanted = _digest(pins, sources)
    if _is_built(out, wanted):  # no lock: it may lie on a disk that nobody can write to
        return False
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # two builds at once: the second waits, and then finds it done
        if _is_built(out, wanted):
            return False
        done = out / "digest"
        done.unlink(missing_ok=True)
        python = _environment(out / "venv", pins)
        with tempfile.TemporaryDirectory(dir=out, prefix="packages-") as folder:
            for name, source in sources.items():
                target = Path(folder) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            _freeze(python, Path(folder), out)
        frozen = re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", subset(lock.read_text(), FROZEN), re.M)
        (out / "packages.json").write_text(json.dumps(dict(frozen), indent=2) + "\n")
        done.write_text(wanted)
        return True


def _is_built(out: Path, wanted: str) -> bool:
    """Whether a runner of these inputs is there, complete."""
    done, parts = out / "digest", ("bootloader", "runner.pkg", "runner", "packages.json")
    return done.is_file() and done.read_text() == wanted and all((out / part).is_file() for part in parts)


def subset(lock: str, roots: tuple[str, ...]) -> str:
    """The blocks of a pip-compile lock that `roots` need, hashes included.

    The lock's "via" comments say who needs whom. Raises `BuildFailed` for a root that is not locked."""
    blocks = {m["name"]: m[0] for m in re.finditer(r"^(?P<name>[a-z0-9][a-z0-9._-]*)==.*(?:\n[ \t]+.*)*", lock, re.M)}
    wanted = set(roots)
    if missing := wanted - set(blocks):
        raise BuildFailed(f"not in the lock file: {', '.join(sorted(missing))}; run make lock")
    users = {
        name: set(re.findall(r"^ +#(?: +via)? +([a-z0-9][a-z0-9._-]*)$", text, re.M)) for name, text in blocks.items()
    }
    while more := {name for name, by in users.items() if by & wanted} - wanted:
        wanted |= more
    return "".join(blocks[name] + "\n" for name in sorted(wanted))


def _sources() -> Iterator[tuple[str, Path]]:
    """(path below the package folder, file) of everything of ours that is frozen, in order."""
    for entry in OWN:
        package, _, rest = entry.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise BuildFailed(f"the package {package} is not installed here; run make setup")
        root = Path(spec.origin).parent
        start = root / rest
        files = sorted(start.rglob("*.py")) if start.is_dir() else [start]
        for file in files:
            yield f"{package}/{file.relative_to(root)}", file
        if package == "labapex_runner":
            yield f"{package}/runner.spec", root / "runner.spec"


def _digest(pins: str, sources: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for part in (sys.version, platform.machine(), *platform.libc_ver(), pins):
        digest.update(part.encode() + b"\0")
    for name, file in sources.items():
        digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _environment(folder: Path, pins: str) -> Path:
    """The interpreter of a private environment with just these packages; kept as long as the pins stay the same."""
    python = folder / "bin" / "python"
    marker = folder / "pins"
    wanted = f"# {sys.version!r}\n{pins}"
    if marker.is_file() and marker.read_text() == wanted and python.exists():
        return python
    if importlib.util.find_spec("pip") is None:
        raise BuildFailed("this Python has no pip; make its environment with `python -m venv`, or install python3-pip")
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], "making the build environment failed")
    requirements = folder / "requirements.txt"
    requirements.write_text(pins)
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-input"]
    install += ["--disable-pip-version-check", "--require-hashes", "--only-binary", ":all:", "-r", str(requirements)]
    _run(install, "installing the runner's packages failed; is the package index reachable?")
    marker.write_text(wanted)
    return python


def _freeze(python: Path, packages: Path, out: Path) -> None:
    probe = "from PyInstaller.depend.bindepend import get_python_library_path as p; import sys; sys.exit(not p())"
    environment = {**os.environ, "LABAPEX_PACKAGES": str(packages), "PYTHONHASHSEED": "0"}
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory(dir=out, prefix="freeze-") as scratch:
        tools = Path(scratch) / "tools"
        if shutil.which("objdump") is None:
            # PyInstaller refuses to start without objdump, which it asks only whether stray data files are libraries.
            tools.mkdir()
            stand_in = tools / "objdump"
            stand_in.write_text("#!/bin/sh\nexit 1\n")
            stand_in.chmod(0o755)
            environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"
        _run(
            [str(python), "-c", probe],
            "this Python has no shared library, which a frozen program needs. Debian, Ubuntu: apt install "
            f"libpython3.{sys.version_info.minor}; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install",
            environment,
        )
        spec = packages / "labapex_runner" / "runner.spec"
        places = ["--distpath", f"{scratch}/dist", "--workpath", f"{scratch}/work"]
        command = [str(python), "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", *places, str(spec)]
        _run(command, "PyInstaller failed", {**environment, "PYINSTALLER_CONFIG_DIR": f"{scratch}/config"})
        made = Path(scratch) / "dist"
        with (made / "whole").open("wb") as whole:
            for part in ("runner", "runner.pkg"):
                with (made / part).open("rb") as file:
                    shutil.copyfileobj(file, whole)
        for source, target in (("runner", "bootloader"), ("runner.pkg", "runner.pkg"), ("whole", "runner")):
            (made / source).chmod(
                stat.S_IRUSR | stat.S_IWUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH
            )
            (made / source).replace(out / target)


def _run(command: list[str], complaint: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BuildFailed(f"{complaint}\n{(done.stdout + done.stderr)[-4000:]}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m labapex_runner.build", description="Freeze the generic runner.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runner and its build environment")
    parser.add_argument("--requirements", type=Path, default=DEFAULT_LOCK, help="the lock file with hashes")
    options = parser.parse_args(arguments)
    try:
        built = build(options.out.resolve(), options.requirements)
    except LabApexError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{'built' if built else 'up to date'}: {options.out / 'runner'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
