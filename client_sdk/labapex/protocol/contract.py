"""What the platform signs before a job runs. Nothing that a worker sends is an input to a replay but a committed state."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field, StringConstraints

from labapex.protocol.canonical import Digest, Message
from labapex.protocol.spec import BundlePath

Seed = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Environment(Message):
    """What decides the bits of a result. Two hosts with equal environments reproduce each other exactly."""

    python: str = Field(max_length=40)
    torch: str = Field(max_length=80)
    device: str = Field(max_length=200)  # "cpu: AMD EPYC ..." or "cuda: NVIDIA H200"
    capability: str = Field(max_length=40)  # ATen's CPU capability or the GPU's compute capability
    threads: int = Field(ge=1, le=256)


class ScriptFacts(Message):
    """What the preflight found out about a script; the recorder and the verifier follow it."""

    loop: str = Field(max_length=500)  # "train.py:41", the loop whose turn is an iteration
    iterations_per_epoch: int = Field(ge=1)
    has_loader: bool  # one batch of one DataLoader in each iteration
    gradients_are_state: bool  # .grad survives from one iteration to the next
    parameters: int = Field(ge=0)
    state_bytes: int = Field(ge=0)


class Contract(Message):
    """One lease's terms. `seed` is drawn when the lease is granted and decides all randomness of the run."""

    format: int = 1
    job: UUID
    lease: UUID
    seed: Seed
    code: Digest  # of the canonical list of code parts
    data: Digest  # of the canonical list of data parts
    script: BundlePath
    args: tuple[str, ...]
    epochs: int = Field(ge=1)
    checkpoint_every: int = Field(ge=1)
    threads: int = Field(ge=1)
    facts: ScriptFacts

    @property
    def iterations(self) -> int:
        """E x I: the number of loss logs of a complete run."""
        return self.epochs * self.facts.iterations_per_epoch

    def leaf_steps(self) -> list[int]:
        """The steps at which a leaf is due: 0, k, 2k, ... each epoch's end, and the last step; ascending.

        Epoch ends are leaves of their own because Probabilistic Epoch Validation looks at epoch checkpoints."""
        epoch_ends = {e * self.facts.iterations_per_epoch for e in range(1, self.epochs + 1)}
        return sorted(set(range(0, self.iterations, self.checkpoint_every)) | epoch_ends)
