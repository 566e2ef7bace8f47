"""Requests to the runner's modes `preflight` and `replay`, and its reports: JSON files in the job's folder.

The platform starts the frozen runner in the sandbox, hands it a folder and reads the report under a size cap. The report
was written by a process in which the client's code ran: it is hostile input, read with `parse`."""

from __future__ import annotations

from pydantic import Field

from labapex.protocol.canonical import Digest, Message
from labapex.protocol.contract import Contract, Environment, ScriptFacts, Seed
from labapex.protocol.spec import BundlePath

MAX_REPORT = 64 << 20


class PreflightRequest(Message):
    """Run the script in `work/` under the job's folder: discover its loop, record 2k iterations, replay them."""

    script: BundlePath
    args: tuple[str, ...]
    epochs: int
    iterations_per_epoch: int | None
    checkpoint_every: int
    threads: int
    seed: Seed


class PreflightReport(Message):
    """What the preflight found. `problem` is None for a script that may run; else it says what to mend."""

    problem: str | None = Field(default=None, max_length=20_000)
    console: str = Field(default="", max_length=200_000)
    facts: ScriptFacts | None = None
    environment: Environment | None = None
    initial_state: Digest | None = None  # under the request's seed
    iteration_seconds: float = Field(default=0, ge=0)  # median, on the platform
    replay_max_error: float | None = Field(default=None, ge=0)


class ReplayRequest(Message):
    """Replay segments and evaluate epochs of one lease. State files lie in `states/<leaf index>.safetensors`."""

    contract: Contract
    segments: tuple[int, ...]  # index of the leaf each begins with; it ends at the next leaf
    compare: tuple[int, ...] = ()  # segments whose end state is at hand too, for distances
    evaluations: tuple[EpochSample, ...] = ()
    digests: dict[int, Digest]  # leaf index -> committed state digest, for every state that is loaded


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
    """One replayed segment. `state` is the digest of the replayed end state."""

    leaf: int
    start: int
    stop: int
    state: Digest
    batches: Digest
    losses: bytes  # float64 column of the recomputed losses, one for each iteration
    gradient_norm: float | None = None  # mean over the segment's iterations
    update_norm: float | None = None
    distances: Distances | None = None
    seconds: float = Field(ge=0)


class EvaluationReport(Message):
    epoch: int
    mean: float | None  # mean recomputed loss; None: not finite
    n: int


class ReplayReport(Message):
    """What the replay found. `problem` names the exception where the runner could not finish."""

    problem: str | None = Field(default=None, max_length=20_000)
    environment: Environment | None = None
    mismatched: tuple[int, ...] = ()  # leaves whose opened state is not the committed one
    initial_state: Digest | None = None  # recomputed from the contract's seed
    reference_distance: float | None = None  # d_ref: l2 between this and another seed's initial parameters
    batches: tuple[Digest, ...] | None = None  # of every segment, from the seed alone; None: no loader
    segments: tuple[SegmentReport, ...] = ()
    evaluations: tuple[EvaluationReport, ...] = ()
    seconds: float = Field(default=0, ge=0)


ReplayRequest.model_rebuild()
