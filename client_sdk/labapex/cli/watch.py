"""A job seen live in the terminal. `Watch` holds what was told, in bounded memory; the views only draw it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from labapex.cli.output import clean, credits, duration, headline, one_line, size
from labapex.client import Client, is_news
from labapex.protocol.api import Events, JobView
from labapex.protocol.records import Sample

_BARS = "▁▂▃▄▅▆▇█"
_TAIL = 8
_ERRORS = 60
_STATE_STYLE = {"verified": "bold green", "rejected": "bold red", "refused": "bold red", "failed": "bold red"}


class Curve:
    """All of a curve in at most `resolution` means: when it is full, neighbours are merged."""

    def __init__(self, resolution: int = 512) -> None:
        self._resolution = resolution
        self.clear()

    def clear(self) -> None:
        self.count = 0
        self.last: float | None = None
        self._stride = 1  # points in a bucket
        self._buckets: list[tuple[float, int]] = []  # sum and number of the finite points

    def add(self, value: float | None) -> None:
        """Append one point; None is one that is not finite."""
        if self.count % self._stride == 0:
            if len(self._buckets) == self._resolution:
                pairs = zip(self._buckets[::2], self._buckets[1::2], strict=True)
                self._buckets = [(a[0] + b[0], a[1] + b[1]) for a, b in pairs]
                self._stride *= 2
            self._buckets.append((0.0, 0))
        if value is not None:
            total, n = self._buckets[-1]
            self._buckets[-1] = (total + value, n + 1)
        self.count += 1
        self.last = value

    def means(self, width: int) -> list[float | None]:
        """At most `width` means from the first point to the last; None where no point is finite."""
        group = -(-len(self._buckets) // width) if self._buckets else 1
        merged = [self._buckets[i : i + group] for i in range(0, len(self._buckets), group)]
        sums = [(sum(total for total, _ in part), sum(n for _, n in part)) for part in merged]
        return [total / n if n else None for total, n in sums]


def sparkline(values: list[float | None]) -> str:
    """One character a value, between the least and the greatest; '×' where there is none."""
    known = [v for v in values if v is not None]
    if not known:
        return "×" * len(values)
    low, span = min(known), max(known) - min(known)
    return "".join("×" if v is None else _BARS[int((v - low) / span * 7.999) if span else 0] for v in values)


@dataclass
class Watch:
    """What is known of a job while it is followed."""

    job: JobView
    losses: Curve = field(default_factory=Curve)
    sample: Sample | None = None
    console: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL))
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=_ERRORS))  # the end of the job's stderr
    rules: dict[str, str] = field(default_factory=dict)  # name -> result
    trouble: str = ""  # why the platform cannot be asked at the moment

    def feed(self, events: Events) -> list[str]:
        """Take what is new in; gives back the complete new console lines."""
        self.trouble = ""
        self.job = events.job
        if events.restarted and not events.kept:  # another worker began again: the lost run's points count no more
            self.losses.clear()
            self.sample = None
            self.rules.clear()
        for loss in events.losses[max(0, self.losses.count - events.first) :]:
            self.losses.add(loss)
        if events.samples:
            self.sample = events.samples[-1]
        self.rules.update({rule.rule: rule.result for rule in events.rules})  # told anew whenever the job changed
        lines = []
        for chunk in events.console:
            text = clean(chunk.text).splitlines()
            lines += text
            if chunk.stream == "stderr":
                self.errors.extend(text)
        self.console.extend(lines)
        return lines


@dataclass
class History:
    """Everything that was recorded of a job's present run."""

    job: JobView
    losses: list[float | None] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    series: dict[str, dict[int, float | None]] = field(default_factory=dict)  # the script's own, by name and iteration


def collect(client: Client, job: UUID) -> History:
    """All losses and readings of a job as far as it has come."""
    events = client.events(job)
    found = History(events.job)
    while True:
        if events.restarted:
            found.losses.clear()
            found.samples.clear()
            found.series.clear()
        found.job = events.job
        found.losses += events.losses[max(0, len(found.losses) - events.first) :]
        found.samples += events.samples
        for each in events.series:
            found.series.setdefault(each.name, {}).update(zip(each.iterations, each.values, strict=True))
        if not is_news(events):
            return found
        events = client.events(job, events.cursor)


class View(Protocol):
    """Draws a watch whenever it changed."""

    def __enter__(self) -> View: ...
    def __exit__(self, *error: object) -> None: ...
    def show(self, watch: Watch, lines: list[str]) -> None: ...


class LiveView:
    """Redraws itself in place, for a terminal."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._console = console

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(None, None, None)

    def show(self, watch: Watch, lines: list[str]) -> None:
        self._live.update(draw(watch, self._console.width), refresh=True)


class LineView:
    """One line for each thing that happens, for a pipe or a log file."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ("", "", -1)

    def __enter__(self) -> LineView:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def show(self, watch: Watch, lines: list[str]) -> None:
        for line in lines:
            self._console.print(f"  | {line}")
        job = watch.job
        total = job.progress.total or 0
        tenth = 10 * job.progress.iterations // total if total else 0
        said = (job.state.value, watch.trouble, tenth)
        if said != self._said:
            self._said = said
            self._console.print(" · ".join(filter(None, _facts(watch))))


def draw(watch: Watch, width: int) -> RenderableType:
    """The live view: state, progress, loss, device, console tail, rules."""
    job = watch.job
    done, total = job.progress.iterations, job.progress.total
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    state = Text(job.state.value, style=_STATE_STYLE.get(job.state.value, "bold"))
    if job.reason:
        state.append(f"  {headline(job.reason)}", style="dim")
    grid.add_row(Text("state"), state)
    bar = Table.grid(padding=(0, 2))
    bar.add_row(ProgressBar(total=total or 1, completed=done, width=max(10, min(40, width - 40))), Text(_progress(job)))
    grid.add_row(Text("progress"), bar)
    if watch.losses.count:
        line = sparkline(watch.losses.means(max(10, min(60, width - 30))))
        grid.add_row(Text("loss"), Text(f"{line}  {_loss(watch)}"))
    if watch.sample:
        grid.add_row(Text("device"), Text(_device(watch.sample)))
    grid.add_row(Text("cost"), Text(f"{credits(job.cost)} of {credits(job.budget)} credits"))
    if watch.rules:
        rules = Text()
        for name, result in watch.rules.items():
            rules.append(f"{one_line(name)} ", style={"pass": "green", "fail": "bold red"}.get(result, "dim"))
        grid.add_row(Text("rules"), rules)
    parts: list[RenderableType] = [grid]
    if watch.console:
        parts.append(Text("\n".join(line[: width - 4] for line in watch.console), style="dim"))
    if trouble := _trouble(watch):
        parts.append(Text(trouble, style="yellow"))
    return Group(*parts)


def _facts(watch: Watch) -> list[str]:
    job = watch.job
    return [
        f"{job.state.value}{': ' + headline(job.reason) if job.reason else ''}",
        f"{_bar(job)} {_progress(job)}" if job.progress.total else "",
        f"loss {_loss(watch)}" if watch.losses.count else "",
        _device(watch.sample) if watch.sample and not job.state.ended else "",
        f"cost {credits(job.cost)}" if job.cost else "",
        _trouble(watch),
    ]


def _bar(job: JobView, width: int = 20) -> str:
    full = width * job.progress.iterations // max(1, job.progress.total or 0)
    return "█" * min(width, full) + "░" * (width - min(width, full))


def _progress(job: JobView) -> str:
    progress = job.progress
    text = f"{progress.iterations}/{progress.total if progress.total is not None else '?'}"
    if progress.total:
        text += f"  epoch {progress.epoch}/{job.spec.epochs}"
    if progress.eta_seconds is not None and not job.state.ended:
        text += f"  ETA {duration(progress.eta_seconds)}"
    return text


def _loss(watch: Watch) -> str:
    return "not finite" if watch.losses.last is None else f"{watch.losses.last:.4f}"


def _device(sample: Sample) -> str:
    """A reading with its source named: a CPU's utilisation must never pass for a GPU's."""
    kind = "GPU" if sample.source == "nvml" else "CPU (no NVIDIA driver on this host)"
    return (
        f"{kind} {one_line(sample.device).removeprefix('cpu: ').removeprefix('cuda: ')}  {sample.utilisation:.0f} %  "
        f"memory {size(sample.memory)} of {size(sample.memory_total)}"
    )


def _trouble(watch: Watch) -> str:
    if watch.trouble:
        return f"no answer from the platform, still trying: {one_line(watch.trouble)}"
    return "lost contact with the worker; waiting for it" if watch.job.lost_contact else ""
