"""Where a lie is tried without a platform: told in a process of its own, challenged, replayed and judged as a worker's run is.

`Court` is the test's end; as a program this file is the other one, where torch is imported once and each run is forked.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.attacks import victim
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import Lab, Recording

from labapex.proof.policy import decide
from labapex.proof.rules import Evidence, judge, log_chain, log_count
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf
from labapex.protocol.replay import ReplayReport
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


class Court(Lab):
    """Tries lies about one small job, in `folder`."""

    program = Path(__file__)

    def __init__(self, folder: Path, threads: int = 1) -> None:
        super().__init__(threads)
        self.folder = folder
        tried = self.preflight(victim.LOADER, folder / "preflight", every=3)
        if tried.facts is None:
            raise AssertionError(tried.problem)
        self.facts, self.pace = tried.facts, tried.iteration_seconds
        self.stolen: dict[int, Recording] = {}

    def contract(self, every: int) -> Contract:
        return laboratory.contract(self.facts, every=every, threads=self.threads)

    def another_lease(self, every: int) -> Recording:
        """An honest run of the same job under another seed, which its worker knows."""
        if every not in self.stolen:
            folder = self.folder / f"another-lease-{every}"
            laboratory.place(victim.LOADER, folder)
            terms = self.contract(every).model_copy(update={"seed": ANOTHER_LEASES_SEED})
            self.stolen[every] = self.record(terms, folder)
        return self.stolen[every]

    def tell(self, lie: Lie) -> Recording:
        """What the liar says of his run, and the states that he keeps."""
        contract, folder = self.contract(lie.every), self.folder / lie.name
        laboratory.place(victim.LOADER, folder)
        answer = self.ask(
            "lie",
            folder,
            lie=lie.name,
            contract=contract.model_dump(mode="json"),
            stolen=str(self.another_lease(lie.every).folder / "states"),
        )
        leaves = [Leaf.model_validate(leaf) for leaf in answer["leaves"]]
        return Recording(contract, folder, answer["losses"], answer["times"], leaves)

    def try_(self, lie: Lie) -> Judgement:
        """Record, challenge, open, replay, judge. A log that is not even whole is not replayed, as on the platform."""
        recording = self.tell(lie)
        known = {leaf.state for leaf in self.another_lease(lie.every).leaves} if lie.known else set()
        evidence = replace(laboratory.evidence(recording, laboratory.window(0), ReplayReport()), replay=None, asked=())
        if log_chain(evidence)[2] == log_count(evidence)[2] == "pass":
            opening = laboratory.challenge(recording, segments=lie.draws, ends=True)
            lie.opening(recording.folder / "states")
            evidence = laboratory.evidence(recording, opening, self.replay(recording, opening))
        if lie.false_class and evidence.worker_environment is not None:
            claimed = evidence.worker_environment.model_copy(update={"device": "cpu: another one"})
            evidence = replace(evidence, worker_environment=claimed)
        return judgement(replace(evidence, known=known, iteration_seconds=self.pace))

    def honest(self) -> Judgement:
        """An honest run of the job on which the lies are told."""
        recording = self.another_lease(3)
        opening = laboratory.challenge(recording, segments=EVERY_SEGMENT, ends=True)
        evidence = laboratory.evidence(recording, opening, self.replay(recording, opening))
        return judgement(replace(evidence, known=set(), iteration_seconds=self.pace))


def judgement(evidence: Evidence) -> Judgement:
    results = judge(evidence)
    verdict, rule, reason = decide(results)
    return Judgement(verdict, rule, reason, {r.rule: r for r in results})


# -- the other end -----------------------------------------------------------------------------------------------------


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if request["verb"] not in ("lie", "start"):
        return laboratory.answer(request)
    from labapex.proof.isolate import isolated

    folder, contract = Path(request["folder"]), Contract.model_validate(request["contract"])
    if request["verb"] == "start":
        return isolated(lambda: _start(contract, folder), folder / "train.log")

    def tell() -> dict[str, Any]:
        from tests.attacks.lies.every import LIES
        from tests.attacks.lies.telling import Job

        notes = laboratory.Notes()
        LIES[request["lie"]].train(Job(contract, folder, Path(request["stolen"]), notes))
        return vars(notes)

    return isolated(tell, folder / "train.log")


def _start(contract: Contract, folder: Path) -> dict[str, Any]:
    """The digest of the state at the loop's first top."""
    from labapex.proof.replay import Replayer
    from labapex.proof.runtime import Engine

    replayer = Replayer(contract, folder, [])
    Engine.under(contract, folder / "work", replayer).run(contract.threads)
    return replayer.result


if __name__ == "__main__":
    laboratory.serve(answer)
