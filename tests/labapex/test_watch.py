from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from labapex import sandbox, watch
from labapex.sandbox import Confinement

missing = sandbox.available()
confined = pytest.mark.skipif(missing is not None, reason=f"no sandbox can be had: {missing}")
MIB = 1 << 20


def run(script: str, folder: Path, **limits: Any) -> tuple[int, str]:
    """How a Python program in the sandbox ends, and what it says."""
    box = Confinement(
        folder=folder,
        read_only=sandbox.python_paths(),
        environment={"PATH": "/usr/bin:/bin"},
        private=((folder / "private", 1 << 30),),
        **limits,
    )
    process = sandbox.popen([sys.executable, "-I", "-c", script], box, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=60)
    return process.returncode, said.decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir(mode=0o700)
    return tmp_path / "job"


@confined
@pytest.mark.parametrize(
    ("bomb", "limits", "named"),
    [
        (
            "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
            {"processes": 40},
            "40 are its limit (processes)",
        ),
        (
            "import os, time\nfor _ in range(3): os.fork()\nhoard = bytes(range(256)) * (16 << 12)\ntime.sleep(99)",
            {"total_memory_bytes": 64 * MIB},
            "64 MiB are its limit (memory)",
        ),
        (
            "import time\nopen('/dev/shm/hoard', 'wb').write(bytes(96 << 20))\ntime.sleep(99)",
            {"total_memory_bytes": 64 * MIB},
            "64 MiB are its limit (memory)",
        ),
        (
            "import os, time\nos.write(os.memfd_create('hoard'), bytes(96 << 20))\ntime.sleep(99)",
            {"total_memory_bytes": 64 * MIB},
            "64 MiB are its limit (memory)",
        ),
        (
            "import time\nopen('private/hoard', 'wb').write(bytes(96 << 20))\ntime.sleep(99)",
            {"total_memory_bytes": 64 * MIB},
            "64 MiB are its limit (memory)",
        ),
        (
            "import time\nfor n in range(64): open(f'{n}', 'wb').write(bytes(1 << 20))\ntime.sleep(99)",
            {"disk_bytes": 32 * MIB},
            "32 MiB are its limit (disk)",
        ),
        (
            "import os, time\nos.mkdir('closed')\nopen('closed/x', 'wb').write(bytes(1))\nos.chmod('closed', 0)\n"
            "for _ in range(999):\n    os.mkdir('folder' * 9); os.chdir('folder' * 9)\ntime.sleep(99)",
            {"disk_bytes": 32 * MIB},
            "(disk)",
        ),
    ],
    ids=[
        "processes",
        "memory",
        "memory files",
        "nameless memory files",
        "private files",
        "disk",
        "a folder that hides its files",
    ],
)
def test_a_bomb_ends_its_job_with_the_limit_named(folder: Path, bomb: str, limits: dict[str, int], named: str) -> None:
    code, said = run(bomb, folder, **limits)
    assert code == watch.EXCEEDED, said
    assert said.splitlines()[-1].startswith("limit: ")
    assert named in said
    subprocess.run(["chmod", "-R", "u+rwx", folder], check=True)
    subprocess.run(["rm", "-rf", folder], check=True)


@confined
def test_memory_that_processes_share_since_a_fork_counts_once(folder: Path) -> None:
    script = "import os, time\nhoard = b'x' * (48 << 20)\nfor _ in range(3): os.fork()\ntime.sleep(2.5)"
    code, said = run(script, folder, total_memory_bytes=160 * MIB)
    assert code == 0, said


@confined
@pytest.mark.parametrize(("script", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 15)", 143)])
def test_a_program_ends_with_the_status_of_its_own(folder: Path, script: str, code: int) -> None:
    assert run(script, folder)[0] == code


@confined
def test_a_program_is_the_first_to_go_where_the_hosts_memory_runs_out(folder: Path) -> None:
    assert run("print(open('/proc/self/oom_score_adj').read(), file=__import__('sys').stderr)", folder) == (
        0,
        "1000\n\n",
    )


def test_a_file_of_no_bytes_counts_too_and_a_link_is_not_followed(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / str(number)).touch()
    (tmp_path / "link").symlink_to("/usr")
    assert watch.disk_used(tmp_path) == 11 * watch.ENTRY_BYTES
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(bytes(MIB))
    assert watch.disk_used(tmp_path) >= 11 * watch.ENTRY_BYTES + MIB


def test_a_full_disk_is_the_jobs_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FREE_BYTES", 1 << 60)
    assert "left to others (disk)" in str(watch.crowded(tmp_path))
    assert watch.exceeded(os.getpid(), tmp_path, None, 1 << 60, None) is None  # it is not what the job took
