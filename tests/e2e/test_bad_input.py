"""Everything that people do wrong: one line that says what to do, the documented exit code, and no traceback of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e import scripts
from tests.e2e.conftest import running
from tests.e2e.stack import Said, Stack

pytestmark = pytest.mark.e2e

DATA_LIMIT = 1 << 20


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("bad-input")
    settings = {"LABAPEX_DATA_LIMIT_BYTES": str(DATA_LIMIT)}
    with running(request, folder, Stack(folder, settings=settings)) as started:
        yield started


def hand_in(stack: Stack, folder: Path, **environment: str) -> Said:
    """`labapex run`; what every refusal has in common is checked here."""
    said = stack.cli("run", folder, "--yes", "--json", **environment)
    ours = [line for line in said.err.splitlines() if "File " in line and "/labapex" in line]
    assert ours == []
    assert len(said.error) < 1000
    assert stack.client.me().held == 0
    return said


def change(folder: Path, old: str, new: str, *, file: str = "train.py") -> Path:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    return folder


def refused(said: Said) -> dict[str, Any]:
    """A job that the preflight refused: money was never held."""
    summary = said.summary
    assert (summary["state"], summary["paid"], summary["refunded"]) == ("refused", 0, 0)
    assert "No money was held." in said.err
    return summary


# -- seen before a byte is sent ----------------------------------------------------------------------------------------


def test_a_missing_script(stack: Stack, tmp_path: Path) -> None:
    folder = scripts.job(tmp_path / "job")
    (folder / "train.py").unlink()
    said = hand_in(stack, folder)
    assert (said.code, said.out) == (2, "")
    assert f"there is no file 'train.py' in {folder}" in said.error


def test_an_unknown_key_in_the_yaml(stack: Stack, tmp_path: Path) -> None:
    said = hand_in(stack, change(scripts.job(tmp_path / "job"), "epochs:", "epoch:", file="labapex.yaml"))
    assert said.code == 2
    assert "unknown field 'epoch'; did you mean 'epochs'?" in said.error


def test_data_that_no_platform_accepts(stack: Stack, tmp_path: Path) -> None:
    folder = scripts.job(tmp_path / "job")
    with (folder / "data" / "huge.bin").open("wb") as file:
        file.truncate((2 << 30) + 1)  # a hole: it takes no room
    said = hand_in(stack, folder)
    assert said.code == 2
    assert "at most 2,147,483,648 are accepted" in said.error


def test_a_platform_that_is_down(stack: Stack, tmp_path: Path) -> None:
    said = hand_in(stack, scripts.job(tmp_path / "job"), LABAPEX_URL="http://127.0.0.1:1")
    assert said.code == 6
    assert "http://127.0.0.1:1 does not answer" in said.error


# -- refused at the door -----------------------------------------------------------------------------------------------


def test_a_wrong_token(stack: Stack, tmp_path: Path) -> None:
    said = hand_in(stack, scripts.job(tmp_path / "job"), LABAPEX_TOKEN="lat_no_such_token_0123456789")
    assert said.code == 3
    assert "labapex login" in said.error
    assert "no_such_token" not in said.err  # a token is not repeated, not even a wrong one


def test_data_over_this_platforms_limit(stack: Stack, tmp_path: Path) -> None:
    folder = scripts.job(tmp_path / "job")
    (folder / "data" / "large.bin").write_bytes(b"x" * (DATA_LIMIT + 1))
    said = hand_in(stack, folder)
    assert said.code == 2
    assert "data" in said.error


def test_a_budget_over_the_balance(stack: Stack, tmp_path: Path) -> None:
    said = hand_in(stack, scripts.job(tmp_path / "job", budget=5000))
    assert said.code == 5
    assert "top up the account" in said.error


def test_a_budget_of_less_than_the_smallest_price(stack: Stack, tmp_path: Path) -> None:
    said = hand_in(stack, scripts.job(tmp_path / "job", budget=0.000001))
    assert said.code == 5
    assert "budget too small" in said.error


# -- refused by the preflight, before money is held --------------------------------------------------------------------


def test_a_budget_that_no_worker_would_work_for(stack: Stack, tmp_path: Path) -> None:
    said = hand_in(stack, scripts.job(tmp_path / "job", pause=0.05, budget=0.0001))  # 30 x 50 ms come to 0.0004
    assert said.code == 5
    assert "budget too small: 3 epochs of 10 iterations" in said.error
    assert "the budget is 0.0001: raise it" in said.error
    refused(said)


def test_a_script_that_raises_shows_its_own_traceback(stack: Stack, tmp_path: Path) -> None:
    folder = change(scripts.job(tmp_path / "job"), "loss.backward()", "raise KeyError('no such column')")
    said = hand_in(stack, folder)
    assert said.code == 100
    assert "KeyError: 'no such column'" in said.error
    assert "raise KeyError('no such column')" in said.err  # the line itself
    assert "train.py" in said.err
    refused(said)


def test_a_script_that_does_not_reproduce_itself(stack: Stack, tmp_path: Path) -> None:
    folder = change(
        scripts.job(tmp_path / "job"),
        "model(x), y)",
        "model(x + int.from_bytes(__import__('os').urandom(1)) / 256), y)",
    )
    said = hand_in(stack, folder)
    assert said.code == 100
    assert "the script does not reproduce itself" in said.error
    assert "randomness from the operating system" in said.error
    refused(said)


def test_a_script_that_ends_before_a_replay_can_be_tried(stack: Stack, tmp_path: Path) -> None:
    leave = "args.iterations -= 1\n        if args.iterations < 27:\n            raise SystemExit"
    said = hand_in(stack, change(scripts.job(tmp_path / "job"), "time.sleep(args.pause)", leave))
    assert said.code == 100
    assert f"of {scripts.ITERATIONS}" in said.error
    refused(said)


def test_a_script_with_fewer_iterations_than_declared(stack: Stack, tmp_path: Path) -> None:
    said = hand_in(stack, scripts.job(tmp_path / "job", iterations_per_epoch=20))
    assert said.code == 100
    assert "the script ended after 30 iterations of 60" in said.error
    assert "args: ['--epochs', '{epochs}']" in said.error
    refused(said)


# -- found out while training ------------------------------------------------------------------------------------------


def test_a_script_that_stops_where_no_preflight_looks(stack: Stack, tmp_path: Path) -> None:
    folder = change(scripts.job(tmp_path / "job", epochs=20), "range(args.epochs)", "range(args.epochs - 1)")
    with stack.worker("short"):
        said = hand_in(stack, folder)
    assert said.code == 100
    assert "the script ended after 190 iterations; the job's terms are 200" in said.error
    assert (said.summary["state"], said.summary["paid"], said.summary["refunded"]) == ("failed", 0, 10_000_000)


def test_a_script_that_raises_where_no_preflight_looks(stack: Stack, tmp_path: Path) -> None:
    raising = "loss.backward()\n        if epoch == 18:\n            raise KeyError('no such column')"
    with stack.worker("raising"):
        said = hand_in(stack, change(scripts.job(tmp_path / "job", epochs=20), "loss.backward()", raising))
    assert said.code == 100
    assert "KeyError: 'no such column'" in said.error
    assert "raise KeyError('no such column')" in said.err
    assert (said.summary["state"], said.summary["paid"], said.summary["refunded"]) == ("failed", 0, 10_000_000)


def test_a_script_that_takes_more_than_it_asked_for_ends_its_job_and_is_tried_on_no_other_host(
    stack: Stack, tmp_path: Path
) -> None:
    bomb = (
        "loss.backward()\n        if epoch == 4:\n            hoard = torch.ones(300 << 20)\n            time.sleep(60)"
    )
    folder = scripts.job(tmp_path / "job", epochs=6, limits={"memory": "1G"})
    with stack.worker("bombed") as worker:
        said = hand_in(stack, change(folder, "loss.backward()", bomb))
    assert said.code == 100
    assert "GiB of memory; 1 GiB are its limit: ask for more in labapex.yaml (limits.memory)" in said.error
    assert (said.summary["state"], said.summary["paid"], said.summary["refunded"]) == ("failed", 0, 10_000_000)
    assert worker.log.read_text().count(": fetching job ") == 1
