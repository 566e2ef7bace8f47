"""Honest work of one class of hosts, replayed and judged on another: `elsewhere.py` prints by how much it differs.

On one machine a class is made by caps in the environment: other kernels of ATen, oneDNN and MKL, or another number of threads.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.attacks import victim
from tests.attacks.court import EVERY_SEGMENT, Judgement, judgement
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import SCRIPTS, Lab, Recording

from labapex.proof.rules import judge, unjudged
from labapex.proof.tolerance import NEEDED, Calibration, Line, measure, start_error
from labapex.protocol.contract import Environment, ScriptFacts
from labapex.protocol.replay import ReplayReport

OTHER_KERNELS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
CALIBRATED, JUDGED = range(NEEDED), range(100, 102)  # seeds


@dataclass(frozen=True)
class Crossing:
    """From a worker's class to a verifier's: caps, and threads."""

    name: str
    worker: tuple[dict[str, str], int] = ({}, 1)
    verifier: tuple[dict[str, str], int] = ({}, 1)


CROSSINGS = (
    Crossing("other kernels", worker=(OTHER_KERNELS, 1)),
    Crossing("replayed by other kernels", verifier=(OTHER_KERNELS, 1)),
    Crossing("2 threads on 1", worker=({}, 2)),
)
SCRIPTS_ELSEWHERE: dict[str, Path | str] = {
    "SGD, batch norm": victim.LOADER,
    "SGD, 512 wide": victim.WIDE,
    "a loop": victim.LOOP,
    **{name: SCRIPTS / f"{name}.py" for name in ("functions", "amp_scaler", "lbfgs", "gan", "schedulers")},
}
PER_EPOCH: dict[Path | str, int] = {victim.LOOP: 6}


@dataclass
class Pair:
    """Two hosts, and what is known of honest work between them."""

    worker: Lab
    verifier: Lab
    folder: Path
    there: Environment | None = None  # the worker's class, once it is known

    def facts(self, script: Path | str, every: int) -> ScriptFacts:
        tried = self.verifier.preflight(script, self.folder, per_epoch=PER_EPOCH.get(script), every=every)
        if tried.facts is None:
            raise AssertionError(tried.problem)
        return tried.facts

    def run(self, facts: ScriptFacts, every: int, seed: int) -> tuple[Recording, ReplayReport]:
        """An honest run of the worker's, and all of its segments replayed by the verifier."""
        terms = laboratory.contract(facts, every=every, seed=f"{seed:064x}", threads=self.worker.threads)
        recording = self.worker.record(terms, self.folder)
        if self.there is None:
            self.there = self.worker.replay(recording, laboratory.window(0)).environment
        here = replace(recording, contract=terms.model_copy(update={"threads": self.verifier.threads}))
        opening = laboratory.challenge(recording, segments=EVERY_SEGMENT, ends=True)
        report = self.verifier.replay(here, opening)
        if report.problem is not None:
            raise AssertionError(report.problem)
        return recording, report

    def calibrate(self, facts: ScriptFacts, every: int) -> Calibration:
        """As `labapex calibrate` makes it of proof folders, without a process for each."""
        found = None
        for seed in CALIBRATED:
            recording, report = self.run(facts, every, seed)
            if found is None:
                assert self.there is not None
                assert report.environment is not None
                found = Calibration(worker=self.there, verifier=report.environment, checkpoint_every=every)
            measured = measure(recording.leaves, recording.losses, report)
            start = start_error(recording.leaves[0], report)
            found = found.with_run(f"{seed:064x}", start, measured, recording.contract.iterations)
        assert found is not None
        return found

    def judge(self, facts: ScriptFacts, every: int, seed: int, found: Calibration) -> Judgement | str:
        """The verdict on another honest run, or why there is none."""
        recording, report = self.run(facts, every, seed)
        opening = laboratory.challenge(recording, segments=EVERY_SEGMENT, ends=True)
        evidence = replace(
            laboratory.evidence(recording, opening, report),
            worker_environment=self.there,
            tolerance=found.tolerance(self.there, report.environment, every),
            known=frozenset(),
        )
        return unjudged(evidence, judge(evidence)) or judgement(evidence)


@contextmanager
def pair(crossing: Crossing, folder: Path) -> Iterator[Pair]:
    (worker_caps, worker_threads), (verifier_caps, verifier_threads) = crossing.worker, crossing.verifier
    worker, verifier = Lab(worker_threads, worker_caps), Lab(verifier_threads, verifier_caps)
    try:
        yield Pair(worker, verifier, folder)
    finally:
        worker.close()
        verifier.close()


def sweep(scripts: Iterable[str], every: Iterable[int]) -> list[str]:
    """Print what honest runs differ by, and judge others by it. Those that were refused, each with the reason."""
    refused = []
    print(f"{'crossing':<28}{'script':<18}{'k':>3}{'until':>7}{'error':>9}{'loss':>9}  line")
    with tempfile.TemporaryDirectory(prefix="labapex-elsewhere-") as name:
        for crossing in CROSSINGS:
            with pair(crossing, Path(name)) as hosts:
                for script, k in itertools.product(scripts, every):
                    facts = hosts.facts(SCRIPTS_ELSEWHERE[script], k)
                    found = hosts.calibrate(facts, k)
                    row = f"{crossing.name:<28}{script:<18}{k:>3}"
                    for phase in (p for p in found.phases if p.segments):
                        line = found.line(phase)
                        said = f"{line.error:.1e}, loss {line.loss:.1e}" if isinstance(line, Line) else f"none: {line}"
                        print(f"{row}{phase.until:>7.0%}{short(phase.error)}{short(phase.loss)}  {said}")
                    results = [hosts.judge(facts, k, seed, found) for seed in JUDGED]
                    told = [r.verdict if isinstance(r, Judgement) else "no verdict" for r in results]
                    print(f"{row}  {len(told)} more runs judged: {', '.join(told)}", flush=True)
                    refused += [f"{row}: {r.reason}" for r in results if getattr(r, "verdict", None) == "rejected"]
    return refused


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, nargs="+", default=[1, 4, 10])
    parser.add_argument("--script", nargs="+", default=list(SCRIPTS_ELSEWHERE))
    given = parser.parse_args()
    refused = sweep(given.script, given.every)
    print(f"\n{len(refused)} refused", *refused, sep="\n")
    return 1 if refused else 0


def short(value: float | None) -> str:
    return f"{'inf' if value is None else f'{value:.1e}':>9}"


if __name__ == "__main__":
    sys.exit(main())
