"""Every cheat against the whole platform: named by the rule that must name it, paid nothing, told to the client."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from tests.attacks.cheats import CHEATS
from tests.e2e import scripts
from tests.e2e.stack import Stack

from labapex.protocol.verdict import SignedVerdict, Weight

pytestmark = pytest.mark.e2e

# cheat -> the deciding rule, and every rule of those that may decide that must have failed. A lie about the loss shows where
# it is recomputed; work that was not done, or done on other data, shows there first and in the state after it as well.
FOUND_BY = {
    "noop": ("point-loss", {"point-loss", "replay"}),
    "skip-epochs": ("point-loss", {"point-loss", "replay"}),
    "forged-loss": ("point-loss", {"point-loss"}),
    "other-seed": ("initialisation", {"initialisation", "batch-order", "point-loss", "replay"}),
    "half-batch": ("point-loss", {"point-loss", "replay"}),
}
EVERY_SEGMENT = 1000


def test_each_cheat_has_a_rule_that_must_find_it() -> None:
    assert set(FOUND_BY) == set(CHEATS)


def reject(stack: Stack, folder: Path, cheat: str) -> tuple[SignedVerdict, set[str]]:
    """Let a cheat work on a job; what holds for every one of them. The verdict, and the deciding rules that failed."""
    before = stack.client.me(), stack.owner.me()
    with stack.worker(folder.name, cheat=cheat):
        said = stack.cli("run", folder, "--yes", "--json")
    summary = said.summary
    assert said.code == 104, said
    assert (summary["state"], summary["verdict"]) == ("rejected", "rejected")
    assert (summary["paid"], summary["refunded"]) == (0, 10_000_000)
    assert (stack.client.me(), stack.owner.me()) == before  # not a micro-credit moved
    assert f"rejected by the rule '{summary['deciding_rule']}'" in said.error
    assert summary["loss_logs"] == scripts.ITERATIONS  # the lie is complete and well formed
    signed = stack.client.checked_verdict(UUID(summary["job"]))
    failed = {r.rule for r in signed.verdict.rules if r.weight is Weight.DECIDES and r.result == "fail"}
    assert signed.verdict.weights is None
    assert stack.cli("pull", summary["job"]).code == 104
    return signed, failed


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_is_rejected_by_the_rule_that_must_find_it(stack: Stack, tmp_path: Path, cheat: str) -> None:
    folder = scripts.job(tmp_path / cheat, audit_segments=EVERY_SEGMENT)
    signed, failed = reject(stack, folder, cheat)
    assert (signed.verdict.deciding_rule, failed) == FOUND_BY[cheat]


@pytest.mark.parametrize("cheat", ["noop", "half-batch"])
def test_a_loop_without_a_loader_hides_no_cheat(stack: Stack, tmp_path: Path, cheat: str) -> None:
    folder = scripts.job(tmp_path / f"loop-{cheat}", scripts.LOOP, audit_segments=EVERY_SEGMENT)
    signed, failed = reject(stack, folder, cheat)
    assert (signed.verdict.deciding_rule, failed) == ("point-loss", {"point-loss", "replay"})
