"""A job whose states are too large to be kept: those that are asked for are made anew on the worker, and the job is paid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import scripts
from tests.e2e.conftest import running
from tests.e2e.stack import Stack

pytestmark = pytest.mark.e2e


@pytest.fixture
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    """A platform that has its workers keep 20 kilobytes."""
    with running(request, tmp_path, Stack(tmp_path, settings={"LABAPEX_KEPT_STATES_GB": "0.00002"})) as started:
        yield started


def test_what_a_host_did_not_keep_it_makes_anew_when_it_is_asked_for(stack: Stack, tmp_path: Path) -> None:
    with stack.worker("small-disk"):
        said = stack.cli("run", scripts.job(tmp_path / "job"), "--yes", "--json")
    assert said.code == 0, said.err + stack.logs()
    assert said.summary["replay_max_error"] == 0.0
    assert "states were made anew" in (tmp_path / "small-disk.log").read_text()
