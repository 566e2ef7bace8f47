"""Evidence of an honest run in which nothing was trained: what a platform would know, made up so that all of it fits."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from uuid import UUID

from labapex.proof.rules import Evidence
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Contract, Environment, ScriptFacts
from labapex.protocol.records import Leaf, column
from labapex.protocol.replay import Distances, EvaluationReport, ReplayReport, SegmentReport

HERE = Environment(python="3.11", torch="2.13.0", device="cpu: A", capability="AVX2", threads=1)
ELSEWHERE = HERE.model_copy(update={"device": "cpu: B"})


def sha(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


CONTRACT = Contract(
    job=UUID(int=1), lease=UUID(int=2), seed="a" * 64, code=sha("c"), data=sha("d"), script="train.py", args=(),
    epochs=2, checkpoint_every=4, threads=1,
    facts=ScriptFacts(
        loop="train.py:1", iterations_per_epoch=10, has_loader=True, gradients_are_state=False, parameters=9,
        state_bytes=99,
    ),
)  # fmt: skip
STEPS = CONTRACT.leaf_steps()
LOSSES = [2.3 - 0.1 * n + 0.01 * (n % 3) for n in range(20)]
ASKED = (0, 2, len(STEPS) - 2)


NOTHING = hashlib.sha256().hexdigest()


def batches(n: int) -> str:
    return sha("batches", n) if n else NOTHING


def chained(leaves: list[Leaf]) -> list[Leaf]:
    prev, out = digest(CONTRACT), []
    for leaf in leaves:
        out.append(leaf.model_copy(update={"prev": prev}))
        prev = out[-1].digest()
    return out


def leaves(losses: list[float]) -> list[Leaf]:
    made = []
    for n, step in enumerate(STEPS):
        part = losses[STEPS[n - 1] : step] if n else []
        made.append(
            Leaf(
                index=n, step=step, state=sha("state", n), size=99, chunks=3, settings=sha("settings", n),
                update_norm=float(n), batches=batches(n),
                losses=hashlib.sha256(column(part)).hexdigest(), prev="0" * 64,
            )
        )  # fmt: skip
    return chained(made)


def segment(n: int, **changes: object) -> SegmentReport:
    whole = {
        "leaf": n, "start": STEPS[n], "stop": STEPS[n + 1], "state": sha("state", n + 1),
        "chunks": 3, "settings": sha("settings", n + 1),
        "batches": sha("batches", n + 1), "losses": column(LOSSES[STEPS[n] : STEPS[n + 1]]), "gradient_norm": 1.0,
        "update_norm": float(n + 1), "distances": Distances(l1=0, l2=0, linf=0, cos=0, relative=0), "seconds": 0.1,
    }  # fmt: skip
    return SegmentReport.model_validate({**whole, **changes})


REPORT = ReplayReport(
    environment=HERE,
    initial_state=sha("state", 0),
    initial_chunks=3,
    initial_settings=sha("settings", 0),
    reference_distance=20.0,
    batches=tuple(sha("batches", n) for n in range(1, len(STEPS))),
    segments=tuple(segment(n) for n in ASKED),
    evaluations=(EvaluationReport(epoch=1, mean=1.8, n=1), EvaluationReport(epoch=2, mean=0.9, n=1)),
)
HONEST = Evidence(
    contract=CONTRACT, losses=LOSSES, times=[float(n) for n in range(20)], samples=[], leaves=leaves(LOSSES),
    leaf_received_at=[float(n) for n in range(len(STEPS))], chain_problem=None, replay=REPORT, opening_problem=None,
    worker_environment=HERE, verifier_environment=HERE, top_q=1, pev_percent=10, asked=ASKED,
    iteration_seconds=2.0, known=frozenset({sha("elsewhere")}),
)  # fmt: skip


def told(evidence: Evidence, **changes: object) -> Evidence:
    """The evidence with other things in its replay report."""
    assert evidence.replay is not None
    return replace(evidence, replay=evidence.replay.model_copy(update=changes))


def with_segment(evidence: Evidence, number: int, **changes: object) -> Evidence:
    return told(evidence, segments=tuple(segment(n, **(changes if n == number else {})) for n in ASKED))


def with_leaf(number: int, **changes: object) -> Evidence:
    """A worker that says something else in one leaf, and chains the others to it."""
    made = list(HONEST.leaves)
    made[number] = made[number].model_copy(update=changes)
    return replace(HONEST, leaves=chained(made))
