"""What the platform signs before a job runs. Nothing that a worker sends is an input to a replay but a committed state."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, NamedTuple
from uuid import UUID

from pydantic import Field, StringConstraints, model_validator

from labapex.protocol.canonical import Digest, Message
from labapex.protocol.limits import Limits
from labapex.protocol.records import Leaf
from labapex.protocol.requirements import NOTHING
from labapex.protocol.spec import MAX_PARENTS, BundlePath

Seed = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Environment(Message):
    """What decides the bits of a result. Two hosts with equal environments reproduce each other exactly."""

    python: str = Field(max_length=40)
    torch: str = Field(max_length=80)
    device: str = Field(max_length=200)  # "cpu: AMD EPYC ..." or "cuda: NVIDIA H200"
    capability: str = Field(max_length=40)  # ATen's CPU capability or the GPU's compute capability
    threads: int = Field(ge=1, le=256)


class TorchBuild(Message):
    """A build of torch by its name, `labapex.installed.Build.digest`, as an operator puts it on record."""

    torch: str = Field(max_length=80)
    files: int = Field(ge=0)  # Python and shared libraries
    digest: Digest


class Stretch(Message):
    """A run of bytes of one type in the stream of a state's parameters."""

    type: str = Field(max_length=20)  # "float32", as torch names it
    size: int = Field(ge=1)  # bytes


class ScriptFacts(Message):
    """What the preflight found out about a script; the recorder and the verifier follow it."""

    loop: str = Field(max_length=500)  # "train.py:41", the loop whose turn is an iteration
    iterations_per_epoch: int = Field(ge=1)
    has_loader: bool  # one batch of one DataLoader in each iteration
    gradients_are_state: bool  # .grad survives from one iteration to the next
    parameters: int = Field(ge=0)
    state_bytes: int = Field(ge=0)
    layout: tuple[Stretch, ...] = Field(default=(), max_length=4096)  # of the parameters in the first state's tree


class Parent(Message):
    """A certified model that a run may start from: its file lies among the data, and another proof vouches for it."""

    path: BundlePath  # "parents/0.safetensors"
    weights: Digest  # SHA-256 of that file
    certificate: Digest  # of the certificate over it
    success: float = Field(ge=0, le=1)  # of its own whole chain: `Origin.success` of that certificate


MAX_HANDOVERS = 64


class Handover(Message):
    """Where a host that was lost left a run, and another one goes on: behind `leaf`, whose state the platform holds."""

    lease: UUID  # of the host that was lost
    leaf: Leaf  # the last of its leaves that counts
    held: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, max_length=100_000)
    # ^ the leaves of its stint whose states the platform holds, ascending; the last is `leaf`


class Stint(NamedTuple):
    """What one host did of a run: iterations `start` .. `stop` - 1, leaves `first` .. `last`."""

    lease: UUID
    start: int
    stop: int
    first: int
    last: int


class Contract(Message):
    """One lease's terms. `seed` is drawn when a run begins and decides all its randomness; who goes on with the run of a host
    that was lost is given the same terms, and `handovers` that tell how it came to him."""

    format: Literal[1] = 1
    job: UUID
    lease: UUID
    seed: Seed
    code: Digest  # of the canonical list of code parts
    data: Digest  # of the canonical list of data parts, the parents' files among them
    parents: tuple[Parent, ...] = Field(default=(), max_length=MAX_PARENTS)
    requirements: Digest = NOTHING  # of the canonical `requirements.Lock`
    script: BundlePath
    args: tuple[str, ...]
    epochs: int = Field(ge=1)
    checkpoint_every: int = Field(ge=1)
    keep_every: int = Field(
        default=1, ge=1
    )  # the host keeps the states of each so many leaves; it makes the others anew
    upload_every: int = Field(
        default=0, ge=0
    )  # the platform fetches, while it trains, each so many leaves' state; 0: none
    handovers: tuple[Handover, ...] = Field(
        default=(), max_length=MAX_HANDOVERS
    )  # of the hosts before this one, in order; of one that is gone, its own too
    stopped: int | None = Field(default=None, ge=1)  # epochs that count of a run that its client stopped
    threads: int = Field(ge=1)
    limits: Limits | None = None  # of what the run takes of its host; None: of a run that nobody ordered
    facts: ScriptFacts

    @model_validator(mode="after")
    def _one_run(self) -> Contract:
        """Handovers follow one another, and what is held of each stint lies in it; of the first, the initial state too."""
        before = -1
        for handover in self.handovers:
            held = handover.held
            inside = before < held[0] and held[-1] == handover.leaf.index and all(a < b for a, b in pairwise(held))
            if not inside or (before < 0 < held[0]):
                raise ValueError("handovers must follow one another, each with the leaves that are held of its stint")
            before = held[-1]
        if self.stopped is not None and self.stopped > self.epochs:
            raise ValueError("no more epochs count than there are")
        return self

    @property
    def iterations(self) -> int:
        """E x I: the number of loss logs of a complete run."""
        return self.epochs * self.facts.iterations_per_epoch

    @property
    def counted(self) -> int:
        """The epochs that are judged and paid: all, or the complete ones where the client stopped the run."""
        return self.epochs if self.stopped is None else self.stopped

    @property
    def until(self) -> int:
        """The iteration up to which the run counts."""
        return self.counted * self.facts.iterations_per_epoch

    def leaf_steps(self) -> list[int]:
        """The steps at which a leaf is due: 0, k, 2k, ... each epoch's end, and the last step that counts; ascending.

        Epoch ends are leaves of their own because Probabilistic Epoch Validation looks at epoch checkpoints."""
        epoch_ends = {e * self.facts.iterations_per_epoch for e in range(1, self.counted + 1)}
        return sorted(set(range(0, self.until, self.checkpoint_every)) | epoch_ends)

    def kept_leaves(self) -> frozenset[int]:
        """The leaves whose states can be shown at once: the host's each `keep_every`-th, from the first on, and the last one
        that is due; of the hosts before it, what the platform holds."""
        last = len(self.leaf_steps()) - 1
        begin = 0 if self.after is None else -(-(self.after.index + 1) // self.keep_every) * self.keep_every
        end = (
            {last} if self.stopped is None else set()
        )  # where it was stopped the host had not known that it was the last
        return frozenset({*range(begin, last + 1, self.keep_every), *end, *self.held})

    # -- one run on several hosts --------------------------------------------------------------------------------------

    @property
    def first(self) -> Contract:
        """The terms under which the run began: what its first leaf is chained to."""
        begun = self.handovers[0].lease if self.handovers else self.lease
        return self.model_copy(update={"lease": begun, "handovers": (), "stopped": None})

    @property
    def after(self) -> Leaf | None:
        """The leaf behind which this lease's host goes on; None where it begins."""
        return self.handovers[-1].leaf if self.handovers else None

    @property
    def gone(self) -> bool:
        """Whether its own host is gone too: of what it did there is what the platform holds."""
        return bool(self.handovers) and self.handovers[-1].lease == self.lease

    @property
    def held(self) -> frozenset[int]:
        """The leaves of the hosts before this one whose states the platform holds."""
        return frozenset(index for handover in self.handovers for index in handover.held)

    def origin(self, index: int) -> int:
        """The leaf whose state leads to leaf `index`: itself, where this lease's host has made it or the platform holds it;
        else the nearest that is held before it."""
        if self.after is None or index > self.after.index:
            return index
        return max(held for held in self.held if held <= index)

    def stints(self) -> tuple[Stint, ...]:
        """Who did what of the run, in order; together they are all of it."""
        made: list[Stint] = []
        for handover in self.handovers:
            start, first = (made[-1].stop, made[-1].last + 1) if made else (0, 0)
            made.append(Stint(handover.lease, start, handover.leaf.step, first, handover.leaf.index))
        if self.gone:
            return tuple(made)
        start, first = (made[-1].stop, made[-1].last + 1) if made else (0, 0)
        return (*made, Stint(self.lease, start, self.until, first, len(self.leaf_steps()) - 1))

    def stint_of(self, segment: int) -> Stint:
        """Whose a segment is, named by the leaf that it begins with."""
        return next(stint for stint in self.stints() if segment < stint.last or stint.lease == self.lease)
