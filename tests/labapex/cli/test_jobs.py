from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.labapex.cli.conftest import Labapex
from tests.labapex.memory_platform import Chapter, MemoryPlatform, happy_story, unreachable

from labapex.protocol.api import Events, SeriesView
from labapex.protocol.records import Console
from labapex.protocol.spec import JobSpec
from labapex.protocol.states import JobState

SPEC = JobSpec.model_validate({"script": "train.py", "epochs": 3, "budget": 10})
SCRIPT_TRACEBACK = (
    'Traceback (most recent call last):\n  File "train.py", line 3, in <module>\nValueError: no such digit'
)


def test_run_follows_a_job_to_its_verdict_and_exits_0(labapex: Labapex, job_folder: Path) -> None:
    result = labapex("run", job_folder / "labapex.yaml", "-y")
    assert result.code == 0
    assert "train.py --epochs 3" in result.err  # the plan
    assert "Live page: https://apex.test/jobs/" in result.err
    assert "12/12" in result.err
    assert "CPU (no NVIDIA driver on this host) AMD EPYC" in result.err
    assert "Test: 98 %" in result.err
    for word in ("verified", "log-count", "decides", "detection", "refunded"):
        assert word in result.out
    assert "labapex pull" in result.err


def test_the_live_page_is_printed_before_anything_happens(labapex: Labapex, job_folder: Path) -> None:
    err = labapex("run", job_folder, "-y").err
    assert err.index("Live page") < err.index("submitted") < err.index("running")


def test_a_start_that_is_named_by_a_flag_beats_the_files_and_is_in_the_plan(
    labapex: Labapex, platform: MemoryPlatform, job_folder: Path
) -> None:
    with (job_folder / "labapex.yaml").open("a") as file:
        file.write(f"start_from: {'ab' * 32}\n")
    certificates = ("cd" * 32, "ef" * 32)
    flags = [flag for certificate in certificates for flag in ("--start-from", certificate)]
    result = labapex("run", job_folder, "-y", *flags)
    assert result.code == 0, result.err
    (job,) = platform.jobs.values()
    assert job.view.spec.start_from == certificates
    assert certificates[0] in "".join(result.err.split())


def test_the_last_line_of_run_json_is_the_summary(labapex: Labapex, job_folder: Path) -> None:
    result = labapex("run", job_folder, "-y", "--json")
    assert result.code == 0
    assert len(result.out.splitlines()) == 1
    summary = result.json
    assert summary["verdict"] == "verified"
    assert summary["deciding_rule"] is None
    assert summary["loss_logs"] == summary["epochs"] * summary["iterations_per_epoch"] == 12
    assert summary["rules"]["log-count"] == {"value": 12.0, "limit": 12.0, "result": "pass"}
    assert summary["replay_max_error"] == 0.0
    assert (summary["opened_bytes"], summary["all_checkpoint_bytes"]) == (2048, 1 << 20)
    assert (summary["verify_seconds"], summary["train_seconds"]) == (1.5, 10.0)
    assert (summary["package_ms"], summary["first_loss_seconds"]) == (12.5, 3.25)
    assert (summary["paid"], summary["refunded"]) == (5_000_000, 5_000_000)
    assert summary["url"].endswith(f"/jobs/{summary['job']}/")


def test_a_rejected_job_exits_104_names_the_rule_and_prints_the_summary_too(
    labapex: Labapex, platform: MemoryPlatform, job_folder: Path
) -> None:
    platform.rejected_by = "batch-order"
    platform.story = [*happy_story()[:-1], Chapter(JobState.REJECTED, reason="batch-order failed")]
    result = labapex("run", job_folder, "-y", "--json")
    assert result.code == 104
    assert "error: rejected by the rule 'batch-order': segment 3 ended in another state" in result.err
    assert (result.json["verdict"], result.json["deciding_rule"], result.json["paid"]) == ("rejected", "batch-order", 0)


def test_a_script_that_fails_the_preflight_exits_100_with_its_own_traceback(
    labapex: Labapex, platform: MemoryPlatform, job_folder: Path
) -> None:
    platform.story = [Chapter(JobState.REFUSED, reason=SCRIPT_TRACEBACK, knows_iterations=False)]
    result = labapex("run", job_folder, "-y", "--json")
    assert result.code == 100
    assert 'File "train.py", line 3' in result.err
    assert result.err.splitlines()[-1] == "error: refused by the preflight: ValueError: no such digit"
    assert result.json["verdict"] is None


def test_a_budget_that_does_not_cover_the_job_exits_5(
    labapex: Labapex, platform: MemoryPlatform, job_folder: Path
) -> None:
    platform.story = [
        Chapter(JobState.REFUSED, reason="budget too small: 3 epochs come to 30 credits", knows_iterations=False)
    ]
    assert labapex("run", job_folder, "-y").code == 5
    platform.available = 1
    result = labapex("run", job_folder, "-y")
    assert (result.code, result.err.splitlines()[-1]) == (5, "error: the budget is more than you have; lower it")


def test_a_script_whose_error_speaks_of_a_budget_still_failed_as_a_script(
    labapex: Labapex, platform: MemoryPlatform, job_folder: Path
) -> None:
    platform.story = [
        Chapter(
            JobState.REFUSED,
            reason="Traceback (most recent call last):\n  x\nKeyError: 'budget'",
            knows_iterations=False,
        )
    ]
    assert labapex("run", job_folder, "-y").code == 100


def test_a_job_that_fails_while_training_shows_the_scripts_stderr(
    labapex: Labapex, platform: MemoryPlatform, job_folder: Path
) -> None:
    platform.story = [
        Chapter(console=(Console(stream="stderr", text=SCRIPT_TRACEBACK + "\n"),)),
        Chapter(JobState.FAILED, reason="the script ended with an error"),
    ]
    result = labapex("run", job_folder, "-y")
    assert result.code == 100
    last = result.err.splitlines()[-1]
    assert last == "error: the job failed: ValueError: no such digit (the script ended with an error)"


def test_ctrl_c_detaches_and_says_how_to_come_back(
    labapex: Labapex, platform: MemoryPlatform, job_folder: Path
) -> None:
    def interrupt(request: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    requests = 1 + 2 * 3 + 1 + 2  # me, HEAD and PUT of each file, the job, two questions for events
    platform.faults.extend([*[None] * requests, interrupt])
    result = labapex("run", job_folder, "-y")
    job = next(iter(platform.jobs))
    assert result.code == 130
    assert f"labapex logs -f {job}" in result.err
    assert not platform.jobs[job].view.state.ended
    assert labapex("logs", "-f", job).code == 0


def test_a_platform_that_goes_away_is_waited_for(labapex: Labapex, platform: MemoryPlatform, job_folder: Path) -> None:
    platform.faults.extend([*[None] * 9, *[unreachable] * 10])
    result = labapex("run", job_folder, "-y")
    assert result.code == 0
    assert "no answer from the platform, still trying" in result.err


def test_detached_submission_prints_the_id_on_stdout(
    labapex: Labapex, platform: MemoryPlatform, job_folder: Path
) -> None:
    result = labapex("run", job_folder, "-y", "-d")
    assert result.out.strip() == str(next(iter(platform.jobs)))
    assert labapex("run", job_folder, "-y", "-d", "--json").json["state"] == "submitted"


def test_flags_beat_the_file(labapex: Labapex, platform: MemoryPlatform, job_folder: Path) -> None:
    labapex("run", job_folder, "-y", "-d", "--epochs", 5, "--budget", "2.5", "--name", "mine")
    spec = next(iter(platform.jobs.values())).view.spec
    assert (spec.epochs, spec.budget_micro, spec.name) == (5, 2_500_000, "mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("epoch: 3\n", "unknown field 'epoch'; did you mean 'epochs'?"),
        ("script: gone.py\n", "script: there is no file 'gone.py'"),
        ("budget: lots\n", "budget"),
        ("epochs: 0\n", "epochs"),
        ("args: [--lr, 0.10]\n", 'args: write 0.1 in quotes, "0.1"'),
        ("args: --lr 0.1\n", "args: must be a list"),
        ("data: nowhere\n", "data: there is no folder 'nowhere'"),
        ("script: ../train.py\n", "script"),
        ("a: [\n", "line"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_and_exit_2(
    labapex: Labapex, platform: MemoryPlatform, job_folder: Path, change: str, message: str
) -> None:
    with (job_folder / "labapex.yaml").open("a") as file:
        file.write(change)
    result = labapex("run", job_folder, "-y")
    assert result.code == 2
    assert message in result.err.splitlines()[-1]
    assert result.err.splitlines()[-1].startswith("error: ")
    assert platform.jobs == {}


def test_a_spec_file_that_is_too_long_is_not_read(labapex: Labapex, job_folder: Path) -> None:
    (job_folder / "labapex.yaml").write_bytes(b"#" * (1 << 20))
    result = labapex("run", job_folder, "-y")
    assert (result.code, "longer than" in result.err) == (2, True)


def test_without_a_file_the_error_names_it(labapex: Labapex, tmp_path: Path) -> None:
    result = labapex("run", tmp_path / "labapex.yaml")
    assert (result.code, "labapex.yaml; `labapex init` writes one" in result.err) == (2, True)


def test_a_wrong_token_is_said_before_any_file_is_sent(
    labapex: Labapex, platform: MemoryPlatform, job_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABAPEX_TOKEN", "wrong-token-entirely")
    result = labapex("run", job_folder, "-y")
    assert result.code == 3
    assert "'wrong…' from the environment variable LABAPEX_TOKEN" in result.err
    assert platform.seen == ["GET me/"]


def test_a_platform_that_is_not_there_exits_6(labapex: Labapex, platform: MemoryPlatform) -> None:
    platform.faults.extend([unreachable] * 5)
    assert labapex("ps").code == 6


def test_an_unexpected_error_is_one_line_too(
    labapex: Labapex, platform: MemoryPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(request: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError("oh\nno")

    platform.faults.append(explode)
    result = labapex("ps")
    assert result.code == 1
    assert result.err == "error: unexpected ZeroDivisionError: oh no (set LABAPEX_DEBUG=1 to see where)\n"


def test_ps_lists_jobs_the_newest_first(labapex: Labapex, platform: MemoryPlatform) -> None:
    ids = [str(platform.add(SPEC).id) for _ in range(3)]
    out = labapex("ps").out
    assert [line.split()[0] for line in out.splitlines()[1:]] == [job[:8] for job in reversed(ids)]
    assert [job["id"] for job in labapex("ps", "--json").json] == list(reversed(ids))


def test_a_job_is_found_by_the_beginning_of_its_id(labapex: Labapex, platform: MemoryPlatform) -> None:
    job = platform.add(SPEC).id
    assert labapex("show", str(job)[:8], "--json").json["job"]["id"] == str(job)
    assert labapex("show", "ffffffff").code == 4
    assert labapex("show", "zz").code == 2


def test_show_of_a_finished_job_has_verdict_and_receipt(labapex: Labapex, platform: MemoryPlatform) -> None:
    job = platform.add(SPEC).id
    labapex("logs", "-f", job)
    shown = labapex("show", job, "--json").json
    assert shown["verdict"]["verdict"]["verdict"] == "verified"
    assert shown["receipt"]["held"] == shown["receipt"]["paid"] + shown["receipt"]["refunded"]
    assert "log-count" in labapex("show", job).out


def test_logs_keep_the_scripts_stdout_and_stderr_apart(labapex: Labapex, platform: MemoryPlatform) -> None:
    platform.story = happy_story()[1:]
    job = platform.add(SPEC).id
    result = labapex("logs", job)
    assert (result.out, result.err) == ("epoch 3\nTest: 98 %\n", "warn\n")
    lines = labapex("logs", job, "--json").out.splitlines()
    assert json.loads(lines[0]) == {"stream": "stdout", "text": "epoch 3\nTest: 98 %\n"}


def test_a_console_cannot_command_the_terminal(labapex: Labapex, platform: MemoryPlatform) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[0m \x9b5n [bold]kept[/bold]\r\nnext\n"
    platform.story = [
        Chapter(console=(Console(stream="stdout", text=evil),), reason="why \x1b[2J"),
        Chapter(JobState.VERIFIED),
    ]
    job = platform.add(SPEC).id
    plain = labapex("logs", job).out
    assert plain == "red 5n [bold]kept[/bold]\nnext\n"
    followed = labapex("logs", "-f", job)
    assert "\x1b" not in followed.err + followed.out


def test_stop_cancels_and_the_follower_exits_103(labapex: Labapex, platform: MemoryPlatform) -> None:
    job = platform.add(SPEC).id
    assert labapex("stop", job, "--json").json["state"] == "cancelled"
    result = labapex("logs", "-f", job)
    assert (result.code, result.err.splitlines()[-1]) == (103, "error: the job was cancelled: stopped by its owner")


def test_a_stopped_job_is_resumed_by_a_command(labapex: Labapex, platform: MemoryPlatform) -> None:
    job = platform.add(SPEC).id
    assert "stopped by its owner" in labapex("stop", job).err
    said = labapex("resume", job)
    assert (said.code, "is queued: resumed by its owner" in said.err) == (0, True)
    assert labapex("show", job, "--json").json["job"]["state"] == "queued"


def test_an_address_without_encryption_is_warned_about(
    labapex: Labapex, platform: MemoryPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "warning" in labapex("whoami", "--url", "http://apex.test").err
    assert "warning" not in labapex("whoami", "--url", "http://127.0.0.1:8000").err


def test_the_double_keeps_to_the_contract(platform: MemoryPlatform) -> None:
    """Whatever chapter is asked for, the loss records of all answers join without a gap."""
    job = platform.jobs[platform.add(SPEC).id]
    cursor, have = "", 0
    for _ in job.story:
        events: Events = platform._events(job, cursor)
        assert events.first == have
        have, cursor = have + len(events.losses), events.cursor
    assert have == 12


def test_metrics_gives_every_loss_once_as_lines_and_as_json(labapex: Labapex, platform: MemoryPlatform) -> None:
    platform.story = happy_story()[1:3]
    platform.story[0].series = (SeriesView(name="rate\x1b[31m", iterations=(0, 5), values=(0.5, None)),)
    platform.story[1].series = (SeriesView(name="rate\x1b[31m", iterations=(5, 10), values=(0.25, 0.125)),)
    job = platform.add(SPEC).id
    losses = [2.0 / (i + 1) for i in range(10)] + [None, 0.1]
    told = labapex("metrics", job, "--json").json
    assert told["losses"] == losses
    assert [sample["source"] for sample in told["samples"]] == ["cpu"]
    assert told["series"] == {"rate\x1b[31m": [[0, 0.5], [5, 0.25], [10, 0.125]]}
    lines = labapex("metrics", job, "--csv").out.splitlines()
    assert [line.split(",")[0] for line in lines] == [str(i) for i in range(12)]
    assert [float(line.split(",")[1]) if line.split(",")[1] else None for line in lines] == pytest.approx(losses)
    summary = labapex("metrics", job).out
    assert "first 2, last 0.1, least 0.1 at 11" in summary
    assert "not finite" in summary
    assert "0.125 at 10, 3 points" in summary
    assert "nobody verifies" in summary
    assert "\x1b" not in summary
    assert "GPU" not in summary


def test_metrics_of_a_run_that_began_again_are_those_of_the_new_run(labapex: Labapex, platform: MemoryPlatform) -> None:
    platform.story = [
        Chapter(JobState.RUNNING, losses=(9.0, 8.0)),
        Chapter(JobState.RUNNING, losses=(1.0,), restarted=True),
        Chapter(JobState.RUNNING),
    ]
    assert labapex("metrics", platform.add(SPEC).id, "--json").json["losses"] == [1.0]


def test_no_colour_reaches_a_pipe_nor_a_terminal_that_asks_for_none(
    labapex: Labapex, platform: MemoryPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = platform.add(SPEC).id
    assert "\x1b" not in labapex("show", job).out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in labapex("show", job).out


def test_a_shell_is_told_the_commands_to_complete() -> None:
    asked = {"_LABAPEX_COMPLETE": "complete_bash", "COMP_WORDS": "labapex me", "COMP_CWORD": "1"}
    command = Path(sys.executable).with_name("labapex")
    done = subprocess.run([command], env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["metrics"]
