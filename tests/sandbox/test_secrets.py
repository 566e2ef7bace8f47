"""Where the keys of a running job are, and are not: in the frozen runner, in the worker's sandbox, seen by root and by others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sandbox import live
from tests.sandbox.live import Live

from labapex import sandbox
from labapex_runner.supervisor import ON_DISK
from labapex_worker import journal

missing = sandbox.available()
pytestmark = [
    pytest.mark.skipif(missing is not None, reason=f"no sandbox can be had: {missing}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into other users' processes"),
]
gdb = pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is missing; install the package gdb")

HOSTS_OWN = {"LD_PRELOAD": "", "PYTHONPATH": "/nowhere", "PYTHONSTARTUP": "/nowhere", "A_TOKEN": "of-the-host"}
BUILT = {
    "LABAPEX_SITE_PACKAGES", "LABAPEX_AGENT_SOCKET", "LABAPEX_JOB_FOLDER", "TMPDIR", "USER", "LOGNAME", "LANG", "PATH", "PWD",
    "PYTHONHASHSEED", "OMP_NUM_THREADS", "OMP_DYNAMIC", "MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_CBWR", "OPENBLAS_NUM_THREADS",
    "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "CUBLAS_WORKSPACE_CONFIG",
}  # fmt: skip
OF_THE_BOOTLOADER = re.compile(r"_PYI_.*|LD_LIBRARY_PATH")
OF_THE_DEVICES = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(scope="module")
def job() -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HOSTS_OWN.items():
            patch.setenv(name, value)
        with live.running() as it:
            yield it


def test_no_key_is_in_the_memory_of_what_runs_the_script_and_root_finds_them_in_the_supervisor(job: Live) -> None:
    signing = live.signing_key(job.supervisor, job.request.signing_key)
    assert signing is not None, "the search itself does not work"
    keys = {**job.keys, "signing key": signing}
    assert {"run key", "signing key"} <= live.holds(job.supervisor, keys)
    assert job.trainers
    given = {"data": live.DATA * 3}
    assert given.keys() <= live.holds(job.trainers[0], given), "the search itself does not work"
    for pid in job.trainers:
        assert live.holds(pid, keys) == set()


def test_the_environment_is_built_and_holds_no_secret_and_nothing_of_the_hosts(job: Live) -> None:
    keys = job.keys.values()
    for pid in (job.supervisor, *job.trainers):
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        names = {entry.split(b"=")[0].decode() for entry in entries if entry} - {OF_THE_DEVICES}
        assert {name for name in names if not OF_THE_BOOTLOADER.fullmatch(name)} == BUILT
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert not [key for key in keys for text in (line, *entries) if key in text or key.hex().encode() in text]


def test_no_core_is_ever_written(job: Live) -> None:
    for pid in (job.supervisor, *job.trainers):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0", limits)
        assert Path(f"/proc/{pid}/mem").stat().st_uid == 0, "not dumpable: its files in /proc are root's"


def test_another_process_of_the_same_user_outside_reads_no_memory(job: Live) -> None:
    read = "import sys; open(f'/proc/{sys.argv[1]}/mem', 'rb').read(0)"
    python = shutil.which("python3", path="/usr/bin:/bin")
    if python is None:
        pytest.skip("the sandbox's user has no Python here: no python3 in /usr/bin")
    control = live.as_sandbox_user([python, "-c", "import os; open(f'/proc/{os.getpid()}/mem', 'rb').read(0)"])
    assert control.returncode == 0, "the question itself does not work"
    for pid in (job.supervisor, *job.trainers):
        assert "PermissionError" in live.as_sandbox_user([python, "-c", read, str(pid)]).stderr


@gdb
def test_no_debugger_of_the_same_user_attaches_from_outside(job: Live) -> None:
    """The user is no stranger to its own user namespaces: the outermost has to be root's (`labapex.drop`)."""
    attach = ["gdb", "-nx", "-batch", "-ex", "x/2gx $sp", "-p"]
    victim = subprocess.Popen(["/bin/sleep", "600"], user="nobody", group="nogroup", extra_groups=[], cwd="/")
    try:
        control = live.as_sandbox_user([*attach, str(victim.pid)])
        if "not permitted" in control.stderr:
            pytest.skip("this kernel (yama) refuses debuggers of the same user anyway")
        assert "0x" in control.stdout
    finally:
        victim.kill()
        victim.wait()
    for pid in (job.supervisor, *job.trainers):
        seen = live.as_sandbox_user([*attach, str(pid)])
        assert "Operation not permitted" in seen.stderr
        assert "0x" not in seen.stdout


@gdb
def test_no_debugger_attaches_from_inside(job: Live) -> None:
    assert set(job.said["gdb"]) == {"supervisor", "trainer"}
    for said in job.said["gdb"].values():
        assert "ptrace: Operation not permitted" in said


def _shown(home: Path) -> set[str]:
    """What of the client's files stands anywhere below a worker's home, by file names and by `grep -r`."""
    shown = {path.name for path in home.rglob("*") if path.name in ("train.py", "secret.txt", "helper_of_mine.py")}
    for name, text in {
        "script": "a remark that only its author knows",
        "helper": "an idea of mine",
        "data": live.DATA.decode(),
    }.items():
        found = subprocess.run(["grep", "-rFqa", "--", text, str(home)], check=False).returncode
        assert found in (0, 1)
        shown |= {name} if found == 0 else set()
    return shown


def test_nothing_of_the_clients_files_is_on_the_hosts_disk_while_a_job_runs_and_afterwards(job: Live) -> None:
    assert _shown(job.home.path) == set()
    with live.running() as it:
        journal.kill(it.folder.path)
        assert _shown(it.home.path) == set()


def test_what_does_not_fit_into_memory_lies_on_disk_and_the_client_is_told() -> None:
    with live.running(private_bytes=0) as it:
        assert _shown(it.home.path) == {"train.py", "secret.txt", "helper_of_mine.py", "script", "helper", "data"}
        assert ON_DISK in it.log.console("stderr")
