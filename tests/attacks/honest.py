"""Prints the matrix of honest runs against rules, and fails where one is refused: `honest.py [--starts N]`.

Every segment of every run is replayed; besides, N fresh initialisations, each under a seed of its own, made twice; and runs
of one class of hosts judged on another, by lines that other honest runs gave.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.attacks import elsewhere, victim
from tests.attacks.court import EVERY_SEGMENT, Court, Judgement, judgement
from tests.attacks.matrix import table
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import SCRIPTS, Lab, Recording
from tests.labapex.proof.test_styles import STYLES

from labapex.proof import recording
from labapex.proof.origins import SIGNIFICANCE
from labapex.protocol.contract import Contract


@dataclass(frozen=True)
class Run:
    name: str
    script: Path | str
    per_epoch: int | None = None
    epochs: int = 3
    threads: int = 1
    killed: bool = False  # in mid-epoch; another host goes on with it


ELSEWHERE = ("SGD, batch norm", "SGD, 512 wide", "a loop", "amp_scaler")
WORKERS = victim.edited(victim.LOADER, "shuffle=True", "shuffle=True, num_workers=2")
OWN = [
    Run("1 thread, no loader workers", victim.LOADER),
    Run("2 threads", victim.WIDE, threads=2),
    Run("2 loader workers", WORKERS),
    Run("short last batch", victim.edited(victim.LOADER, "batch_size=4", "batch_size=5")),
    Run("no loader", victim.LOOP, per_epoch=6),
]
RESUMED = [
    Run(
        f"another host goes on, {s.name.replace('_', ' ')}",
        SCRIPTS / f"{s.name}.py",
        s.per_epoch,
        s.epochs,
        killed=True,
    )
    for s in STYLES
    if s.name in {"functions", "trainer_class", "schedulers", "gan", "accumulation", "while_loop", "tbptt", "workers"}
]
RUNS = [
    *OWN,
    *RESUMED,
    *(Run(s.name.replace("_", " "), SCRIPTS / f"{s.name}.py", s.per_epoch, s.epochs) for s in STYLES),
]


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
    made = resumed(lab, run, contract, folder) if run.killed else lab.record(contract, folder)
    opening = laboratory.challenge(made, segments=EVERY_SEGMENT, ends=True)
    evidence = laboratory.evidence(made, opening, lab.replay(made, opening))
    return judgement(replace(evidence, known=frozenset(), iteration_seconds=tried.iteration_seconds))


def resumed(lab: Lab, run: Run, contract: Contract, folder: Path) -> Recording:
    """A run whose process is killed and with which another host goes on: with another hash seed, in another folder.

    Every third state is kept, so that it goes back to a boundary in mid-epoch; then all states are there again."""
    kept, there, host = (
        contract.model_copy(update={"keep_every": 3}),
        folder / "there",
        Lab(caps={"PYTHONHASHSEED": "7"}),
    )
    try:
        lab.begin(kept, folder, until=5)
        step = recording.resumable(folder, kept)[-1].step
        assert step % contract.facts.iterations_per_epoch, f"{run.name}: step {step} is no boundary in mid-epoch"
        laboratory.place(run.script, there)
        laboratory.carry(folder, there)
        made = host.go_on(kept, there)
        laboratory.place(run.script, there)
        missing = tuple(sorted(set(range(len(made.leaves))) - kept.kept_leaves()))
        shutil.copytree(there / "work", there / "pristine")
        again = host.regenerate(kept, there, folder / "again", missing)
        assert again.problem is None, f"{run.name}: {again.problem}"
        for state in (folder / "again" / "states").iterdir():
            state.rename(there / "states" / state.name)
    finally:
        host.close()
    return made


def starts(court: Court, count: int) -> tuple[int, int]:
    """Fresh initialisations: how many were the same twice, and how many differ from all others."""
    contract, folder = court.contract(3), court.folder / "starts"
    laboratory.place(victim.LOADER, folder)
    found = []
    for number in range(count):
        terms = contract.model_copy(update={"seed": f"{number:064x}"}).model_dump(mode="json")
        found.append([court.ask("start", folder, contract=terms)["initial"] for _ in range(2)])
    return sum(one == other for one, other in found), len({one for one, _ in found})


def spread(court: Court, count: int) -> tuple[int, int]:
    """Fresh networks that the statistical test of initial weights refuses: as published, and with Bonferroni's correction."""
    found = court.ask("spread", court.folder, count=count)
    pairs = list(zip(found["least"], found["tested"], strict=True))
    return sum(p < SIGNIFICANCE for p, _ in pairs), sum(p < SIGNIFICANCE / m for p, m in pairs)


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
        plain, corrected = spread(court, count)
        court.close()
    print(f"\n{len(RUNS)} honest runs, {len(refused)} refused")
    print(f"{count} fresh initialisations: {count - same} refused, {different} different ones")
    print(
        f"{count} fresh convolutional networks: Kolmogorov-Smirnov refuses {plain / count:.1%} as published (p < 0.01),"
        f" {corrected / count:.1%} with Bonferroni"
    )
    refused_elsewhere = elsewhere.sweep(ELSEWHERE, [4])
    print(f"{len(refused_elsewhere)} refused on another class of hosts")
    for text in refused_elsewhere:
        print(f"WRONG  {text}")
    for refusal, j in refused:
        print(f"WRONG  {refusal}: {j.reason}")
    return 1 if refused or refused_elsewhere or (same, different) != (count, count) else 0


if __name__ == "__main__":
    sys.exit(main())
