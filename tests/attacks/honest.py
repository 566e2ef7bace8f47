"""Prints the matrix of honest runs against rules, and fails where one is refused: `honest.py [--starts N]`.

Every segment of every run is replayed; besides, N fresh initialisations, each under a seed of its own, made twice.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.attacks import victim
from tests.attacks.court import EVERY_SEGMENT, Court, Judgement, judgement
from tests.attacks.matrix import table
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import SCRIPTS, Lab
from tests.labapex.proof.test_styles import STYLES


@dataclass(frozen=True)
class Run:
    name: str
    script: Path | str
    per_epoch: int | None = None
    epochs: int = 3
    threads: int = 1


WORKERS = victim.edited(victim.LOADER, "shuffle=True", "shuffle=True, num_workers=2")
OWN = [
    Run("1 thread, no loader workers", victim.LOADER),
    Run("2 threads", victim.WIDE, threads=2),
    Run("2 loader workers", WORKERS),
    Run("short last batch", victim.edited(victim.LOADER, "batch_size=4", "batch_size=5")),
    Run("no loader", victim.LOOP, per_epoch=6),
]
RUNS = [*OWN, *(Run(s.name.replace("_", " "), SCRIPTS / f"{s.name}.py", s.per_epoch, s.epochs) for s in STYLES)]


@contextmanager
def labs() -> Iterator[dict[int, Lab]]:
    """A laboratory for each number of threads: it is fixed before torch is imported."""
    made = {threads: Lab(threads) for threads in {run.threads for run in RUNS}}
    try:
        yield made
    finally:
        for lab in made.values():
            lab.close()


def judge_run(lab: Lab, run: Run, folder: Path) -> Judgement:
    """Preflight, record, replay of every segment, judgement. Raises `AssertionError` where the preflight refuses."""
    tried = lab.preflight(run.script, folder, epochs=run.epochs, per_epoch=run.per_epoch)
    if tried.facts is None:
        raise AssertionError(f"{run.name}: {tried.problem}")
    contract = laboratory.contract(tried.facts, epochs=run.epochs, threads=run.threads)
    recording = lab.record(contract, folder)
    opening = laboratory.challenge(recording, segments=EVERY_SEGMENT, ends=True)
    evidence = laboratory.evidence(recording, opening, lab.replay(recording, opening))
    return judgement(replace(evidence, known=frozenset(), iteration_seconds=tried.iteration_seconds))


def starts(court: Court, count: int) -> tuple[int, int]:
    """Fresh initialisations: how many were the same twice, and how many differ from all others."""
    contract, folder = court.contract(3), court.folder / "starts"
    laboratory.place(victim.LOADER, folder)
    found = []
    for number in range(count):
        terms = contract.model_copy(update={"seed": f"{number:064x}"}).model_dump(mode="json")
        found.append([court.ask("start", folder, contract=terms)["initial"] for _ in range(2)])
    return sum(one == other for one, other in found), len({one for one, _ in found})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=int, default=400)
    count = parser.parse_args().starts
    with tempfile.TemporaryDirectory(prefix="labapex-honest-") as name, labs() as at:
        folder = Path(name)
        rows = [(run.name, lambda run=run: judge_run(at[run.threads], run, folder / run.name)) for run in RUNS]
        refused = [(n, j) for n, j in table(rows, "honest run") if j.verdict != "verified"]
        court = Court(folder / "court")
        same, different = starts(court, count)
        court.close()
    print(f"\n{len(RUNS)} honest runs, {len(refused)} refused")
    print(f"{count} fresh initialisations: {count - same} refused, {different} different ones")
    for refusal, j in refused:
        print(f"WRONG  {refusal}: {j.reason}")
    return 1 if refused or (same, different) != (count, count) else 0


if __name__ == "__main__":
    sys.exit(main())
