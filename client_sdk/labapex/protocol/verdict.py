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


class Origin(Message):
    """Where a model's initial weights come from, and how sure the chain of proofs behind them is."""

    tensors: int | None = Field(ge=0)  # that an optimizer trains; None: the start was not recomputed
    unproven: int | None = Field(ge=0)  # that neither follow from the seed nor come from a certified model
    success: float = Field(ge=0, le=1)  # the product of P(caught) over this run and all that it builds upon
    formula: str = Field(max_length=2000)  # how it was computed

    @property
    def words(self) -> str:
        """What is known of the initial weights, for people."""
        if self.tensors is None or self.unproven is None:
            return "the initial weights were not compared with those of another seed"
        if self.unproven:
            return unproven_words(self.unproven, self.tensors)
        return f"all {self.tensors} parameter tensors follow from the seed or come from certified models"


def unproven_words(unproven: int, tensors: int) -> str:
    """The mark of a start that nothing vouches for."""
    return f"{unproven} of {tensors} parameter tensors neither follow from the seed nor come from a certified model"


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
    blamed: UUID | None = (
        None  # the lease whose part of the run is false; another one's than `lease` where it was handed over
    )
    epochs: int
    iterations_per_epoch: int
    loss_logs: int
    verified_epochs: int
    rules: tuple[RuleResult, ...]
    replay_max_error: float | None
    detection: str  # the bound in words: what share of bad segments is caught with which probability
    origin: Origin
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


class Payment(Message):
    """What one host of a run was paid for the epochs that ended on it, in micro-credits."""

    worker: str
    epochs: int
    price_per_epoch: int
    amount: int


class Receipt(Message):
    """Where the budget went, in micro-credits. `held == paid + fee + refunded`. `price_per_epoch` is the last host's."""

    job: UUID
    held: int
    paid: int
    fee: int = 0  # the platform's
    refunded: int
    price_per_epoch: int
    verified_epochs: int
    payments: tuple[Payment, ...] = ()  # to the hosts of the run, in their order; together `paid`
    reason: str
