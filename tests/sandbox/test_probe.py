"""A hostile script meets the sandbox of each program that runs foreign code, started by root and by an ordinary user."""

from __future__ import annotations

import os
from typing import Any

import pytest
from tests.sandbox import cells

from labapex import landlock, sandbox


def absent(starter: str) -> str | None:
    """What this machine lacks for a cell."""
    return cells.missing(starter) or sandbox.available() or landlock.lacking()


@pytest.fixture(
    scope="module", params=[(role, starter) for role in cells.ROLES for starter in cells.STARTERS], ids="-".join
)
def found(request: pytest.FixtureRequest) -> Any:
    role, starter = request.param
    if (reason := absent(starter)) is not None:
        assert "CI" not in os.environ, reason
        pytest.skip(reason)
    return cells.run(role, starter)


def test_everything_that_a_script_has_no_business_with_is_refused(found: dict[str, Any]) -> None:
    assert len(found["refused"]) > 30
    assert [name for name, reason in found["refused"].items() if reason is None] == []


def test_what_training_needs_works(found: dict[str, Any]) -> None:
    assert {name: reason for name, reason in found["works"].items() if reason is not None} == {}


def test_bombs_end_themselves_with_the_limit_named_and_nobody_else(found: dict[str, Any]) -> None:
    bombs = found["bombs"]
    assert bombs.pop("a bystander") is None
    named = {name: reason.rpartition(" ")[2] for name, reason in bombs.items()}
    assert named == {"fork bomb": "(processes)", "memory bomb": "(memory)", "disk bomb": "(disk)"}
