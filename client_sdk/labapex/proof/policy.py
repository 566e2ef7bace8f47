"""Which rules decide. Mechanism stands in `rules`; what follows from a failure stands here.

A rule decides only if no honest worker can fail it and no cheat can talk his way past it. The published thresholds fail
one test or the other, so they inform; telemetry comes from a host whose owner can make it say anything, so it suspects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from labapex.protocol.verdict import RuleResult, Weight

WEIGHTS: dict[str, Weight] = {
    "opening": Weight.DECIDES,
    "log-chain": Weight.DECIDES,
    "log-count": Weight.DECIDES,
    "uniqueness": Weight.DECIDES,
    "initialisation": Weight.DECIDES,
    "batch-order": Weight.DECIDES,
    "skeleton": Weight.SUSPECTS,
    "point-loss": Weight.DECIDES,
    "replay": Weight.DECIDES,
    "leaf-claims": Weight.DECIDES,
    "provenance": Weight.INFORMS,
    "initialisation-ks": Weight.INFORMS,
    "replay-top-q": Weight.INFORMS,
    "vmo": Weight.INFORMS,
    "pev": Weight.INFORMS,
    "pace": Weight.SUSPECTS,
    "gpu-utilisation": Weight.SUSPECTS,
    "gpu-memory": Weight.SUSPECTS,
    "gpu-agreement": Weight.SUSPECTS,
    "gpu-load": Weight.SUSPECTS,
}

REQUIRED = ("log-chain", "log-count", "replay")
"""Rules that must have passed, not merely not failed, before a run counts as verified."""


def weight(rule: str) -> Weight:
    return WEIGHTS[rule]


def decide(results: Sequence[RuleResult]) -> tuple[Literal["verified", "rejected"], str | None, str]:
    """The verdict, the rule that decided against the run (None: verified), and the reason in words."""
    failed = [r for r in results if r.weight is Weight.DECIDES and r.result == "fail"]
    for result in failed or [r for r in results if r.rule in REQUIRED and r.result != "pass"]:
        return "rejected", result.rule, _reason(result)
    replayed = next(r for r in results if r.rule == "replay")
    return "verified", None, f"every deciding rule passed; {replayed.detail or 'every replayed segment was reproduced'}"


def _reason(result: RuleResult) -> str:
    found = f"found {result.value}, required {result.limit}" if result.value is not None else "it could not be checked"
    return f"{result.rule}: {found}" + (f" ({result.detail})" if result.detail else "")
