"""`labapex alerts`: shows how one is told, changes what was asked for and nothing else."""

from __future__ import annotations

import json

from tests.labapex.cli.conftest import Labapex
from tests.labapex.memory_platform import MemoryPlatform


def test_it_shows_and_changes_one_thing_at_a_time(labapex: Labapex, platform: MemoryPlatform) -> None:
    assert "mail     no" in labapex("alerts").out
    assert "to ada@example.org" in labapex("alerts", "--mail").out
    new = labapex("alerts", "--webhook", "https://ops.example.org/hook", "--json")
    assert json.loads(new.out)["secret"] == "whsec_1"
    assert platform.channels.mail is True
    shown = labapex("alerts", "--budget-share", "50", "--trial")
    assert "secret" not in shown.out
    assert "from 50 %" in shown.out
    assert "on its way" in shown.err
    assert labapex("alerts", "--no-webhook").out.splitlines()[1] == "webhook  no"


def test_a_share_that_is_none_is_wrong_input(labapex: Labapex) -> None:
    assert labapex("alerts", "--budget-share", "0").code == 2
    assert labapex("alerts", "--webhook", "https://a.example", "--no-webhook").code == 2
