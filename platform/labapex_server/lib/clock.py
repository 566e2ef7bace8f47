"""The platform's clock. All times at rest are aware UTC; on the wire they are Unix seconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def now() -> datetime:
    return datetime.now(UTC)


def after(seconds: float) -> datetime:
    """`seconds` from now."""
    return now() + timedelta(seconds=seconds)


def unix(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
