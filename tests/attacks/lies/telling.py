"""How a lie is told: what a dishonest host has, and through what he speaks.

He has the job's seed, script, data and keys, as every owner of a host has, and uses the genuine interfaces: a sink for losses and
leaves, state files for the openings. What he says is well formed, chained and committed, so that nothing but what he computed can
give him away. Each lie is one small function or class; its docstring is the lie, and it names the rule that must decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.attacks import victim

from labapex.proof.record import Recorder
from labapex.proof.runtime import Engine
from labapex.proof.sink import Sink
from labapex.protocol.contract import Contract


@dataclass(frozen=True)
class Job:
    """What a dishonest host has. `stolen`: the states of another lease of the same job, which ran under another seed."""

    contract: Contract
    folder: Path
    stolen: Path
    sink: Sink


@dataclass(frozen=True)
class Lie:
    name: str
    rule: str
    says: str
    train: Callable[[Job], None]
    opening: Callable[[Path], None] = lambda states: None  # what is done to the files after the challenge is known
    answer: Callable[[list[bytes]], list[bytes]] = (
        list  # what is handed in where a chunk of each kept state is asked for
    )
    job: victim.Job = victim.USUAL
    every: int = 3  # iterations a segment
    draws: int = 1000  # random segments: all, or as few as that, where a rule must look at the right place by itself
    foretold: bool = False  # the settings of all leaves are foretold before anything gives cause for doubt
    known: bool = False  # the other lease's states are on the platform's record
    false_class: bool = False  # he says that his host is of another class than the verifier's


LIES: dict[str, Lie] = {}


def enter(rule: str, named: Any, train: Callable[[Job], None], **more: Any) -> None:
    name = named.__name__.strip("_").replace("_", "-")
    assert name not in LIES
    LIES[name] = Lie(name, rule, " ".join(named.__doc__.split()), train, **more)


class Meddler(Recorder):
    """A recorder that meddles with the training that it records."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.contract, job.folder / "states", job.sink)
        self.job = job

    def prepare(self, engine: Engine) -> None:
        """Before the script begins."""


def run(job: Job, recorder: Recorder, seed: str | None = None) -> None:
    (job.folder / "states").mkdir(exist_ok=True)
    engine = Engine.under(job.contract, job.folder / "work", recorder, seed=seed)
    if isinstance(recorder, Meddler):
        recorder.prepare(engine)
    engine.run(job.contract.threads)
    recorder.close(engine)
