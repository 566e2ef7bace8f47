"""Where a lie is tried without a platform: told in a process of its own, challenged, replayed and judged as a worker's run is.

`Court` is the test's end; as a program this file is the other one, where torch is imported once and each run is forked.
"""

from __future__ import annotations

import io
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.attacks import victim
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import Lab, Recording

from labapex.errors import MalformedInput
from labapex.proof import chunks, statefile
from labapex.proof.challenge import draw_chunk
from labapex.proof.chunks import Measured
from labapex.proof.policy import decide
from labapex.proof.rules import Evidence, judge, log_chain, log_count
from labapex.proof.tolerance import PHASES, Calibration, Phase, Tolerance
from labapex.protocol.contract import Contract, Environment
from labapex.protocol.records import Leaf
from labapex.protocol.replay import PreflightReport, ReplayReport
from labapex.protocol.verdict import RuleResult

if TYPE_CHECKING:
    from tests.attacks.lies.every import Lie

ANOTHER_LEASES_SEED = "c" * 64
EVERY_SEGMENT = 1000


@dataclass(frozen=True)
class Judgement:
    verdict: str
    rule: str | None  # that decided against the run
    reason: str
    results: dict[str, RuleResult]
    at_first: str = ""  # the verdict on what was drawn alone, before anything gave cause for doubt


class Court(Lab):
    """Tries lies about small jobs, in `folder`."""

    program = Path(__file__)

    def __init__(self, folder: Path, threads: int = 1) -> None:
        super().__init__(threads)
        self.folder = folder
        self.tried: dict[victim.Job, PreflightReport] = {}
        self.stolen: dict[tuple[int, victim.Job], Recording] = {}

    def preflight_of(self, job: victim.Job) -> PreflightReport:
        if job not in self.tried:
            folder = self.folder / f"preflight-{len(self.tried)}"
            self.tried[job] = self.preflight(job.script, folder, epochs=job.epochs, every=3)
        return self.tried[job]

    def contract(self, every: int, job: victim.Job = victim.USUAL) -> Contract:
        tried = self.preflight_of(job)
        if tried.facts is None:
            raise AssertionError(tried.problem)
        return laboratory.contract(tried.facts, epochs=job.epochs, every=every, threads=self.threads)

    def another_lease(self, every: int, job: victim.Job = victim.USUAL) -> Recording:
        """An honest run of the same job under another seed, which its worker knows."""
        if (every, job) not in self.stolen:
            folder = self.folder / f"another-lease-{len(self.stolen)}"
            laboratory.place(job.script, folder)
            terms = self.contract(every, job).model_copy(update={"seed": ANOTHER_LEASES_SEED})
            self.stolen[every, job] = self.record(terms, folder)
        return self.stolen[every, job]

    def tell(self, lie: Lie) -> Recording:
        """What the liar says of his run, and the states that he keeps."""
        contract, folder = self.contract(lie.every, lie.job), self.folder / lie.name
        laboratory.place(lie.job.script, folder)
        answer = self.ask(
            "lie",
            folder,
            lie=lie.name,
            contract=contract.model_dump(mode="json"),
            stolen=str(self.another_lease(lie.every, lie.job).folder / "states"),
        )
        leaves = [Leaf.model_validate(leaf) for leaf in answer["leaves"]]
        return Recording(contract, folder, answer["losses"], answer["times"], leaves)

    def try_(self, lie: Lie) -> Judgement:
        """Record, challenge, open, replay, judge. A log that is not even whole is not replayed, as on the platform."""
        recording = self.tell(lie)
        known = {leaf.state for leaf in self.another_lease(lie.every, lie.job).leaves} if lie.known else set()
        pace = self.preflight_of(lie.job).iteration_seconds
        evidence = replace(laboratory.evidence(recording, laboratory.window(0), ReplayReport()), replay=None, asked=())
        at_first = ""
        measured, problem = None, None
        if log_chain(evidence)[2] == log_count(evidence)[2] == "pass":
            measured, problem = answered(recording, lie)
            evidence = replace(evidence, measured=measured, opening_problem=problem)
        if measured is not None:
            opening = laboratory.challenge(recording, segments=lie.draws, ends=True, measured=measured)
            lie.opening(recording.folder / "states")
            evidence, *later = self.look(recording, opening, foretell=60 if lie.foretold else 0)
            at_first = decide(judge(replace(evidence, measured=measured)))[0]
            evidence = replace(later[-1] if later else evidence, measured=measured)
        if lie.false_class and evidence.worker_environment is not None:
            claimed = evidence.worker_environment.model_copy(update={"device": "cpu: another one"})
            evidence = replace(evidence, worker_environment=claimed, tolerance=calibrated(evidence, claimed))
        return judgement(replace(evidence, known=known, iteration_seconds=pace), at_first)

    def honest(self) -> Judgement:
        """An honest run of the job on which the lies are told."""
        recording = self.another_lease(3)
        opening = laboratory.challenge(recording, segments=EVERY_SEGMENT, ends=True)
        evidence = laboratory.evidence(recording, opening, self.replay(recording, opening))
        pace = self.preflight_of(victim.USUAL).iteration_seconds
        return judgement(replace(evidence, known=set(), iteration_seconds=pace))


def answered(recording: Recording, lie: Lie) -> tuple[Measured | None, str | None]:
    """What the chunk of all states shows as the liar hands it in, and what is found wrong with it."""
    contract, parts = recording.contract, []
    number = draw_chunk(contract, random.Random(7))
    assert number is not None
    for index in chunks.asked(contract, recording.leaves):
        with (recording.folder / "states" / f"{index}.safetensors").open("rb") as state:
            parts.append(chunks.show(state, b"".join(statefile.tree(state)), number))
    try:
        return chunks.check(contract, recording.leaves, number, io.BytesIO(b"".join(lie.answer(parts)))), None
    except MalformedInput as error:
        return None, str(error)


def calibrated(evidence: Evidence, worker: Environment) -> Tolerance:
    """The lines that honest work of such a class would have given: what small networks show between CPUs, and k = 1 to 5."""
    verifier, every = evidence.verifier_environment, evidence.contract.checkpoint_every
    if verifier is None:  # nothing was replayed
        return Tolerance()
    measured = tuple(Phase(until=until, segments=200, error=4e-3, cos=1e-9, loss=1e-5) for until in PHASES)
    honest = Calibration(worker=worker, verifier=verifier, checkpoint_every=every, start=1e-7, phases=measured)
    return honest.tolerance(worker, verifier, every)


def judgement(evidence: Evidence, at_first: str = "") -> Judgement:
    results = judge(evidence)
    verdict, rule, reason = decide(results)
    return Judgement(verdict, rule, reason, {r.rule: r for r in results}, at_first)


# -- the other end -----------------------------------------------------------------------------------------------------


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if request["verb"] == "spread":
        return _spread(request["count"])
    if request["verb"] not in ("lie", "start"):
        return laboratory.answer(request)
    from labapex.proof.isolate import isolated

    folder, contract = Path(request["folder"]), Contract.model_validate(request["contract"])
    if request["verb"] == "start":
        return isolated(lambda: _start(contract, folder), folder / "train.log", writes=(folder,))

    def tell() -> dict[str, Any]:
        from tests.attacks.lies.every import LIES
        from tests.attacks.lies.telling import Job

        notes = laboratory.Notes()
        LIES[request["lie"]].train(Job(contract, folder, Path(request["stolen"]), notes))
        return vars(notes)

    return isolated(tell, folder / "train.log", writes=(folder,))


def _start(contract: Contract, folder: Path) -> dict[str, Any]:
    """The digest of the state at the loop's first top."""
    from labapex.proof.replay import Replayer
    from labapex.proof.runtime import Engine

    replayer = Replayer(contract, folder, [])
    Engine.under(contract, folder / "work", replayer).run(contract.threads)
    return replayer.result


def _spread(count: int) -> dict[str, Any]:
    """The smallest p-value of each of `count` fresh convolutional networks beside another one, and the tensors tested."""
    import torch

    from labapex.proof.starts import compare
    from labapex.proof.state import State

    def fresh(seed: int) -> State:
        torch.manual_seed(seed)
        made: dict[str, Any] = {}
        exec(victim.CONVOLUTIONS, made)
        tensors = {name: p.detach() for name, p in made["model"].named_parameters()}
        return State({}, tensors, sorted(tensors))

    found = [compare(fresh(2 * n), fresh(2 * n + 1), committed=None, parents=(), work=Path()) for n in range(count)]
    return {"least": [each.least_p for each in found], "tested": [each.tested for each in found]}


if __name__ == "__main__":
    laboratory.serve(answer)
