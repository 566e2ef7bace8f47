"""A job's executable, taken apart and put together again with another trainer: `executable.py CHEAT PATH`.

It reads the payload of the genuine executable at PATH and follows the genuine protocol, keys included.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from labapex_runner import supervisor


def main() -> int:
    name, job = sys.argv[1:]

    def engine():  # type: ignore[no-untyped-def]  # torch is imported in the trainer alone
        import cheats

        return cheats.load(name)()

    folder, agent = Path(os.environ["LABAPEX_JOB_FOLDER"]), Path(os.environ["LABAPEX_AGENT_SOCKET"])
    return supervisor.supervise(Path(job), folder, agent, load=engine)


if __name__ == "__main__":
    sys.exit(main())
