"""What a job came to: the summary for programs, the tables for people, and the error that its end stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from labapex.cli.output import counted, credits, headline, one_line, size
from labapex.client import Client
from labapex.errors import (
    Cancelled,
    LabApexError,
    MissingScope,
    NotEnoughCredit,
    NotFinished,
    NotFound,
    TrainingFailed,
    VerificationRejected,
)
from labapex.protocol.api import JobView
from labapex.protocol.records import Sample
from labapex.protocol.states import JobState
from labapex.protocol.verdict import Receipt, RuleResult, SignedVerdict, Verdict

_RESULT_STYLE = {"pass": "green", "fail": "bold red", "not-applicable": "dim"}


def verdict_of(client: Client, job: JobView) -> SignedVerdict | None:
    """The signed verdict with its signature checked; None for a job that ended without one."""
    try:
        return client.checked_verdict(job.id)
    except (NotFinished, NotFound):
        return None


def receipt_of(client: Client, job: JobView) -> Receipt | None:
    """The receipt; None for a job that never held money, and for a token that may not see money."""
    try:
        return client.receipt(job.id)
    except (NotFinished, NotFound, MissingScope):
        return None


def summary(client: Client, job: JobView) -> dict[str, Any]:
    """What `labapex run --json` prints. Fields of a verdict are null for a job that ended without one."""
    signed = verdict_of(client, job)
    return summarise(job, signed.verdict if signed else None, receipt_of(client, job))


def summarise(job: JobView, verdict: Verdict | None, receipt: Receipt | None) -> dict[str, Any]:
    """See `summary`. Money is in micro-credits, times in seconds but `package_ms`, sizes in bytes."""
    cost = verdict.cost if verdict else None
    return {
        "job": str(job.id),
        "url": job.url,
        "state": job.state.value,
        "reason": job.reason,
        "verdict": verdict.verdict if verdict else None,
        "deciding_rule": verdict.deciding_rule if verdict else None,
        "epochs": verdict.epochs if verdict else job.spec.epochs,
        "iterations_per_epoch": verdict.iterations_per_epoch if verdict else job.iterations_per_epoch,
        "loss_logs": verdict.loss_logs if verdict else job.progress.iterations,
        "rules": {
            rule.rule: {name: getattr(plain_rule, name) for name in ("value", "limit", "result")}
            for rule in (verdict.rules if verdict else ())
            for plain_rule in (_finite(rule),)
        },
        "replay_max_error": _number(verdict.replay_max_error) if verdict else None,
        "opened_bytes": cost.opened_bytes if cost else None,
        "all_checkpoint_bytes": cost.all_checkpoint_bytes if cost else None,
        "verify_seconds": _number(cost.verify_seconds) if cost else None,
        "train_seconds": _number(cost.train_seconds) if cost else None,
        "package_ms": job.package_ms,
        "first_loss_seconds": job.first_loss_seconds,
        "paid": receipt.paid if receipt else job.paid,
        "refunded": receipt.refunded if receipt else job.refunded,
    }


def outcome(job: JobView, verdict: Verdict | None = None, last_words: str = "") -> LabApexError | None:
    """The error that an ended job stands for, None for a verified one; `NotFinished` for one that goes on.

    `last_words` is the last line that the script wrote to stderr: where training failed, it says more than the reason.
    """
    reason = headline(job.reason) or job.state.value
    if not job.state.ended:
        return NotFinished(f"the job is {job.state.value}; follow it with `labapex logs -f {job.id}`")
    if job.state is JobState.REJECTED:
        if verdict is None:
            return VerificationRejected(f"the verdict is 'rejected': {reason}")
        return VerificationRejected(f"rejected by the rule '{verdict.deciding_rule}': {verdict.reason}")
    if job.state is JobState.CANCELLED:
        return Cancelled(f"the job was cancelled: {reason}")
    if job.state is JobState.REFUSED and _about_money(job):
        return NotEnoughCredit(reason)
    if job.state is JobState.REFUSED:
        return TrainingFailed(f"refused by the preflight: {reason.removeprefix('preflight: ')}")
    if job.state is JobState.FAILED:
        return TrainingFailed(f"the job failed: {f'{last_words} ({reason})' if last_words else reason}")
    return None


def _about_money(job: JobView) -> bool:
    """Whether a job was refused for its budget; the reason of a script that failed begins with its own error."""
    return job.reason.startswith(("budget", "the budget", "the job's budget"))


def rules_table(rules: tuple[RuleResult, ...]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("rule", "value", "limit", "result", "weight", ""):
        table.add_column(name, overflow="fold")
    for rule in rules:
        cells = (rule.rule, _value(rule.value), _value(rule.limit), rule.result, rule.weight.value, rule.detail)
        style = _RESULT_STYLE[rule.result]
        table.add_row(*(Text(one_line(cell), style=style if i == 3 else "") for i, cell in enumerate(cells)))
    return table


def verdict_lines(verdict: Verdict) -> RenderableType:
    """The verdict's head: what was decided, by which rule, at what cost."""
    cost = verdict.cost
    grid = _grid()
    style = "bold green" if verdict.verdict == "verified" else "bold red"
    grid.add_row(Text("verdict"), Text(verdict.verdict, style=style))
    if verdict.deciding_rule:
        grid.add_row(Text("deciding rule"), Text(one_line(verdict.deciding_rule)))
    for name, text in (
        ("reason", verdict.reason),
        ("loss logs", f"{verdict.loss_logs} of {verdict.epochs} × {verdict.iterations_per_epoch}"),
        ("opened", f"{cost.opened_states} states, {size(cost.opened_bytes)} of {size(cost.all_checkpoint_bytes)}"),
        ("verified in", f"{cost.verify_seconds:.1f} s for {cost.train_seconds:.1f} s of training"),
        ("detection", verdict.detection),
        ("initial weights", verdict.origin.words),
    ):
        grid.add_row(Text(name), Text(one_line(text)))
    return grid


def receipt_lines(receipt: Receipt) -> RenderableType:
    grid = _grid()
    paid = f"{credits(receipt.paid)} for {receipt.verified_epochs} epochs"
    if len(receipt.payments) > 1:  # the run went from one host to another, each with its price
        each = (
            f"{p.worker} {credits(p.amount)} for {p.epochs} at {credits(p.price_per_epoch)}" for p in receipt.payments
        )
        paid += f": {', '.join(each)}"
    else:
        paid += f" at {credits(receipt.price_per_epoch)}"
    for name, text in (
        ("held", f"{credits(receipt.held)} credits"),
        ("paid", paid),
        *([("platform fee", credits(receipt.fee))] if receipt.fee else []),
        ("refunded", credits(receipt.refunded)),
        ("because", headline(receipt.reason)),
    ):
        grid.add_row(Text(name), Text(one_line(text)))
    return grid


def metrics_lines(
    job: JobView,
    losses: Sequence[float | None],
    samples: Sequence[Sample],
    series: Mapping[str, Mapping[int, float | None]],
) -> RenderableType:
    """Loss, readings and the script's series in a few lines; a CPU's readings never pass for a GPU's."""
    known = [(loss, at) for at, loss in enumerate(losses) if loss is not None]
    total = "?" if job.progress.total is None else str(job.progress.total)
    grid = _grid()
    grid.add_row(Text("iterations"), Text(f"{len(losses)} of {total}"))
    if known:
        least, at = min(known)
        grid.add_row(Text("loss"), Text(f"first {known[0][0]:.6g}, last {known[-1][0]:.6g}, least {least:.6g} at {at}"))
    if len(known) < len(losses):
        grid.add_row(Text("not finite"), Text(str(len(losses) - len(known))))
    for source, device in sorted({(sample.source, sample.device) for sample in samples}):
        own = [sample for sample in samples if (sample.source, sample.device) == (source, device)]
        used = sum(sample.utilisation for sample in own) / len(own)
        most = max(sample.memory for sample in own)
        words = (
            f"{one_line(device)}: {used:.0f} % on average, memory up to {size(most)} of {size(own[-1].memory_total)}"
        )
        grid.add_row(Text("GPU" if source == "nvml" else "CPU"), Text(f"{words}, {counted(len(own), 'reading')}"))
    for number, (name, points) in enumerate(sorted(series.items())):
        at, last = max(points.items())
        value = "not finite" if last is None else f"{last:.6g}"
        words = f"{one_line(name)}: {value} at {at}, {counted(len(points), 'point')}"
        grid.add_row(Text("" if number else "told by the script"), Text(words))
    if series:
        grid.add_row(Text(), Text("these are its own words: nobody verifies them", style="dim"))
    return grid


def next_commands(job: JobView) -> list[str]:
    """What one can do now."""
    if job.state is JobState.VERIFIED:
        return [f"labapex pull {job.id}", f"labapex verify {job.id} --replay"]
    if job.state is JobState.REJECTED:
        return [f"labapex show {job.id}", f"labapex verify {job.id} --replay"]
    if job.state is JobState.CANCELLED and job.paid_epochs:
        return [f"labapex pull {job.id}", *([f"labapex resume {job.id}"] if job.resumable else [])]
    return [f"labapex logs {job.id}"] if job.state.ended else [f"labapex logs -f {job.id}"]


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    return grid


def _value(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.6g}"


def _number(value: float | None) -> float | None:
    """None for what is not finite: JSON has no word for it."""
    return value if value is not None and abs(value) < float("inf") else None


def _finite(rule: RuleResult) -> RuleResult:
    numbers = {name: _number(v) for name in ("value", "limit") if isinstance(v := getattr(rule, name), float)}
    return rule.model_copy(update=numbers)
