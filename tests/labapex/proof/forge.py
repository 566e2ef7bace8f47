"""A cheat who knows the format: takes a valid proof apart, changes it, and makes every digest fit again."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.labapex.proof.lab import Lab

from labapex.proof import folder, sources
from labapex.proof.folder import Asked, Files, Proof
from labapex.proof.state import State, parameter_change
from labapex.proof.verifier import Replay, Replayed
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Contract, Environment
from labapex.protocol.records import Leaf, column
from labapex.protocol.replay import ReplayReport, ReplayRequest

SCRIPT = """
import argparse
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from net import net

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
args = parser.parse_args()
raw = torch.tensor(list(open("data/points.bin", "rb").read()), dtype=torch.float32).reshape(-1, 4) / 255
loader = DataLoader(TensorDataset(raw, raw.sum(1, keepdim=True)), batch_size=4, shuffle=True)
model = net()
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
for epoch in range(2):
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    print("epoch", epoch, loss.item())
"""
NET = """
from torch import nn


def net():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(0.1), nn.Linear(5, 1))
"""


def write_job(root: Path) -> Path:
    """A folder with a script, a module of its own and data; the script's path. 2 epochs of 5 iterations."""
    (root / "data").mkdir(parents=True)
    (root / "train.py").write_text(SCRIPT)
    (root / "net.py").write_text(NET)
    (root / "data" / "points.bin").write_bytes(bytes((7 * n * n + 3 * n) % 256 for n in range(80)))
    return root / "train.py"


@dataclass
class Forgery:
    contract: Contract
    leaves: list[Leaf]
    losses: list[float]
    times: list[float]
    files: Files
    code: list[bytes]
    environment: Environment | None
    states: dict[int, Path]
    weights: Path | None
    origin: Any = "recorded"
    asked: Asked | None = None
    chunks: Path | None = None

    @classmethod
    def of(cls, proof: Proof) -> Forgery:
        return cls(
            contract=proof.contract,
            leaves=list(proof.leaves),
            losses=list(proof.losses),
            times=list(proof.times),
            files=proof.files,
            code=[text for part in proof.files.code if (text := folder.code_text(proof, part)) is not None],
            environment=proof.environment,
            states={index: proof.state_path(index) for index in proof.states},
            weights=proof.root / folder.WEIGHTS,
        )

    def leaf(self, index: int, /, **changes: Any) -> None:
        self.leaves[index] = self.leaves[index].model_copy(update=changes)

    def terms(self, **changes: Any) -> None:
        self.contract = self.contract.model_copy(update=changes)

    def rechain(self) -> None:
        """Let the leaves commit to the losses as they are now, and follow one another from the contract."""
        prev, at = digest(self.contract), 0
        for index, leaf in enumerate(self.leaves):
            losses = hashlib.sha256(column(self.losses[at : leaf.step])).hexdigest()
            self.leaf(index, prev=prev, losses=losses)
            prev, at = self.leaves[index].digest(), leaf.step

    def write(self, root: Path) -> Path:
        """A folder whose manifest fits; states are copied."""
        manifest, contents = folder.build(
            origin=self.origin,
            contract=self.contract,
            leaves=self.leaves,
            losses=self.losses,
            times=self.times,
            files=self.files,
            code=self.code,
            environment=self.environment,
            states=self.states,
            weights=self.weights,
            asked=self.asked,
            chunks=self.chunks,
        )
        plain = {path: c if isinstance(c, bytes) else c.read_bytes() for path, c in contents.items()}
        folder.store(manifest, plain, root)
        return root


def rounded_elsewhere(forged: Forgery, root: Path) -> Path:
    """The run as a host of another class would have made it, whose last bits in the middle are not those of this one."""
    assert forged.environment is not None
    forged.environment = forged.environment.model_copy(update={"device": "cpu: another one"})
    states = [State.load(forged.states[index]) for index in range(5)]
    for name in states[3].parameters:
        states[3].tensors[name] *= 1 + 1e-6
    forged.states = {**forged.states, 3: root.with_name("3.safetensors")}
    forged.leaf(3, size=states[3].save(forged.states[3]), state=states[3].digest())
    for index in (3, 4):
        forged.leaf(index, update_norm=parameter_change(states[index - 1], states[index]))
    forged.rechain()
    return forged.write(root)


def replayer(lab: Lab, proof: Proof, data: Path, scratch: Path) -> Replay:
    """Replays in the laboratory, which keeps torch warm; the command's own child has its tests with the command line."""

    def replay(request: ReplayRequest) -> Replayed:
        shutil.rmtree(scratch, ignore_errors=True)
        (scratch / "states").mkdir(parents=True)
        (scratch / "work").mkdir()
        sources.match(proof, None, data).fill(scratch / "work")
        for index in request.digests:
            shutil.copy(proof.state_path(index), scratch / "states")
        report = ReplayReport.model_validate(lab.ask("replay", scratch, request=request.model_dump(mode="json")))
        weights = scratch / folder.WEIGHTS
        return Replayed(report, hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else None)

    return replay
