from __future__ import annotations

import pytest
from tests.labapex.cli.conftest import Labapex
from tests.labapex.memory_platform import MemoryPlatform, unreachable

from labapex import sandbox
from labapex.cli import doctor
from labapex.client import credentials


def states(told: list[dict[str, str]]) -> dict[str, str]:
    return {finding["what"]: finding["state"] for finding in told}


def test_a_machine_that_has_everything_is_told_so(labapex: Labapex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "available", lambda: None)
    result = labapex("doctor", "--json")
    assert result.code == 0, result.err
    found = states(result.json)
    assert found.pop("space") in ("ok", "warning")  # the machine's own
    assert set(found.values()) == {"ok"}
    assert {"platform", "token", "sandbox", "torch"} <= set(found)


def test_what_is_missing_is_named_with_what_to_do_and_exits_1(
    labapex: Labapex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "available", lambda: "bubblewrap is not installed")
    monkeypatch.setattr(doctor, "_NEEDED_TO_TRAIN", ("torch", "no-such-package"))
    monkeypatch.setenv("LABAPEX_TOKEN", "tok-of-somebody-else")
    result = labapex("doctor")
    assert result.code == 1
    for word in ("bubblewrap is not installed", "no-such-package", "does not accept the token", "missing: token"):
        assert word in result.out + result.err
    assert "tok-of-somebody-else" not in result.out + result.err


def test_a_platform_that_is_away_is_one_finding_among_others(labapex: Labapex, platform: MemoryPlatform) -> None:
    platform.faults.extend([unreachable] * 10)
    result = labapex("doctor", "--json")
    assert result.code == 1
    assert states(result.json)["platform"] == "missing"
    assert "labapex" in states(result.json)


def test_a_login_that_others_can_read_is_found(labapex: Labapex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABAPEX_TOKEN")
    credentials.save(credentials.Logins(current="https://apex.test"))
    credentials.path().chmod(0o644)
    result = labapex("doctor", "--json")
    assert states(result.json)["login file"] == "missing"
    assert "chmod 600" in result.out
