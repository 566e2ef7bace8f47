"""The cells that there are: each program that meets foreign code, started by root and by an ordinary user."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.sandbox.cell import ROOT, RUNNER

from labapex_runner.build import build

ROLES = ("worker", "verifier")
STARTERS = ("root", "user")
ORDINARY = "nobody"

# An interpreter or a checkout in root's home is brought to the ordinary user, in a mount namespace of its own: "$0" is closed
_BRING = """
set -eu
mount -t tmpfs -o mode=0755 cell /mnt
n=0; for path in "$@"; do
    [ "$path" != -- ] || break
    mkdir "/mnt/$n"; mount --rbind "$path" "/mnt/$n"; n=$((n + 1))
done
mount -t tmpfs -o mode=0755 cell "$0"
n=0; while [ "$1" != -- ]; do mkdir -p "$1"; mount --rbind "/mnt/$n" "$1"; n=$((n + 1)); shift; done
shift
exec "$@"
"""


def missing(starter: str) -> str | None:
    """Why a starter cannot be played here; None where it can."""
    if starter == "root" and os.geteuid() != 0:
        return "only root can start it as root"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "setpriv is missing; install util-linux"
    return None


def _brought() -> list[str]:
    """The command that lets others see what this test needs of a folder that is closed to them."""
    needed = {Path(sys.base_prefix), Path(sys.prefix), ROOT}
    closed = {path: next((p for p in reversed(path.parents) if not p.stat().st_mode & 1), None) for path in needed}
    if not (doors := set(closed.values()) - {None}):
        return []
    (door,) = doors
    behind = [str(path) for path, at in closed.items() if at is not None]
    return ["unshare", "--mount", "--propagation=private", "sh", "-c", _BRING, str(door), *behind, "--"]


def run(role: str, starter: str) -> dict[str, Any]:
    """What came of the probe in one cell. Raises `RuntimeError` with what the cell says where it fails."""
    build(RUNNER)
    folder = Path(tempfile.mkdtemp(prefix="labapex-cell-", dir="/var/tmp"))
    line = [sys.executable, str(ROOT / "tests" / "sandbox" / "cell.py"), role, str(folder)]
    if starter == "user" and os.geteuid() == 0:
        user = pwd.getpwnam(ORDINARY)
        os.chown(folder, user.pw_uid, user.pw_gid)
        drop = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--inh-caps=-all"]
        line = [*_brought(), *drop, "--bounding-set=-all", "--", *line]
    sources = os.pathsep.join(str(ROOT / name) for name in (".", "client_sdk", "worker_agent", "platform"))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": sources, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            line, env=environment, cwd=folder, capture_output=True, text=True, timeout=240, check=False
        )
    finally:
        subprocess.run(["rm", "-rf", "--", folder], check=True)
    if done.returncode:
        raise RuntimeError(f"{role} started by {starter}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
