"""Which state may follow which. `docs/states.md` is generated from here, and a test keeps it so."""

from __future__ import annotations

from labapex.protocol.states import END_STATES, JobState

S = JobState

TRANSITIONS: dict[JobState, dict[JobState, str]] = {
    S.SUBMITTED: {
        S.PACKAGING: "the preflight passed and the budget is held",
        S.REFUSED: "the preflight failed, or the budget does not cover the job",
        S.FAILED: "the platform could not run the preflight",
        S.CANCELLED: "stopped by the client",
    },
    S.PACKAGING: {
        S.QUEUED: "the executable's parts are sealed",
        S.FAILED: "the platform could not seal them",
        S.CANCELLED: "stopped by the client",
    },
    S.QUEUED: {
        S.LEASED: "a worker took it",
        S.RESUMING: "stopped by the client; lost hosts had brought it over the end of an epoch",
        S.FAILED: "too many leases were lost",
        S.CANCELLED: "stopped by the client",
    },
    S.LEASED: {
        S.RUNNING: "the keys were given to the worker's executable",
        S.QUEUED: "the worker fell silent or could not start it",
        S.RESUMING: "stopped by the client; lost hosts had brought it over the end of an epoch",
        S.FAILED: "too many leases were lost",
        S.CANCELLED: "stopped by the client",
    },
    S.RUNNING: {
        S.CHALLENGED: "the log is complete and all commitments are fixed, or the client stopped it after complete epochs",
        S.QUEUED: "the worker fell silent, stood still, or could not finish it",
        S.RESUMING: "the same, and states of its run may be here to go on from; or stopped as above",
        S.FAILED: "the script failed, or too many leases were lost",
        S.CANCELLED: "stopped by the client before an epoch was complete",
    },
    S.RESUMING: {
        S.QUEUED: "it is known from where another worker goes on",
        S.CHALLENGED: "it was stopped, and complete epochs of a lost worker are here to be judged",
        S.FAILED: "too many leases were lost, or the platform could not replay",
        S.CANCELLED: "stopped by the client, and no complete epoch can be shown",
    },
    S.CHALLENGED: {
        S.VERIFYING: "every challenged state was opened",
        S.SETTLING: "the deadline passed without them, or what was shown is a lie: rejected",
        S.RESUMING: "it was stopped, and its worker does not show them: what it handed in before is looked at",
        S.FAILED: "the platform could not draw the challenge, or was restored and the worker has deleted what it asks for",
    },
    S.VERIFYING: {
        S.SETTLING: "the verdict is given",
        S.CHALLENGED: "what was found gives cause to look at further states",
        S.FAILED: "the platform could not replay",
    },
    S.SETTLING: {
        S.VERIFIED: "the worker is paid, the rest is given back",
        S.REJECTED: "nothing is paid, everything is given back",
        S.CANCELLED: "it was stopped: the verified epochs are paid, the rest is given back",
    },
    S.VERIFIED: {},
    S.REJECTED: {},
    S.REFUSED: {},
    S.FAILED: {},
    S.CANCELLED: {
        S.QUEUED: "resumed by the client, behind the last epoch that was paid",
    },
}

OVERTURNED: dict[JobState, dict[JobState, str]] = {
    S.VERIFIED: {S.REJECTED: "a dispute was ruled: something that was verified is false"},
    S.REJECTED: {
        S.VERIFIED: "a dispute was ruled: the whole run is as it was committed",
        S.CANCELLED: "the same, and the run was stopped",
    },
}
"""From one end to another: by a ruling alone."""

STOPPABLE = frozenset(state for state, following in TRANSITIONS.items() if S.CANCELLED in following) - {S.SETTLING}
"""Until training is complete. After that the work is done, and its verdict decides who gets the money."""


def allowed(before: JobState, after: JobState) -> bool:
    return after in TRANSITIONS[before] or after in OVERTURNED.get(before, {})


def table() -> str:
    """The transitions as the Markdown table of `docs/states.md`."""
    rows = ["| from | to | when |", "| --- | --- | --- |"]
    for before, following in TRANSITIONS.items():
        rows += [f"| `{before}` | `{after}` | {when} |" for after, when in following.items()]
    rows += [f"| `{state}` | - | an end state |" for state in JobState if state in END_STATES]
    for before, following in OVERTURNED.items():
        rows += [f"| `{before}` | `{after}` | {when} |" for after, when in following.items()]
    return "\n".join(rows) + "\n"
