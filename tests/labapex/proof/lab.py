"""A laboratory: scripts run under the engine in processes of their own, because the engine patches its process.

`Lab` is the test's end. It starts this file as a program that imports torch once and forks for each run, and asks it for
preflights, recordings and replays, as JSON lines.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from labapex.errors import TrainingFailed
from labapex.proof import recording
from labapex.proof.challenge import Opening, draw
from labapex.proof.chunks import Measured
from labapex.proof.determinism import pin
from labapex.proof.doubts import doubts, together
from labapex.proof.rules import Evidence
from labapex.protocol.contract import Contract, ScriptFacts
from labapex.protocol.records import Leaf, uncolumn
from labapex.protocol.replay import (
    PreflightReport,
    PreflightRequest,
    RegenerateReport,
    RegenerateRequest,
    ReplayReport,
    ReplayRequest,
)

SCRIPTS = Path(__file__).parents[2] / "scripts"
SOURCES = Path(__file__).parents[3] / "client_sdk"


@dataclass
class Recording:
    """What a worker's log says of a run, and the folder with its states."""

    contract: Contract
    folder: Path
    losses: list[float]
    times: list[float]
    leaves: list[Leaf]
    told: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # to loggers, by iteration


class Lab:
    program = Path(__file__)

    def __init__(self, threads: int = 1, caps: Mapping[str, str] | None = None, imports: tuple[str, ...] = ()) -> None:
        """`caps`: environment variables that make this host one of another class. `imports`: modules that are slow to import,
        besides torch."""
        path = os.pathsep.join([str(SOURCES), *sys.path])
        environment = {**os.environ, **pin(threads), **(caps or {}), "PYTHONPATH": path}
        command = [sys.executable, str(self.program), *imports]
        self.threads = threads
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def close(self) -> None:
        self.process.communicate()

    def ask(self, verb: str, folder: Path, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"verb": verb, "folder": str(folder), **request}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        if "problem" in answer:
            raise TrainingFailed(answer["problem"])
        return answer["result"]  # type: ignore[no-any-return]

    def preflight(
        self, script: Path | str, folder: Path, *, epochs: int = 3, per_epoch: int | None = None, every: int = 4
    ) -> PreflightReport:
        """Try a script: a file, or its text."""
        place(script, folder)
        request = PreflightRequest(
            script="train.py",
            args=(),
            epochs=epochs,
            iterations_per_epoch=per_epoch,
            checkpoint_every=every,
            threads=self.threads,
            seed="a" * 64,
        )
        return PreflightReport.model_validate(self.ask("preflight", folder, request=request.model_dump(mode="json")))

    def record(self, contract: Contract, folder: Path) -> Recording:
        """Record a whole run of the script in `folder`/work. Raises `TrainingFailed`."""
        shutil.rmtree(folder / "states", ignore_errors=True)
        answer = self.ask("train", folder, contract=contract.model_dump(mode="json"))
        leaves = [Leaf.model_validate(leaf) for leaf in answer["leaves"]]
        told = [(step, values) for step, values in answer["told"]]
        return Recording(contract, folder, answer["losses"], answer["times"], leaves, told)

    def take_over(self, contract: Contract, folder: Path, state: Path) -> Recording:
        """Go on with a run of another host, from its state; of the run only what comes behind that."""
        assert contract.after is not None
        (folder / "states").mkdir(parents=True)
        shutil.copyfile(state, folder / "states" / f"{contract.after.index}.safetensors")
        answer = self.ask("train", folder, contract=contract.model_dump(mode="json"))
        leaves = [Leaf.model_validate(leaf) for leaf in answer["leaves"]]
        told = [(step, values) for step, values in answer["told"]]
        return Recording(contract, folder, answer["losses"], answer["times"], leaves, told)

    def begin(self, contract: Contract, folder: Path, *, until: int) -> None:
        """Record a run whose process is killed as soon as it has committed to leaf `until`."""
        shutil.rmtree(folder / "states", ignore_errors=True)
        try:
            self.ask("log", folder, contract=contract.model_dump(mode="json"), until=until)
        except TrainingFailed as end:
            if "SIGKILL" not in str(end):
                raise

    def go_on(self, contract: Contract, folder: Path) -> Recording:
        """Go on with a recording that was interrupted."""
        self.ask("log", folder, contract=contract.model_dump(mode="json"), until=None)
        losses, times = (uncolumn((folder / name).read_bytes()) for name in (recording.LOSSES, recording.TIMES))
        return Recording(contract, folder, list(losses), list(times), recording.leaves(folder))

    def regenerate(self, contract: Contract, job: Path, folder: Path, states: tuple[int, ...]) -> RegenerateReport:
        request = RegenerateRequest(contract=contract, states=states).model_dump(mode="json")
        folder.mkdir(exist_ok=True)
        return RegenerateReport.model_validate(self.ask("regenerate", folder, job=str(job), request=request))

    def replay(
        self, recording: Recording, opening: Opening, *, foretell: float = 0, make: tuple[int, ...] = ()
    ) -> ReplayReport:
        request = ReplayRequest(
            contract=recording.contract,
            segments=opening.segments,
            compare=opening.compare,
            evaluations=opening.evaluations,
            digests={n: recording.leaves[n].state for n in opening.indices},
            foretell=foretell,
            make=make,
        )
        return ReplayReport.model_validate(
            self.ask("replay", recording.folder, request=request.model_dump(mode="json"))
        )

    def look(self, recording: Recording, opening: Opening, *, foretell: float = 0) -> Iterator[Evidence]:
        """Replay what was drawn, and then, round by round, what gives cause for doubt, as a verifier does."""
        report, opened = self.replay(recording, opening, foretell=foretell), set(opening.indices)
        found = evidence(recording, opening, report)
        yield found
        for rounds in itertools.count():
            files = {n: recording.folder / "states" / f"{n}.safetensors" for n in opened}
            more = doubts(found, files, ends=True, rounds=rounds, states=len(opened) - len(opening.indices))
            if not more:
                break
            opened |= more.indices
            if more.segments and found.replay is not None:
                starts = tuple(sorted(more.segments))
                indices = tuple(sorted(more.segments | {n + 1 for n in starts}))
                again = self.replay(recording, Opening(indices, starts, evaluations=(), compare=starts))
                found = replace(found, replay=together(found.replay, again), asked=(*found.asked, *starts))
            yield found


def carry(here: Path, there: Path) -> None:
    """An interrupted recording on another host: its log and states, and the script from where it came."""
    for name in ("states", recording.LEAVES, recording.LOSSES, recording.TIMES):
        (here / name).rename(there / name)


def place(script: Path | str, folder: Path) -> None:
    (folder / "work").mkdir(parents=True, exist_ok=True)
    text = script.read_text() if isinstance(script, Path) else script
    (folder / "work" / "train.py").write_text(text)


def contract(
    facts: ScriptFacts, *, epochs: int = 3, every: int = 4, keep: int = 1, seed: str = "b" * 64, threads: int = 1
) -> Contract:
    return Contract(
        job=UUID(int=1),
        lease=UUID(int=2),
        seed=seed,
        code="0" * 64,
        data="0" * 64,
        script="train.py",
        args=(),
        epochs=epochs,
        checkpoint_every=every,
        keep_every=keep,
        threads=threads,
        facts=facts,
    )


def challenge(
    recording: Recording, *, segments: int = 3, ends: bool = False, measured: Measured | None = None
) -> Opening:
    return draw(
        recording.contract,
        recording.leaves,
        measured=measured,
        audit_segments=segments,
        top_q=1,
        pev_percent=20,
        random=random.Random(7),
        ends=ends,
    )


def window(leaf: int) -> Opening:
    """One segment, and nothing else."""
    return Opening(indices=(leaf,), segments=(leaf,), evaluations=(), compare=())


def evidence(recording: Recording, opening: Opening, report: ReplayReport) -> Evidence:
    """What the platform would know after an honest lease on a host of the verifier's class."""
    return Evidence(
        contract=recording.contract,
        losses=recording.losses,
        times=recording.times,
        samples=[],
        leaves=recording.leaves,
        leaf_received_at=[
            recording.times[min(max(1, leaf.step), len(recording.times)) - 1] for leaf in recording.leaves
        ],
        chain_problem=None,
        replay=report,
        opening_problem=None,
        worker_environment=report.environment,
        verifier_environment=report.environment,
        top_q=1,
        pev_percent=20,
        asked=opening.segments,
    )


# -- the other end -----------------------------------------------------------------------------------------------------


class Notes:
    """A sink that keeps what it hears, from iteration `begin` on."""

    def __init__(self, begin: int = 0) -> None:
        self.begin = begin
        self.losses: list[float] = []
        self.times: list[float] = []
        self.leaves: list[Any] = []
        self.told: list[tuple[int, dict[str, float]]] = []

    def iteration(self, step: int, loss: float, at: float) -> None:
        assert step == self.begin + len(self.losses)
        self.losses.append(loss)
        self.times.append(at)

    def leaf(self, leaf: Leaf) -> None:
        self.leaves.append(leaf.model_dump(mode="json"))

    def scalars(self, values: Mapping[str, float]) -> None:
        self.told.append((self.begin + len(self.losses), dict(values)))


class Dying(recording.Log):
    """A log whose process is killed when it holds leaf `until`."""

    def __init__(self, folder: Path, until: int) -> None:
        super().__init__(folder)
        self.until = until

    def leaf(self, leaf: Leaf) -> None:
        super().leaf(leaf)
        if leaf.index == self.until:
            os.kill(os.getpid(), signal.SIGKILL)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    from labapex.proof import engine
    from labapex.proof.isolate import isolated

    folder = Path(request["folder"])
    if request["verb"] == "preflight":
        asked = PreflightRequest.model_validate(request["request"])
        return engine.preflight(request=asked, folder=folder).model_dump(mode="json")
    if request["verb"] == "replay":
        wanted = ReplayRequest.model_validate(request["request"])
        return engine.replay(request=wanted, folder=folder).model_dump(mode="json")

    if request["verb"] == "regenerate":
        missing = RegenerateRequest.model_validate(request["request"])
        return engine.regenerate(request=missing, job=Path(request["job"]), folder=folder).model_dump(mode="json")
    contract = Contract.model_validate(request["contract"])

    def train() -> dict[str, Any]:
        notes = Notes(contract.after.step if contract.after else 0)
        engine.train(contract=contract, folder=folder, sink=notes)
        return vars(notes)

    def log() -> dict[str, Any]:
        after = recording.resumable(folder, contract)
        sink = recording.Log(folder, after) if request["until"] is None else Dying(folder, request["until"])
        engine.train(contract=contract, folder=folder, sink=sink, after=after[-1] if after else None)
        return {}

    return isolated(train if request["verb"] == "train" else log, folder / "train.log", writes=(folder,))


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            result: dict[str, Any] = {"result": answer(json.loads(line))}
        except TrainingFailed as error:
            result = {"problem": str(error)}
        answers.write(json.dumps(result) + "\n")
        answers.flush()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    serve(answer)
