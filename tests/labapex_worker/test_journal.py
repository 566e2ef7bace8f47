from __future__ import annotations

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
