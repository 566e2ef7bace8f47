"""Fuzzes one target with atheris (libFuzzer): `one.py TARGET CORPUS.. -max_total_time=SECONDS`. `run.py` runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = map(str, (ROOT, ROOT / "client_sdk", ROOT / "worker_agent"))

with atheris.instrument_imports(include=["labapex", "labapex_runner", "yaml", "zipfile", "packaging"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    target = TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], lambda data: target(data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
