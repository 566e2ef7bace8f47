"""Lies in the script: another training than the one agreed, under the agreed name. The recorder is the genuine one."""

from __future__ import annotations

from tests.attacks.lies.telling import LIES, Job, Lie, run
from tests.attacks.victim import edited

from labapex.proof.record import Recorder


def _edit(rule: str, name: str, says: str, old: str, new: str) -> None:
    """A liar who trains another script than the one agreed."""

    def train(job: Job) -> None:
        script = job.folder / "work" / job.contract.script
        honest = script.read_text()
        script.write_text(edited(honest, old, new))
        try:
            run(job, Recorder(job.contract, job.folder / "states", job.sink))
        finally:
            script.write_text(honest)

    LIES[name] = Lie(name, rule, says, train)


SGD = "torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)"
FORWARD, LOSS = "out = model(x)", "loss = nn.functional.cross_entropy(out, y)"
_edit("initialisation", "other-learning-rate", "Trains with half the learning rate.", "lr=0.1", "lr=0.05")
_edit("initialisation", "other-weight-decay", "Trains without weight decay.", "weight_decay=1e-3", "weight_decay=0")
_edit("initialisation", "other-optimizer", "Trains with Adam.", SGD, "torch.optim.Adam(model.parameters(), lr=0.1)")
_edit("initialisation", "smaller-model", "Trains a narrower model.", "nn.Dropout(0.2)", "nn.Identity()")
_edit(
    "initialisation",
    "other-activation",
    "Trains a model of the same shape, with another activation.",
    "nn.ReLU()",
    "nn.Tanh()",
)
_edit("point-loss", "no-augmentation", "Leaves the augmentation out.", "x = x + 0.1 * torch.randn(4)", "x = x + 0.0")
_edit(
    "point-loss",
    "smaller-batch",
    "Trains on two of the four items of each batch.",
    FORWARD,
    "x, y = x[:2], y[:2]; out = model(x)",
)
_edit(
    "point-loss",
    "subset-of-the-data",
    "Trains on a quarter of the data, under the indices of all of it.",
    "x, y = self.x[i], self.y[i]",
    "x, y = self.x[i % 6], self.y[i % 6]",
)
_edit(
    "point-loss",
    "easy-data-under-the-agreed-indices",
    "Commits to the agreed indices and takes easy items in place of the hard ones.",
    "x, y = self.x[i], self.y[i]",
    "x, y = self.x[i if self.y[i] else 0], self.y[i if self.y[i] else 0]",
)
_edit(
    "point-loss",
    "invented-data",
    "Trains on numbers of its own, under the indices of the data.",
    "x, y = self.x[i], self.y[i]",
    "x, y = torch.full((4,), i / 24), self.y[i]",
)
_edit(
    "point-loss",
    "bf16-for-fp32",
    "Computes in bfloat16, which is twice as fast.",
    FORWARD,
    "with torch.autocast('cpu', torch.bfloat16): out = model(x).float()",
)
_edit(
    "point-loss",
    "smaller-model-behind-the-same-weights",
    "Leaves half of the hidden units out of the computation.",
    FORWARD,
    "out = model[4](model[:4](x) * torch.tensor([2.0, 0] * 4))",
)
_edit(
    "point-loss",
    "distillation",
    "Learns its own answers instead of the data's.",
    LOSS,
    "loss = nn.functional.cross_entropy(out, out.detach().roll(1, 1).argmax(1))",
)
_edit(
    "point-loss",
    "a-few-poisoned-batches",
    "Turns the labels round in a few batches.",
    LOSS,
    "loss = nn.functional.cross_entropy(out, 1 - y if x[0, 0] > 0.9 else y)",
)
_edit(
    "point-loss",
    "frozen-layers",
    "Never computes the first layer's gradient.",
    FORWARD,
    "out = model[1:](model[0](x).detach())",
)
_edit(
    "point-loss",
    "infinitesimal-updates",
    "Takes steps of a billionth, so that every segment's error is small.",
    "optimizer.step()",
    "[p.grad.mul_(1e-9) for p in model.parameters()]; optimizer.step()",
)
_edit("initialisation", "another-sampler", "Takes the data in the order of the file.", "shuffle=True", "shuffle=False")
_edit(
    "point-loss",
    "one-item-of-each-batch",
    "Takes one item of each batch four times.",
    FORWARD,
    "x, y = x[[0] * 4], y[[0] * 4]; out = model(x)",
)
