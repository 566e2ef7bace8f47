from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tests.labapex.memory_platform import MemoryPlatform

from labapex.cli import options
from labapex.cli.main import main
from labapex.client import Client


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of stdout."""
        return json.loads(self.out.splitlines()[-1])


Labapex = Callable[..., Outcome]


@pytest.fixture
def labapex(
    platform: MemoryPlatform, logged_in: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Labapex:
    """The command line with a platform in memory at the other end, and without waiting."""
    monkeypatch.setattr(
        options, "Client", functools.partial(Client, transport=platform.transport, sleep=lambda seconds: None)
    )

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["labapex", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        assert "client_sdk" not in captured.err, "our own traceback reached the user"
        return Outcome(code, captured.out, captured.err)

    return run
