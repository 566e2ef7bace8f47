"""A worker whose owner cheats: `host.py CHEAT run --home DIR`. It runs each executable with a trainer of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from labapex import sandbox
from labapex_worker import cli


def main() -> None:
    cheat = sys.argv.pop(1)
    trainer = [sys.executable, str(Path(__file__).with_name("executable.py")), cheat]

    def popen(argv, confinement, *, wrapper=(), **pipes):  # type: ignore[no-untyped-def]
        """It is his machine: nothing has to run in a sandbox there. Outside of it the agent's door is elsewhere."""
        environment = {**confinement.environment, "LABAPEX_AGENT_SOCKET": "../door/agent.sock"}
        command = [*wrapper, *trainer, *argv]
        return subprocess.Popen(command, cwd=confinement.folder, env=environment, start_new_session=True, **pipes)

    sandbox.popen = popen
    cli.main()


if __name__ == "__main__":
    main()
