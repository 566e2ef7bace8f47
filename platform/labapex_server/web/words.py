"""States, rules and weights in plain words: what the live page and the verdict page say to people."""

from __future__ import annotations

from typing import Any

from labapex.protocol.ruling import Outcome
from labapex.protocol.states import END_STATES, JobState
from labapex.protocol.verdict import Weight
from labapex_server.jobs import states

STATES: dict[str, dict[str, str]] = {
    JobState.SUBMITTED: {
        "label": "preflight",
        "kind": "active",
        "words": "Tried out in a sandbox: does the script train, and reproduce itself? No money is held yet.",
    },
    JobState.PACKAGING: {
        "label": "packaging",
        "kind": "active",
        "words": "The preflight passed, the budget is held. Code and data are sealed into a signed executable.",
    },
    JobState.QUEUED: {"label": "queued", "kind": "", "words": "Waiting for a worker. Nothing is charged meanwhile."},
    JobState.LEASED: {
        "label": "leased",
        "kind": "active",
        "words": "A worker has taken the job and is fetching and checking its executable.",
    },
    JobState.RUNNING: {"label": "training", "kind": "active", "words": "The keys are released and the script trains."},
    JobState.RESUMING: {
        "label": "resuming",
        "kind": "active",
        "words": "The worker was lost. What it had done is trained again in places before it counts.",
    },
    JobState.CHALLENGED: {
        "label": "challenged",
        "kind": "active",
        "words": "Training has ended and every state is committed. The worker shows what is asked for.",
    },
    JobState.VERIFYING: {
        "label": "verifying",
        "kind": "active",
        "words": "The platform trains the drawn segments again and compares.",
    },
    JobState.SETTLING: {"label": "settling", "kind": "active", "words": "The verdict is given; the money moves."},
    JobState.VERIFIED: {
        "label": "verified",
        "kind": "good",
        "words": "The training was done as agreed. The worker is paid and the weights are yours.",
    },
    JobState.REJECTED: {
        "label": "rejected",
        "kind": "bad",
        "words": "What the worker handed in is not the training that was agreed.",
    },
    JobState.REFUSED: {
        "label": "refused",
        "kind": "bad",
        "words": "The preflight found that this job cannot run as it is. No money was held.",
    },
    JobState.FAILED: {"label": "failed", "kind": "bad", "words": "The training ended without a result."},
    JobState.CANCELLED: {
        "label": "stopped",
        "kind": "",
        "words": "You stopped this job. Epochs that were complete and verified are paid.",
    },
}

RULES: dict[str, str] = {
    "opening": "Every chunk and state that was asked for came in time, and is the one that had been committed.",
    "log-count": "One loss for each iteration that was bought: epochs times iterations an epoch, no more, no less.",
    "log-chain": "The log is one unbroken chain of frames, signed at its end by the sealed executable.",
    "gpu-utilisation": "The device was busy in the way a training run keeps it busy.",
    "gpu-memory": "The device's memory was in use as a training run uses it.",
    "gpu-agreement": "What the sealed executable reads of the GPU is what the worker's agent reads of it from outside.",
    "gpu-load": "It was the job's own processes that kept the GPU busy, and not others on the same device.",
    "pev": "Probabilistic epoch validation: the loss of sampled iterations, from each epoch's weights, fits the log.",
    "point-loss": "The logged loss of drawn iterations, computed again from the committed weights and the exact batch.",
    "uniqueness": "No committed state is one that another lease had committed to before.",
    "pace": "The run took a time that training can take, and its clock agrees with the arrival of its commitments.",
    "initialisation": "Training began from exactly the weights that the lease's seed decides.",
    "batch-order": "The batches came in the order that the lease's seed decides, or a replay found the script to take others.",
    "skeleton": "Learning rates and other settings are everywhere those that the script sets when it runs without training.",
    "replay": "Segments drawn after the commitment, trained again: the end state must be the committed one.",
    "leaf-claims": "Updates and settings are as claimed, and no claimed update is below what a chunk of all states shows.",
    "provenance": "Every initial weight follows from the seed or comes from a certified model; else the start is marked.",
    "initialisation-ks": "The initial weights are spread as those of a fresh start are, by the published statistical test.",
    "replay-top-q": "In each epoch the segments that claim the largest updates, trained again.",
    "vmo": "The committed weights lie closer to the replayed ones than the mean gradient norm, as published.",
}

WEIGHTS: dict[str, str] = {
    Weight.DECIDES: "decides",
    Weight.SUSPECTS: "raises suspicion",
    Weight.INFORMS: "for information",
}

OUTCOMES: dict[str, dict[str, str]] = {
    Outcome.REVERSED: {"kind": "warn", "words": "The contested verdict was wrong; another one takes its place."},
    Outcome.UPHELD: {"kind": "", "words": "The contested verdict stands."},
    Outcome.UNJUDGED: {"kind": "", "words": "The platform cannot tell: the verdict stands, the stake went back."},
}


def for_page() -> dict[str, Any]:
    """The same words for the live page's script."""
    return {
        "states": {str(state): words for state, words in STATES.items()},
        "rules": RULES,
        "weights": {str(weight): words for weight, words in WEIGHTS.items()},
        "ended": sorted(str(state) for state in END_STATES),
        "stoppable": sorted(str(state) for state in states.STOPPABLE),
    }
