"""Runs of the workloads under measurement, each in a process of its own, for the benchmarks of proofs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from labapex.errors import TrainingFailed
from labapex.proof.determinism import pin
from labapex.protocol.contract import Contract, ScriptFacts
from labapex.protocol.replay import ReplayReport, ReplayRequest

WORKLOADS = Path(__file__).resolve().parent / "workloads"
CPU = {"CUDA_VISIBLE_DEVICES": ""}  # a host that has no GPU, or is to use none


@dataclass(frozen=True)
class Recorded:
    contract: Contract
    folder: Path
    figures: dict[str, Any]


class Bench:
    """Runs workloads below one folder, each forked by a process that is pinned as a host would be.

    `host` is what a host's environment has beside the pins: by default it has no GPU.
    """

    def __init__(self, home: Path, host: dict[str, str] = CPU) -> None:
        self.home = home
        self.host = host
        self.number = 0
        self.hosts: dict[str, subprocess.Popen[str]] = {}

    def folder(self, model: str) -> Path:
        self.number += 1
        folder = self.home / str(self.number)
        (folder / "work").mkdir(parents=True)
        shutil.copy(WORKLOADS / f"{model}.py", folder / "work" / "train.py")
        return folder

    def run(
        self, mode: str, folder: Path, request: Any, *, threads: int = 1, host: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """The answer of `workloads/run.py` on a host. Raises `TrainingFailed` with what went wrong there."""
        pins = {**pin(threads), **(self.host if host is None else host)}
        name = json.dumps(pins)
        if name not in self.hosts:
            command = [sys.executable, str(WORKLOADS / "run.py")]
            self.hosts[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **pins}
            )
        process = self.hosts[name]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"mode": mode, "folder": str(folder), "request": request}) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline() or '{"problem": "the process ended"}')
        if "problem" in answer:
            raise TrainingFailed(answer["problem"])
        return answer

    def close(self) -> None:
        for process in self.hosts.values():
            process.communicate()

    def bare(
        self,
        model: str,
        iterations: int,
        batch: int,
        *,
        options: tuple[str, ...] = (),
        save_every: int = 0,
        deterministic: bool = False,
    ) -> dict[str, Any]:
        """The script as it is; with a naive `torch.save` each `save_every` steps, or under deterministic algorithms."""
        folder = self.folder(model)
        request = {
            "args": [*arguments(iterations, batch, 1, options), "--save-every", str(save_every)],
            "deterministic": deterministic,
        }
        found = self.run("bare", folder, request)
        shutil.rmtree(folder)
        return found

    def record(
        self,
        model: str,
        iterations: int,
        batch: int,
        every: int,
        *,
        epochs: int = 1,
        options: tuple[str, ...] = (),
        seed: str = "a" * 64,
        host: dict[str, str] | None = None,
    ) -> Recorded:
        folder = self.folder(model)
        contract = terms(folder / "work" / "train.py", iterations, batch, every, seed, epochs, options)
        return Recorded(contract, folder, self.run("record", folder, contract.model_dump(mode="json"), host=host))

    def replay(
        self,
        recorded: Recorded,
        segments: tuple[int, ...],
        *,
        threads: int = 1,
        host: dict[str, str] | None = None,
    ) -> tuple[ReplayReport, float]:
        """Replay segments of a run, with the distances to what was recorded; and the CPU seconds that it took.

        Raises `TrainingFailed` where the host cannot.
        """
        opened = sorted({*segments, *(n + 1 for n in segments)})
        request = ReplayRequest(
            contract=recorded.contract.model_copy(update={"threads": threads}),
            segments=segments,
            compare=segments,
            digests={n: recorded.figures["digests"][n] for n in opened},
        )
        found = self.run("replay", recorded.folder, request.model_dump(mode="json"), threads=threads, host=host)
        report = ReplayReport.model_validate(found["report"])
        if report.problem is not None or report.mismatched:
            raise TrainingFailed(report.problem or f"states are not those that were committed: {report.mismatched}")
        return report, float(found["seconds"])


def arguments(iterations: int, batch: int, epochs: int = 1, options: tuple[str, ...] = ()) -> list[str]:
    return ["--iterations", str(iterations), "--batch", str(batch), "--epochs", str(epochs), *options]


def terms(
    script: Path, iterations: int, batch: int, every: int, seed: str, epochs: int = 1, options: tuple[str, ...] = ()
) -> Contract:
    """The terms of a run of `iterations` an epoch, as if a preflight had found the script's facts."""
    line = next(n for n, text in enumerate(script.read_text().splitlines(), start=1) if "in enumerate(loader" in text)
    facts = ScriptFacts(
        loop=f"train.py:{line}", iterations_per_epoch=iterations, has_loader=True, gradients_are_state=False,
        parameters=0, state_bytes=0,
    )  # fmt: skip
    return Contract(
        job=UUID(int=1), lease=UUID(int=2), seed=seed, code="0" * 64, data="0" * 64, script="train.py",
        args=tuple(arguments(iterations, batch, epochs, options)), epochs=epochs, checkpoint_every=every, threads=1,
        facts=facts,
    )  # fmt: skip
