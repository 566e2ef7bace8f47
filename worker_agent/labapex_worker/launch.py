"""Run as a program of its own: starts a released version of the agent, and what the owner installed where that fails.

    python -P launch.py FOLDER ARGUMENTS..

It belongs to the installed version, which therefore stays in charge: whatever is wrong with a release, down to its first
import, ends here. Nothing but the standard library.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

SETTING = "LABAPEX_AGENT"  # set where a released version runs
TRIES = 2  # of a start that was cut off, by a power cut for instance; one that fails counts for as many
MARK = ".released"  # in a version's folder: the digest of its wheel


def become(folder: Path, arguments: list[str]) -> NoReturn:
    """Replace this program by the version in `folder`."""
    program = [sys.executable, "-P", str(Path(__file__).resolve()), str(folder), *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, program, {**os.environ, SETTING: str(folder)})  # noqa: S606


def begin_anew(arguments: list[str]) -> NoReturn:
    """Replace this program by the version that the owner installed."""
    environment = {name: value for name, value in os.environ.items() if name != SETTING}
    sys.stdout.flush()
    sys.stderr.flush()
    program = [sys.executable, "-P", "-m", "labapex_worker.cli", *arguments]
    os.execve(sys.executable, program, environment)  # noqa: S606


def main() -> None:
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    trying = folder.parent / "trying"
    _note(trying, folder.name)
    sys.path.insert(0, str(folder))
    sys.argv = ["labapex-worker", *arguments]
    try:
        from labapex_worker import cli

        cli.main()
    except (Exception, SystemExit) as error:
        good = isinstance(error, SystemExit) and error.code in (0, None)
        if good or not trying.exists():  # it came up, however it ended
            trying.unlink(missing_ok=True)
            raise
        for _ in range(TRIES):
            _note(trying, folder.name)
        said = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        print(f"version {folder.name} of the agent did not come up: {said}", file=sys.stderr)
        begin_anew(arguments)
    trying.unlink(missing_ok=True)


def _note(trying: Path, name: str) -> None:
    with trying.open("a") as file:
        file.write(f"{name}\n")


if __name__ == "__main__":
    main()
