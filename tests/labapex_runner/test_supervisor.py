"""Supervisor and trainer as real processes, against an agent played in a thread."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.labapex.test_installed import install
from tests.labapex_runner import standin
from tests.labapex_runner.jobs import Agent, Made, Received, contract, make, new_keys

from labapex import installed, sealing
from labapex.protocol import frames
from labapex.protocol.canonical import Message
from labapex.protocol.limits import Limits
from labapex_runner.host import SITE_PACKAGES
from labapex_runner.supervisor import NO_ENVIRONMENT, ON_DISK, REFUSED, SUCCEEDED, TRAINING_FAILED

ROOT = Path(__file__).parents[2]


class Run:
    """One job in a folder, its agent, and what came of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stderr = b""

    def start(
        self, made: Made, agent: Agent, *flags: str, packages: Path | None = None, events: Path | None = None
    ) -> subprocess.Popen[bytes]:
        self.agent = agent
        agent.start()
        command = [sys.executable, standin.__file__, str(made.path), str(self.folder), str(self.folder / "s"), *flags]
        roots = os.pathsep.join(str(ROOT / name) for name in ("client_sdk", "worker_agent"))
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": roots, SITE_PACKAGES: str(packages or "")}
        environment |= {"EVENTS": str(events)} if events else {}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)

    def __call__(
        self, script: str, *flags: str, drop_after: int | None = None, packages: Path | None = None
    ) -> tuple[int, Received]:
        made = make(self.folder, {"train.py": script.encode(), "data/x.txt": b"some data"})
        return self.finish(
            self.start(made, Agent(self.folder / "s", made, drop_after=drop_after), *flags, packages=packages)
        )

    def finish(self, process: subprocess.Popen[bytes]) -> tuple[int, Received]:
        self.stderr = process.communicate(timeout=60)[1]
        if self.agent.error is not None:
            raise self.agent.error
        return process.returncode, self.agent.received


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    it = Run(tmp_path)
    yield it
    it.agent.close()


def test_a_script_that_ends_well_leaves_a_complete_signed_log(run: Run) -> None:
    script = "for i in range(120):\n    sink.scalars({'rate': i / 8})\n    record(i / 2)\n"
    status, got = run(script + "sink.scalars({'accuracy': 0.5})\nprint('done', open('data/x.txt').read())")
    assert status == SUCCEEDED
    assert got.fin is not None
    assert got.losses == [i / 2 for i in range(120)]
    assert got.series == {"rate": {i: i / 8 for i in range(120)}, "accuracy": {120: 0.5}}
    assert got.console("stdout") == "done some data\n"
    assert got.console("stderr") == ON_DISK
    assert got.request is not None
    assert got.request.environment == standin.environment(1)
    assert {p.name for p in run.folder.iterdir()} == {"executable", "runner", "s", "work", "states", "tmp"}
    assert run.stderr == b""


def test_an_agent_that_goes_away_again_and_again_costs_no_record(run: Run) -> None:
    status, got = run("for i in range(2000):\n    record(float(i))", drop_after=3)
    assert status == SUCCEEDED
    assert run.agent.connections > 5
    assert got.losses == [float(i) for i in range(2000)]


def test_a_script_that_raises_shows_its_traceback_in_the_encrypted_console_only(run: Run) -> None:
    status, got = run("record(1.0)\nprint('before')\nraise ValueError('my mistake')", drop_after=None)
    assert status == TRAINING_FAILED
    assert got.fin is None
    assert got.losses == [1.0]
    assert got.console("stdout") == "before\n"
    assert "ValueError: my mistake" in got.console("stderr")
    assert b"my mistake" not in run.stderr


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("os._exit(0)", "ended with status 0 before training was complete"),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("sys.exit(7)", "SystemExit: 7"),
        ("sink.iteration(7, 0.0, 0.0)\nimport time\ntime.sleep(60)", "iteration 7 was recorded instead of 1"),
        ("os.write(sink._descriptor, b'\\xff' * 100)\nimport time\ntime.sleep(60)", "broke the recording"),
    ],
)
def test_a_script_that_ends_in_another_way_is_a_failure_with_its_reason(run: Run, ending: str, said: str) -> None:
    status, got = run(f"import os, sys\nrecord(1.0)\n{ending}")
    assert status == TRAINING_FAILED
    assert got.fin is None
    assert said in got.console("stderr")
    assert (got.failure is None) == ("SIGKILL" in said)  # a signal may be the host's doing, all else is the script's


HOARD = "hoard = bytearray(256 << 20)\nhoard[::4096] = bytes([1]) * (256 << 8)\n"


@pytest.mark.parametrize(
    ("taking", "named"),
    [
        (HOARD, "of memory; 128 MiB are its limit: ask for more in labapex.yaml (limits.memory)"),
        ("import os\nif not os.fork():\n    os.setsid()\n" + HOARD, "of memory; 128 MiB are its limit"),
        (
            "import os\nfile = open('hoard', 'wb')\nos.posix_fallocate(file.fileno(), 0, 65 << 20)\n",
            "the job's files took 65 MiB; 64 MiB are its limit: ask for more in labapex.yaml (limits.disk)",
        ),
        (
            "import os\nfor _ in range(40):\n    if not os.fork():\n        __import__('signal').pause()\n",
            "40 are its limit: ask for more in labapex.yaml (limits.processes)",
        ),
    ],
    ids=["memory", "memory of another session", "disk", "processes"],
)
def test_a_job_that_takes_more_than_its_contract_allows_is_ended_with_the_limit_named(
    run: Run, taking: str, named: str
) -> None:
    limits = Limits(memory=128 << 20, disk=64 << 20, processes=40)
    script = f"record(1.0)\n{taking}import signal\nsignal.pause()"
    made = make(run.folder, {"train.py": script.encode()}, terms=contract().model_copy(update={"limits": limits}))
    status, got = run.finish(run.start(made, Agent(run.folder / "s", made)))
    assert status == TRAINING_FAILED, run.stderr
    assert got.fin is None
    assert got.losses == [1.0]
    assert got.failure is not None
    assert named in got.failure
    assert got.failure in got.console("stderr")


@pytest.mark.parametrize(
    ("ending", "counted", "named"),
    [
        ("os.kill(os.getpid(), 9)", "oom 1\noom_kill 1\n", True),
        ("import signal\nsignal.pause()", "oom 3\noom_kill 2\n", True),  # something that it had started was killed
        ("os.kill(os.getpid(), 9)", "oom 0\noom_kill 1\n", False),  # the host had no memory left
        ("os.kill(os.getpid(), 9)", "low 0\nhigh 0\nmax 7\noom 0\noom_kill 0\noom_group_kill 0\n", False),
        ("os.kill(os.getpid(), 9)", "\xff\n" * 10_000, False),
    ],
    ids=["trainer", "child", "host", "nothing", "rubbish"],
)
def test_what_the_kernel_killed_within_the_jobs_own_control_group_is_the_jobs_matter(
    run: Run, ending: str, counted: str, named: bool
) -> None:
    (run.folder / "memory.events").write_text(counted)
    limits = Limits(memory=1 << 40, disk=1 << 40, processes=10_000)
    script = f"import os\nrecord(1.0)\n{ending}\n"
    made = make(run.folder, {"train.py": script.encode()}, terms=contract().model_copy(update={"limits": limits}))
    process = run.start(made, Agent(run.folder / "s", made), events=run.folder / "memory.events")
    status, got = run.finish(process)
    assert status == TRAINING_FAILED, run.stderr
    if named:
        assert got.failure is not None
        assert "more memory than the 1024 GiB that are its limit, and was killed: ask for more" in got.failure
    else:
        assert got.failure is None, "a host could have done it"


def test_a_host_without_torch_is_told_so_and_no_key_is_asked_for(run: Run) -> None:
    status, got = run("record(1.0)", "no-engine")
    assert status == NO_ENVIRONMENT
    assert b"No module named 'torch'" in run.stderr
    assert got.request is None


def test_a_host_whose_torch_was_altered_is_told_the_file_and_no_key_is_asked_for(run: Run) -> None:
    packages = install(run.folder / "packages")
    (packages / "torch" / "__init__.py").write_bytes(b"patched")
    status, got = run("record(1.0)", packages=packages)
    assert status == NO_ENVIRONMENT
    assert b"torch 2.13.0+test is not what was installed: torch/__init__.py; install it anew" in run.stderr
    assert got.request is None


def test_the_build_of_torch_is_told_with_the_request_for_keys(run: Run) -> None:
    packages = install(run.folder / "packages")
    status, got = run("record(1.0)", packages=packages)
    assert status == SUCCEEDED
    build = installed.find([packages])
    assert build is not None
    assert got.request is not None
    assert got.request.torch_build == build.digest


def _other_manifest(agent: Agent, request: frames.KeyRequest) -> Message:
    manifest = agent.made.manifest.model_copy(update={"expires_at": 1})
    sealed = sealing.seal_release(request.hpke_key, manifest=manifest, keys=agent.made.keys)
    return frames.KeyRelease(lease=agent.lease, sealed=sealed)


def _other_keys(agent: Agent, request: frames.KeyRequest) -> Message:
    sealed = sealing.seal_release(request.hpke_key, manifest=agent.made.manifest, keys=new_keys())
    return frames.KeyRelease(lease=agent.lease, sealed=sealed)


def _refusal(agent: Agent, _: frames.KeyRequest) -> Message:
    return frames.Refusal(code="key-released", message="the key was given out", fatal=True, lease=agent.lease)


@pytest.mark.parametrize("answer", [_other_manifest, _other_keys, _refusal])
def test_keys_that_are_not_for_this_executable_open_nothing(
    run: Run, answer: Callable[[Agent, frames.KeyRequest], Message]
) -> None:
    class Liar(Agent):
        def answers(self, message: Message) -> list[Message]:
            assert isinstance(message, frames.KeyRequest)
            return [answer(self, message)]

    made = make(run.folder, {"train.py": b"record(1.0)"})
    status, _ = run.finish(run.start(made, Liar(run.folder / "s", made)))
    assert status == REFUSED
    assert run.stderr.startswith(b"error: ")
    assert not list((run.folder / "work").iterdir())


SCAN = """
import ctypes, os, resource
class Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
libc = ctypes.CDLL(None)
def holds(inverted):  # the key itself is nowhere in this script, only its complement
    flip = bytes(255 - i for i in range(256))
    with open("/proc/self/maps") as file:
        lines = file.read().splitlines()
    scanned = 0
    for span, mode, *rest in map(str.split, lines):
        start, stop = (int(x, 16) for x in span.split("-"))
        if mode.startswith("rw"):
            buffer = ctypes.create_string_buffer(stop - start)
            here, there = Span(ctypes.addressof(buffer), stop - start), Span(start, stop - start)
            if libc.process_vm_readv(os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0) > 0:
                scanned += stop - start
                if inverted in buffer.raw.translate(flip):
                    return True
    assert scanned > 1_000_000
    return False
decoy = bytes(255 - b for b in bytes.fromhex("DECOY"))
print("decoy", holds(bytes.fromhex("DECOY")))
print("content", holds(bytes.fromhex("CONTENT")))
print("run", holds(bytes.fromhex("RUN")))
print("dumpable", ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), "core", resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_no_key_is_in_the_memory_of_the_process_that_runs_the_script(run: Run) -> None:
    keys = new_keys()
    script = SCAN
    for name, key in (("DECOY", bytes(range(100, 132))), ("CONTENT", keys.content_key), ("RUN", keys.run_key)):
        script = script.replace(name, bytes(255 - b for b in key).hex())
    made = make(run.folder, {"train.py": script.encode()}, keys=keys)
    status, got = run.finish(run.start(made, Agent(run.folder / "s", made)))
    assert status == SUCCEEDED, got.console("stderr")
    said = got.console("stdout").splitlines()
    assert said == ["decoy True", "content False", "run False", "dumpable 0 core (0, 0)"]


def test_the_trainer_does_not_outlive_its_supervisor(run: Run) -> None:
    class Watching(Agent):
        trainer: int | None = None

        def answers(self, message: Message) -> list[Message]:
            answers = super().answers(message)
            if said := self.received.console("stdout"):
                self.trainer = os.pidfd_open(int(said))
                process.kill()
            return answers

    made = make(run.folder, {"train.py": b"import os, signal\nprint(os.getpid())\nsignal.pause()"})
    agent = Watching(run.folder / "s", made)
    process = run.start(made, agent)
    process.communicate(timeout=60)
    agent.join(timeout=0)
    assert agent.trainer is not None
    gone, _, _ = select.select([agent.trainer], [], [], 20)
    os.close(agent.trainer)
    assert gone, "the trainer lives on"
