"""Records on their way into a frame: the cost of a log is per frame, so records wait for company, but not for long."""

from __future__ import annotations

from collections.abc import Mapping

from labapex.protocol.records import Console, FrameBody, Leaf, Sample, Series, column

FLUSH_RECORDS = 50
FLUSH_SECONDS = 0.25
FLUSH_BYTES = 256 << 10  # with one more record of the largest kind this stays far below `MAX_PAYLOAD`
MAX_FAILURE = 20_000  # characters, what `FrameBody` accepts
FLUSH_ITEMS = 200  # below what `FrameBody` accepts of one kind


class Batch:
    """Collects records; `take` hands them over as one body. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._losses: list[float] = []
        self._times: list[float] = []
        self._samples: list[Sample] = []
        self._console: list[Console] = []
        self._leaves: list[Leaf] = []
        self._series: dict[str, dict[int, float]] = {}
        self._failure: str | None = None
        self._bytes = 0
        self._since: float | None = None

    def iteration(self, loss: float, at: float, now: float) -> None:
        self._losses.append(loss)
        self._times.append(at)
        self._grew(16, now)

    def sample(self, sample: Sample, now: float) -> None:
        self._samples.append(sample)
        self._grew(512, now)

    def leaf(self, leaf: Leaf, now: float) -> None:
        self._leaves.append(leaf)
        self._grew(1024, now)

    def scalars(self, iteration: int, values: Mapping[str, float], now: float) -> None:
        """Points of the script's own series; of those of one name and iteration the last counts."""
        for name, value in values.items():
            self._series.setdefault(name, {})[iteration] = value
            self._grew(24 + len(name.encode()), now)

    def console(self, console: Console, now: float) -> None:
        self._console.append(console)
        self._grew(64 + len(console.text.encode(errors="replace")), now)

    def failure(self, reason: str, now: float) -> None:
        """The script ended with an error; `reason` is the end of its traceback."""
        self._failure = reason[-MAX_FAILURE:]
        self._grew(len(self._failure.encode(errors="replace")), now)

    def _grew(self, size: int, now: float) -> None:
        self._bytes += size
        if self._since is None:
            self._since = now

    @property
    def full(self) -> bool:
        """Whether a frame is due whatever the time."""
        items = max(len(self._samples), len(self._console), len(self._leaves))
        return len(self._losses) >= FLUSH_RECORDS or self._bytes >= FLUSH_BYTES or items >= FLUSH_ITEMS

    @property
    def due_at(self) -> float | None:
        """When a frame is due at the latest; None while there is nothing."""
        return None if self._since is None else self._since + FLUSH_SECONDS

    def take(self) -> FrameBody | None:
        """Everything collected, as one body; None for nothing."""
        if self._since is None:
            return None
        body = FrameBody(
            losses=column(self._losses),
            times=column(self._times),
            samples=tuple(self._samples),
            console=tuple(self._console),
            leaves=tuple(self._leaves),
            series=tuple(
                Series(name=name, iterations=tuple(points), values=column(list(points.values())))
                for name, points in self._series.items()
            ),
            failure=self._failure,
        )
        self._clear()
        return body
