"""Leases: from the promise of a job to a worker to the payment."""

from __future__ import annotations

from labapex_server.marketplace.ending import decline, expire_silent, fail, finish, give_up, release_ended
from labapex_server.marketplace.executables import executable_parts
from labapex_server.marketplace.granting import Queue, authenticate, lease, queue
from labapex_server.marketplace.handover import begin_anew, hand_over, lost_lease
from labapex_server.marketplace.key_release import release_keys, run_key
from labapex_server.marketplace.living import alive, excuse_live, forgive_silence, heartbeat, heartbeats, reconcile
from labapex_server.marketplace.overturning import Movement, give_back_deposit, pay_after_all, take_back
from labapex_server.marketplace.settlement import Share, settle, shares
from labapex_server.marketplace.stopping import disregard, lose, show_for, stop_lost, stop_training, stopped_lease
from labapex_server.marketplace.waiting import explain_waiting

__all__ = [
    "Movement",
    "Queue",
    "Share",
    "alive",
    "authenticate",
    "begin_anew",
    "decline",
    "disregard",
    "excuse_live",
    "executable_parts",
    "expire_silent",
    "explain_waiting",
    "fail",
    "finish",
    "forgive_silence",
    "give_back_deposit",
    "give_up",
    "hand_over",
    "heartbeat",
    "heartbeats",
    "lease",
    "lose",
    "lost_lease",
    "pay_after_all",
    "queue",
    "reconcile",
    "release_ended",
    "release_keys",
    "run_key",
    "settle",
    "shares",
    "show_for",
    "stop_lost",
    "stop_training",
    "stopped_lease",
    "take_back",
]
