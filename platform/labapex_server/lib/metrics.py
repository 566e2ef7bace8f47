"""What this process did, counted for Prometheus. What the database says is read when it is asked for (`labapex_server.pulse`).

Web processes count here, each by itself, and are scraped each by itself. The pipeline's processes come and go and are
several to a machine: what they do is counted in the database (`pipeline.tally`), and any web process tells it.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

REQUESTS = Counter("labapex_http_requests", "Requests by route and status.", ("route", "method", "status"))
REQUEST_SECONDS = Histogram(
    "labapex_http_request_seconds",
    "Until the answer began; of streamed files, until it ended.",
    ("route",),
    buckets=_SECONDS,
)
CONNECTIONS = Gauge("labapex_connections", "Open sockets of workers and of live pages in this process.", ("kind",))
FRAMES = Counter("labapex_frames", "Frames of logs by what was answered: ack, nack, refused, later.", ("answer",))
POINTS = Counter("labapex_points", "Losses that were committed and acknowledged.")
FRAME_BYTES = Counter("labapex_frame_bytes", "Bytes of frames that came.")
COMMIT_SECONDS = Histogram("labapex_commit_seconds", "To commit a group of frames.", buckets=_FAST)
COMMIT_FRAMES = Histogram(
    "labapex_commit_frames", "Frames of a group.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
LEASE_BYTES = Counter(
    "labapex_lease_bytes",
    "Of leases' files: executables, wheels and states out, chunks and states in.",
    ("way", "kind"),
)
HELD_BACK_SECONDS = Counter(
    "labapex_held_back_seconds",
    "For which workers' sockets were not read: over their rate, or too much in flight.",
    ("why",),
)


def answered(route: str, method: str, status: int, seconds: float) -> None:
    """Count a request. `route` is the pattern, never the path: paths are without number."""
    REQUESTS.labels(route, method if method in _METHODS else "other", str(status)).inc()
    REQUEST_SECONDS.labels(route).observe(seconds)
