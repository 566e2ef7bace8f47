"""What recording costs, in CPU seconds: a run without it, with `torch.save` each k steps, and recorded each k steps.

Prints ratios to the same script run bare in the same minute. Usage: record.py [iterations]
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

from labapex.proof.determinism import pin

if any(os.environ.get(name) != value for name, value in pin(1).items()):  # read when torch is imported
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **pin(1)})

from labapex.proof import engine
from labapex.proof.isolate import isolated
from labapex.protocol.contract import Contract, ScriptFacts
from labapex.protocol.records import Leaf

COMMON = """
import os, torch
from torch import nn
import torch.nn.functional as F
torch.set_num_threads(1)
torch.manual_seed(0)
N, SAVE = int(os.environ["N"]), int(os.environ["SAVE"])
"""

RESNET = (
    COMMON
    + """
class Block(nn.Module):
    def __init__(self, i, o, s):
        super().__init__()
        self.a, self.b = nn.Conv2d(i, o, 3, s, 1, bias=False), nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.n, self.m = nn.BatchNorm2d(o), nn.BatchNorm2d(o)
        self.skip = nn.Conv2d(i, o, 1, s, bias=False) if i != o else nn.Identity()

    def forward(self, x):
        return F.relu(self.m(self.b(F.relu(self.n(self.a(x))))) + self.skip(x))

def stage(i, o, s):
    return [Block(i, o, s), Block(o, o, 1), Block(o, o, 1)]

model = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), *stage(16, 16, 1), *stage(16, 32, 2), *stage(32, 64, 2),
                      nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
def batch():
    return torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
"""
)

GPT = (
    COMMON
    + """
layer = nn.TransformerEncoderLayer(128, 4, 512, 0.1, batch_first=True, norm_first=True)
model = nn.Sequential(nn.Embedding(96, 128), nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(128, 96),
                      nn.Flatten(0, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
def batch():
    x = torch.randint(96, (8, 65))
    return x[:, :-1], x[:, 1:].flatten()
"""
)

LOOP = """
for step in range(N):
    x, y = batch()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    if SAVE and step % SAVE == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "checkpoint.pt")
"""


class Nobody:
    """A sink that forgets."""

    def iteration(self, step: int, loss: float, at: float) -> None:
        pass

    def leaf(self, leaf: Leaf) -> None:
        pass


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def bare(folder: Path) -> dict[str, Any]:
    os.chdir(folder / "work")
    code = compile((folder / "work" / "train.py").read_text(), "train.py", "exec")
    began = cpu()
    exec(code, {"__name__": "__main__"})
    return {"cpu": cpu() - began}


def recorded(folder: Path, iterations: int, every: int) -> dict[str, Any]:
    line = 1 + next(
        n for n, text in enumerate((folder / "work" / "train.py").read_text().splitlines()) if "range(N)" in text
    )
    facts = ScriptFacts(
        loop=f"train.py:{line}", iterations_per_epoch=iterations, has_loader=False, gradients_are_state=False,
        parameters=0, state_bytes=0,
    )  # fmt: skip
    contract = Contract(
        job=UUID(int=1), lease=UUID(int=2), seed="a" * 64, code="0" * 64, data="0" * 64, script="train.py", args=(),
        epochs=1, checkpoint_every=every, threads=1, facts=facts,
    )  # fmt: skip
    began = cpu()
    engine.train(contract=contract, folder=folder, sink=Nobody())
    return {"cpu": cpu() - began}


def measure(source: str, iterations: int, *, save: int = 0, every: int = 0) -> float:
    os.environ.update(N=str(iterations), SAVE=str(save))
    folder = Path(tempfile.mkdtemp(prefix="labapex-bench-"))
    (folder / "work").mkdir()
    (folder / "work" / "train.py").write_text(source + LOOP)

    def work() -> dict[str, Any]:
        return recorded(folder, iterations, every) if every else bare(folder)

    spent: float = isolated(work, folder / "log")["cpu"]
    shutil.rmtree(folder)
    return spent


def main() -> None:
    iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    print(f"CPU seconds over those of the bare script; {iterations} iterations, one thread")
    print(f"{'':12} {'k':>4} {'torch.save':>11} {'recorded':>9}")
    for name, source in {"ResNet-20": RESNET, "small GPT": GPT}.items():
        measure(source, 2)  # warms the caches
        base = measure(source, iterations)
        for every in (1, 10, 100):
            saved = measure(source, iterations, save=every) / base
            kept = measure(source, iterations, every=every) / base
            print(f"{name:12} {every:4d} {saved:11.3f} {kept:9.3f}", flush=True)
            print(json.dumps({"benchmark": "record", "model": name, "k": every, "torch_save": saved, "recorded": kept}))


if __name__ == "__main__":
    main()
