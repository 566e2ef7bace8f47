"""A cheat who knows the format: takes a valid proof apart, changes it, and makes every digest fit again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labapex.proof import folder
from labapex.proof.folder import Files, Proof
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Contract, Environment
from labapex.protocol.records import Leaf, column

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
        )
        plain = {path: c if isinstance(c, bytes) else c.read_bytes() for path, c in contents.items()}
        folder.store(manifest, plain, root)
        return root
