"""A worker whose owner cheats: `host.py CHEAT run --home DIR`. It runs each executable with a trainer of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from labapex import sandbox
from labapex_worker import cli, journal


def main() -> None:
    cheat = sys.argv.pop(1)
    os.environ[sandbox.UNCONFINED_SETTING] = "1"  # its own machine
    genuine = journal.start

    def start(folder, argv, confinement):  # type: ignore[no-untyped-def]
        return genuine(folder, [sys.executable, str(Path(__file__).with_name("executable.py")), cheat, *argv], confinement)

    journal.start = start
    cli.main()


if __name__ == "__main__":
    main()
