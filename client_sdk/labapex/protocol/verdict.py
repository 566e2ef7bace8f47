"""The verdict: every rule with its value, limit, result and weight, what it cost to find out, and what is paid."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import Field

from labapex.protocol.canonical import Digest, Message
from labapex.protocol.contract import Environment
from labapex.protocol.states import Fault


class Weight(StrEnum):
    DECIDES = "decides"  # a failure rejects the run
    SUSPECTS = "suspects"  # a failure raises the audit rate
    INFORMS = "informs"  # shown, no consequence


class RuleResult(Message):
    """One rule's outcome. "not-applicable": the rule has nothing to look at, and `detail` says why."""

    rule: str
    value: float | str | None
    limit: float | str | None
    result: Literal["pass", "fail", "not-applicable"]
    weight: Weight
    detail: str = ""


class Cost(Message):
    verify_seconds: float
    train_seconds: float
    opened_bytes: int
    all_checkpoint_bytes: int
    opened_states: int
    segments_replayed: int


class Verdict(Message):
    """Signed by the platform over its canonical JSON."""

    format: Literal[1] = 1
    job: UUID
    lease: UUID
    verdict: Literal["verified", "rejected"]
    deciding_rule: str | None  # the first rule that rejected
    reason: str
    fault: Fault
    epochs: int
    iterations_per_epoch: int
    loss_logs: int
    verified_epochs: int
    rules: tuple[RuleResult, ...]
    replay_max_error: float | None
    detection: str  # the bound in words: what share of bad segments is caught with which probability
    contract: Digest
    proof_root: Digest  # Merkle root over the leaves
    weights: Digest | None  # SHA-256 of the safetensors file that `labapex pull` brings
    worker_environment: Environment | None
    verifier_environment: Environment | None
    cost: Cost
    issued_at: float


class SignedVerdict(Message):
    verdict: Verdict
    key_id: str
    signature: bytes = Field(min_length=64, max_length=64)


class Receipt(Message):
    """Where the budget went, in micro-credits. `held == paid + refunded`."""

    job: UUID
    held: int
    paid: int
    refunded: int
    price_per_epoch: int
    verified_epochs: int
    reason: str
