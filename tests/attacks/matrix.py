"""Prints the matrix of lies against rules, and fails where one is accepted or another rule decides: `matrix.py [NAME ...]`.

A cell is a rule's value over its limit, with ! where it fails; a point where it had nothing to look at.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.attacks.court import Court, Judgement
from tests.attacks.lies.every import LIES

from labapex.proof.policy import WEIGHTS
from labapex.protocol.verdict import RuleResult

HONEST = "(nobody lies)"
NOT_ASKED = ("gpu-utilisation", "gpu-memory")  # there is no device here whose readings could be shown
RULES = [rule for rule in WEIGHTS if rule not in NOT_ASKED]
NAME, CELL = 40, 15


def short(value: float | str | None) -> str:
    if isinstance(value, float):
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")
    return {"unbroken": "ok", "not finite": "nan", "different": "other", None: ""}.get(value, str(value))[:5]


def cell(result: RuleResult) -> str:
    if result.result == "not-applicable":
        return "."
    return f"{short(result.value)}/{short(result.limit)}{'!' if result.result == 'fail' else ''}"


def row(name: str, found: Judgement) -> str:
    cells = "".join(f"{cell(found.results[rule]):>{CELL}}" for rule in RULES)
    return f"{name[:NAME]:<{NAME}}{cells}  {found.verdict}" + (f": {found.rule}" if found.rule else "")


def head(first: str) -> str:
    return f"{first:<{NAME}}" + "".join(f"{rule[: CELL - 1]:>{CELL}}" for rule in RULES) + "  verdict: deciding rule"


def table(rows: Sequence[tuple[str, Callable[[], Judgement]]], first: str) -> list[tuple[str, Judgement]]:
    """Print a row as soon as it is known; returns all of them."""
    print(head(first), flush=True)
    found = []
    for name, find in rows:
        found.append((name, find()))
        print(row(*found[-1]), flush=True)
    return found


def main(names: Sequence[str]) -> int:
    lies = [LIES[name] for name in names] or list(LIES.values())
    with tempfile.TemporaryDirectory(prefix="labapex-court-") as folder:
        court = Court(Path(folder))
        tried = [(lie.name, lambda lie=lie: court.try_(lie)) for lie in lies]
        found = dict(table([(HONEST, court.honest), *tried], "lie"))
        court.close()
    wrong = [
        name for name, j in found.items() if name != HONEST and (j.verdict, j.rule) != ("rejected", LIES[name].rule)
    ]
    wrong += [HONEST] if found[HONEST].verdict != "verified" else []
    print(f"\n{len(lies)} lies, {sum(j.verdict == 'rejected' for j in found.values())} refused")
    for name in wrong:
        print(f"WRONG  {name}: {found[name].verdict}, {found[name].reason}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
