"""The states of a job and of a lease. Which may follow which stands in `labapex_server.jobs.states`."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    SUBMITTED = "submitted"  # accepted, waiting for the preflight
    PACKAGING = "packaging"  # preflight passed, budget held; the executable is being sealed
    QUEUED = "queued"  # waiting for a worker
    LEASED = "leased"  # promised to a worker that has not asked for its key yet
    RUNNING = "running"  # key released, training
    RESUMING = "resuming"  # the host was lost; what it had done is replayed, so that another one may go on from there
    CHALLENGED = "challenged"  # training complete and committed; the worker uploads the opened states
    VERIFYING = "verifying"  # the opened segments are replayed
    SETTLING = "settling"  # verdict given; money moves
    VERIFIED = "verified"  # end: paid
    REJECTED = "rejected"  # end: verification failed
    REFUSED = "refused"  # end: preflight failed, no money was held
    FAILED = "failed"  # end: training failed or no worker could finish it
    CANCELLED = "cancelled"  # end: stopped by the client

    @property
    def ended(self) -> bool:
        return self in END_STATES


END_STATES = frozenset({JobState.VERIFIED, JobState.REJECTED, JobState.REFUSED, JobState.FAILED, JobState.CANCELLED})


class LeaseState(StrEnum):
    GRANTED = "granted"  # offered to the worker, the key not yet released
    RUNNING = "running"  # key released
    FINISHED = "finished"  # log complete, commitments fixed
    SETTLED = "settled"  # end: verdict given and money moved
    EXPIRED = "expired"  # end: the worker fell silent
    FAILED = "failed"  # end: the worker reported that the executable failed
    DECLINED = "declined"  # end: its host had not the room that the job asks for, and nothing was started
    REJECTED = "rejected"  # end: the host was lost, and what it had done until then is false


class Fault(StrEnum):
    """Whose doing an end state is."""

    CLIENT = "client"
    WORKER = "worker"
    PLATFORM = "platform"
    NOBODY = "nobody"
