from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from pathlib import Path

import pytest

from labapex import sandbox
from labapex.sandbox import Confinement
from labapex_worker import journal

missing = sandbox.available()
pytestmark = pytest.mark.skipif(missing is not None, reason=f"no sandbox can be had: {missing}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    return tmp_path


def start(folder: Path, script: str) -> subprocess.Popen[bytes]:
    confinement = Confinement(folder=folder / "job", environment={"PATH": "/usr/bin:/bin"})
    return journal.start(folder, ["sh", "-c", script], confinement)


def ready(folder: Path) -> None:
    """The program makes a pipe and says through it that it runs."""
    while not (folder / "job" / "ready").exists():
        pass
    with (folder / "job" / "ready").open() as pipe:
        pipe.read()


RUNS = "mkfifo ready.new; mv ready.new ready; echo > ready; sleep 1000"


def test_a_folder_in_which_nothing_was_started_says_so(folder: Path) -> None:
    assert journal.look(folder) == journal.NeverStarted()
    journal.kill(folder)


@pytest.mark.parametrize(("script", "code"), [("true", 0), ("exit 3", 3), ("kill -9 $$", 137)])
def test_how_a_program_ended_can_be_read_afterwards(folder: Path, script: str, code: int) -> None:
    start(folder, script).wait()
    assert journal.look(folder) == journal.Ended(code)
    assert str(journal.Ended(137)) == "it was ended by signal 9"


def test_a_program_that_runs_is_seen_running_and_can_be_killed_by_who_did_not_start_it(folder: Path) -> None:
    process = start(folder, RUNS)
    ready(folder)
    assert journal.look(folder) == journal.Alive(process.pid)
    journal.kill(folder)
    assert process.wait() == -signal.SIGKILL
    assert journal.look(folder) == journal.Ended(None)


def test_a_program_whose_keeper_is_killed_dies_with_it(folder: Path) -> None:
    process = start(folder, RUNS)
    ready(folder)
    sandbox.kill_tree(process)
    assert journal.look(folder) == journal.Ended(None)


def test_a_pid_that_another_process_has_got_meanwhile_is_not_mistaken_for_the_program(folder: Path) -> None:
    (folder / "pid").write_text("1")
    (folder / "lock").touch()
    assert journal.look(folder) == journal.Ended(None)


@pytest.mark.parametrize("lost", [b"", b"\0\0"])
def test_what_a_power_cut_left_half_written_is_no_exit_status(folder: Path, lost: bytes) -> None:
    (folder / "lock").touch()
    (folder / "pid").write_bytes(lost)
    (folder / "exit").write_bytes(lost)
    assert journal.look(folder) == journal.Ended(None)


def test_whoever_sees_that_a_program_ended_can_read_all_that_it_said(folder: Path) -> None:
    os.mkfifo(folder / "output")  # what it says is written when somebody takes it
    with os.fdopen(os.open(folder / "output", os.O_RDONLY | os.O_NONBLOCK), "rb") as pipe:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
        process = start(folder, "head -c 20000 /dev/zero; exit 3")
        while not any((folder / name).exists() for name in ("exit.part", "exit")):
            pass
        assert not isinstance(journal.look(folder), journal.Ended)
        os.set_blocking(pipe.fileno(), True)
        assert len(pipe.read()) == 20000
    process.wait()
    assert journal.look(folder) == journal.Ended(3)


def test_last_words_are_one_printable_line_of_a_bounded_file(folder: Path) -> None:
    start(folder, "yes | head -c 1000000; exit 4").wait()
    assert journal.look(folder) == journal.Ended(4)
    assert (folder / "output").stat().st_size == journal.OUTPUT_BYTES
    (folder / "output").write_bytes(b"first\n\x1b[31mlast\xff\n")
    assert journal.last_words(folder) == " [31mlast\N{REPLACEMENT CHARACTER}"
    (folder / "output").unlink()
    assert journal.last_words(folder) == ""


def test_the_program_cannot_reach_its_journal(folder: Path) -> None:
    start(folder, f"echo 0 > {folder}/exit; ls {folder} > seen; exit 5").wait()
    assert journal.look(folder) == journal.Ended(5)
    assert (folder / "job" / "seen").read_text().split() == ["exit", "job"], "it sees a folder of its own making"
