"""Requests to the runner's modes `preflight`, `replay` and `regenerate`, and its reports: JSON files in the job's folder.

The platform starts the frozen runner in the sandbox, hands it a folder and reads the report under a size cap. The report
was written by a process in which the client's code ran: it is hostile input, read with `parse`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from labapex.protocol.canonical import Digest, Message
from labapex.protocol.contract import Contract, Environment, Parent, ScriptFacts, Seed
from labapex.protocol.spec import BundlePath

MAX_REPORT = 64 << 20


class StartReport(Message):
    """The initial parameters beside those of a fresh start under another seed, tensor by tensor."""

    tensors: int = Field(ge=0)  # that an optimizer trains
    given: int = Field(ge=0)  # equal under both seeds, and not of one value: they come from the code or the data
    unproven: int = Field(ge=0)  # of the given: those whose bytes are in no parent's file
    names: tuple[Annotated[str, StringConstraints(max_length=300)], ...] = Field(default=(), max_length=20)  # of these
    tested: int = Field(default=0, ge=0)  # tensors that the test of Kolmogorov and Smirnov looked at
    least_p: float | None = Field(default=None, ge=0, le=1)  # the smallest of their p-values
    least_name: str | None = Field(default=None, max_length=300)  # and whose it is


class PreflightRequest(Message):
    """Run the script in `work/` under the job's folder: discover its loop, record 2k iterations, replay them."""

    script: BundlePath
    args: tuple[str, ...]
    epochs: int
    iterations_per_epoch: int | None
    checkpoint_every: int
    threads: int
    seed: Seed
    parents: tuple[Parent, ...] = ()


class PreflightReport(Message):
    """What the preflight found. `problem` is None for a script that may run; else it says what to mend."""

    problem: str | None = Field(default=None, max_length=20_000)
    console: str = Field(default="", max_length=200_000)
    facts: ScriptFacts | None = None
    environment: Environment | None = None
    initial_state: Digest | None = None  # under the request's seed
    start: StartReport | None = None
    iteration_seconds: float = Field(default=0, ge=0)  # median, on the platform
    replay_max_error: float | None = Field(default=None, ge=0)


class ReplayRequest(Message):
    """Replay segments and evaluate epochs of one lease. State files lie in `states/<leaf index>.safetensors`."""

    contract: Contract
    segments: tuple[int, ...]  # index of the leaf each begins with; it ends at the next leaf
    compare: tuple[int, ...] = ()  # segments whose end state is at hand too, for distances
    evaluations: tuple[EpochSample, ...] = ()
    digests: dict[int, Digest]  # leaf index -> committed state digest, for every state that is loaded
    make: tuple[int, ...] = ()  # leaves whose replayed states are written to `made/<leaf index>.safetensors`
    foretell: float = Field(default=0, ge=0)  # seconds that foretelling the settings may take; 0: not asked for


class EpochSample(Message):
    """PEV: recompute the loss of these iterations with the weights of the epoch's checkpoint."""

    epoch: int = Field(ge=1)
    leaf: int = Field(ge=0)
    iterations: tuple[int, ...]


class Distances(Message):
    """Between the committed and the replayed parameters at a segment's end (Jia et al., section VI-C)."""

    l1: float | None
    l2: float | None
    linf: float | None
    cos: float | None
    relative: float | None  # ||W' - W|| / ||W - W_start||


class SegmentReport(Message):
    """One replayed segment. `state` is the digest of the replayed end state.

    Where it began with a replayed state, not a committed one, `origin` is the leaf whose committed state was put in, and
    `distances` and `error` are over all that was run from there."""

    leaf: int
    origin: int | None = None
    start: int
    stop: int
    state: Digest
    chunks: int = Field(ge=1)  # entries of that state's tree
    settings: Digest  # `Leaf.settings` there
    batches: Digest
    losses: bytes  # float64 column of the recomputed losses, one for each iteration
    gradient_norm: float | None = None  # mean over the segment's iterations
    update_norm: float | None = None
    distances: Distances | None = None
    error: float | None = Field(default=None, ge=0, allow_inf_nan=False)  # of the whole state: `apart.state_error`
    seconds: float = Field(ge=0)


class EvaluationReport(Message):
    epoch: int
    mean: float | None  # mean recomputed loss; None: not finite
    n: int


class Foretold(Message):
    """What `Leaf.settings` must be at each leaf. `problem`: why it cannot be foretold for this script."""

    settings: tuple[Digest | None, ...] = Field(default=(), max_length=100_000)  # None: they depend on losses
    problem: str | None = Field(default=None, max_length=500)


class ReplayReport(Message):
    """What the replay found. `problem` names the exception where the runner could not finish."""

    problem: str | None = Field(default=None, max_length=20_000)
    environment: Environment | None = None
    mismatched: tuple[int, ...] = ()  # leaves whose opened state is not the committed one
    initial_state: Digest | None = None  # recomputed from the contract's seed
    initial_chunks: int | None = Field(default=None, ge=1)
    initial_settings: Digest | None = None
    start_error: float | None = Field(default=None, ge=0, allow_inf_nan=False)  # of the committed first state, as above
    reference_distance: float | None = None  # d_ref: l2 between this and another seed's initial parameters
    start: StartReport | None = None
    foretold: Foretold | None = None
    batches: tuple[Digest, ...] | None = None  # of every segment, from the seed alone; None: no loader
    segments: tuple[SegmentReport, ...] = ()
    evaluations: tuple[EvaluationReport, ...] = ()
    seconds: float = Field(default=0, ge=0)


class RegenerateRequest(Message):
    """Make states anew that the host of a run did not keep."""

    contract: Contract
    states: tuple[int, ...] = Field(max_length=100_000)  # leaves


class RegenerateReport(Message):
    """`made`: the states that lie there. `problem`: why they could not all be made."""

    problem: str | None = Field(default=None, max_length=2000)
    made: tuple[int, ...] = Field(default=(), max_length=100_000)


ReplayRequest.model_rebuild()
