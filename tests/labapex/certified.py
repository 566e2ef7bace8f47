"""A log of certificates in memory, for tests of their readers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from labapex.certificate import (
    WEIGHTS,
    CertificateBundle,
    CertifiedCost,
    CertifiedRule,
    Envelope,
    Owner,
    PlatformKeys,
    Predicate,
    Revocation,
    Statement,
    seal,
    subjects,
)
from labapex.proof import merkle
from labapex.protocol.contract import Environment
from labapex.protocol.verdict import Origin, Weight
from labapex.sealing import public_signing_key
from labapex.transparency import Consistency, Inclusion, sign_checkpoint

VERDICT_KEY, LOG_KEY = bytes(range(32)), bytes(range(1, 33))
KEYS = PlatformKeys(verdict=public_signing_key(VERDICT_KEY), log=public_signing_key(LOG_KEY))
WEIGHTS_FILE = b"safetensors " * 1000
MODEL = hashlib.sha256(WEIGHTS_FILE).hexdigest()
ENVIRONMENT = Environment(python="3.11", torch="2.13", device="cpu: test", capability="AVX2", threads=1)


def a_statement(
    model: str = MODEL, *, name: str = "digits", files: dict[str, str] | None = None, **stated: Any
) -> Statement:
    """What a platform states about a model; `stated` overrides fields of the predicate."""
    fields = {
        "client": Owner(id="c1" * 16, name="Ada Lovelace"),
        "job": UUID(int=1),
        "lease": UUID(int=7),
        "contract": "aa" * 32,
        "code": "bb" * 32,
        "data": "cc" * 32,
        "proof_root": "dd" * 32,
        "verdict": "ee" * 32,
        "rules": (
            CertifiedRule(rule="log-count", result="pass", weight=Weight.DECIDES),
            CertifiedRule(rule="gpu-memory", result="not-applicable", weight=Weight.SUSPECTS),
        ),
        "detection": "all 4 segments were replayed: any false one is caught",
        "epochs": 3,
        "iterations": 12,
        "worker_environment": ENVIRONMENT,
        "verifier_environment": None,
        "cost": CertifiedCost(
            paid=750_000, train_seconds=10.25, verify_seconds=1.5, opened_bytes=2048, all_checkpoint_bytes=1 << 20
        ),
        "origin": Origin(tensors=4, unproven=0, success=1.0, formula="1 (all 4 segments)"),
        "contracted_at": 1_790_000_000.0,
        "issued_at": 1_790_000_600.5,
    } | stated
    return Statement(subject=subjects(name, files or {WEIGHTS: model}), predicate=Predicate.model_validate(fields))


@dataclass
class MemoryLog:
    """An honest log, as its readers see it."""

    verdict_key: bytes = VERDICT_KEY
    log_key: bytes = LOG_KEY
    leaves: list[bytes] = field(default_factory=list)

    @property
    def keys(self) -> PlatformKeys:
        return PlatformKeys(verdict=public_signing_key(self.verdict_key), log=public_signing_key(self.log_key))

    def enter(self, statement: Statement | Revocation) -> tuple[int, Envelope]:
        envelope = seal(statement, self.verdict_key)
        self.leaves.append(envelope.entry())
        return len(self.leaves) - 1, envelope

    def fill(self, count: int) -> None:
        """Entries that are nobody's."""
        self.leaves += [b"entry %d" % number for number in range(len(self.leaves), len(self.leaves) + count)]

    def head(self, size: int | None = None) -> str:
        leaves = self.leaves[:size]
        return sign_checkpoint(size=len(leaves), root=merkle.root(leaves), private_key=self.log_key)

    def inclusion(self, index: int) -> Inclusion:
        path = merkle.inclusion_proof(self.leaves, index)
        return Inclusion(index=index, size=len(self.leaves), hashes=tuple(each.hex() for each in path))

    def consistency(self, first: int, second: int) -> Consistency:
        path = merkle.consistency_proof(self.leaves[:second], first)
        return Consistency(first=first, second=second, hashes=tuple(each.hex() for each in path))

    def bundle(self, index: int, envelope: Envelope) -> CertificateBundle:
        return CertificateBundle(envelope=envelope, inclusion=self.inclusion(index), checkpoint=self.head())


def a_bundle(before: int = 2, after: int = 3, **stated: Any) -> CertificateBundle:
    """A certificate between others in a log."""
    log = MemoryLog()
    log.fill(before)
    index, envelope = log.enter(a_statement(**stated))
    log.fill(after)
    return log.bundle(index, envelope)
