"""Every cheat against the whole platform: named by the rule that must name it, paid nothing, told to the client."""

from __future__ import annotations

from uuid import UUID

import pytest
from tests.attacks.cheats import CHEATS
from tests.e2e import scripts
from tests.e2e.stack import Stack

from labapex.protocol.states import Fault
from labapex.protocol.verdict import Weight

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
# The same lies in a loop without a DataLoader, where no batch indices are committed.
FOUND_IN_LOOPS_BY = {cheat: FOUND_BY[cheat] for cheat in ("noop", "half-batch")}
EVERY_SEGMENT = 1000


@pytest.fixture(scope="module")
def jobs(stack: Stack) -> dict[str, UUID]:
    """A job for each cheat, submitted together: while one is cheated on, the next has its preflight."""
    loops = {f"{cheat}-in-a-loop": scripts.LOOP for cheat in FOUND_IN_LOOPS_BY}
    wanted = {**dict.fromkeys(FOUND_BY, scripts.LOADER), **loops}
    folders = [scripts.job(stack.folder / "jobs" / n, s, audit_segments=EVERY_SEGMENT) for n, s in wanted.items()]
    return {folder.name: stack.submit(folder) for folder in folders}


def test_each_cheat_has_a_rule_that_must_find_it() -> None:
    assert set(FOUND_BY) == set(CHEATS)


def reject(stack: Stack, name: str, job: UUID, cheat: str) -> tuple[str | None, set[str]]:
    """Let a cheat work on a job; what holds for each of them. The rule that decided, and all deciding rules that failed."""
    stack.until_state(job, "queued")  # it waits longest now: the worker gets this one
    with stack.worker(name, cheat=cheat, once=True):
        said = stack.cli("logs", "-f", str(job), "--json")
    assert said.code == 104, said
    summary = said.summary
    assert (stack.job(job).worker, summary["state"], summary["verdict"]) == (name, "rejected", "rejected")
    assert summary["loss_logs"] == scripts.ITERATIONS  # the lie is complete and well formed
    assert (summary["paid"], summary["refunded"]) == (0, 10_000_000)
    assert stack.owner.me().available == 0  # not a micro-credit for the cheat
    assert f"rejected by the rule '{summary['deciding_rule']}'" in said.error
    assert stack.cli("pull", str(job)).code == 104
    verdict = stack.client.checked_verdict(job).verdict
    assert verdict.weights is None
    assert verdict.fault is Fault.WORKER
    failed = {r.rule for r in verdict.rules if r.weight is Weight.DECIDES and r.result == "fail"}
    return verdict.deciding_rule, failed


@pytest.mark.parametrize("cheat", FOUND_BY)
def test_a_cheat_is_rejected_by_the_rule_that_must_find_it(stack: Stack, jobs: dict[str, UUID], cheat: str) -> None:
    assert reject(stack, cheat, jobs[cheat], cheat) == FOUND_BY[cheat]


@pytest.mark.parametrize("cheat", FOUND_IN_LOOPS_BY)
def test_a_loop_without_a_loader_hides_no_cheat(stack: Stack, jobs: dict[str, UUID], cheat: str) -> None:
    name = f"{cheat}-in-a-loop"
    assert reject(stack, name, jobs[name], cheat) == FOUND_IN_LOOPS_BY[cheat]
