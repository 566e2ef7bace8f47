"""`make fuzz SECONDS=..`: fuzzes every target for its part of the seconds, and says what came of it.

What makes a target crash is kept in test-artefacts/fuzz; once it is mended it belongs into the target's corpus. Ends with 1 where
something crashed."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = map(str, (ROOT, ROOT / "client_sdk", ROOT / "worker_agent"))

from tests.fuzz.targets import TARGETS, Target  # noqa: E402

ARTEFACTS = ROOT / "test-artefacts" / "fuzz"
ONE_SECONDS = 10  # that one input may take
MEMORY_MB = 2048
GRACE = 120  # seconds to start and to end


@dataclass(frozen=True)
class Outcome:
    target: str
    executions: int
    seconds: float
    crash: str  # what the program said last; nothing where all went well


def fuzz(target: Target, seconds: int) -> Outcome:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="labapex-corpus-") as found:
        line = [sys.executable, str(Path(__file__).with_name("one.py")), target.name, found, str(target.corpus)]
        line += [f"-max_total_time={seconds}", f"-artifact_prefix={ARTEFACTS}/{target.name}-", "-max_len=65536"]
        line += [f"-timeout={ONE_SECONDS}", f"-rss_limit_mb={MEMORY_MB}", "-print_final_stats=1"]
        try:
            done = subprocess.run(
                line, capture_output=True, text=True, errors="replace", timeout=seconds + GRACE, check=False
            )
            said, failed = done.stderr + done.stdout, done.returncode != 0
        except subprocess.TimeoutExpired as error:
            said, failed = f"it did not end: {error}", True
    count = re.search(r"stat::number_of_executed_units: *([0-9]+)", said)
    executions = int(count[1]) if count else max([0, *map(int, re.findall(r"^#([0-9]+)", said, re.MULTILINE))])
    return Outcome(target.name, executions, time.monotonic() - began, _cause(said) if failed else "")


def _cause(said: str) -> str:
    """The error, and where it was kept."""
    lines = [
        line
        for line in said.splitlines()
        if re.match(r"(\w+\.)*\w*(Error|Exception)\b|==\d+== ERROR|it did not end", line)
    ]
    kept = re.findall(r"Test unit written to (\S+)", said)
    return "; ".join([*lines[:1], *kept[:1]]) or said[-300:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=170, help="for all targets together")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET", help=", ".join(TARGETS))
    asked = parser.parse_args()
    each = max(1, asked.seconds * asked.jobs // len(asked.targets))
    with ThreadPoolExecutor(asked.jobs) as pool:
        outcomes = list(pool.map(lambda name: fuzz(TARGETS[name], each), asked.targets))
    print(f"{'target':15}{'executions':>12}{'seconds':>9}  crash")
    for found in outcomes:
        print(f"{found.target:15}{found.executions:12,}{found.seconds:9.0f}  {found.crash or 'none'}")
    print(f"{'all':15}{sum(o.executions for o in outcomes):12,}{sum(o.seconds for o in outcomes):9.0f}"
          f"  {sum(bool(o.crash) for o in outcomes)} of {len(outcomes)} targets crashed")  # fmt: skip
    return int(any(found.crash for found in outcomes))


if __name__ == "__main__":
    sys.exit(main())
