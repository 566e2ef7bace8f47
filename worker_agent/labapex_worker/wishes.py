"""What the owner wants of the worker as a whole. It is a file, so that it outlives the daemon."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from labapex.errors import UsageError


class Wish(StrEnum):
    WORK = "work"
    PAUSE = "pause"  # take no new job until told otherwise
    DRAIN = "drain"  # take no new job, and end when the last is over

    @property
    def reason(self) -> str | None:
        """Why no work is taken."""
        return {Wish.PAUSE: "its owner paused it", Wish.DRAIN: "its owner lets it run empty"}.get(self)


def read(path: Path) -> Wish:
    """The wish in a file; where there is none, to work. Raises `UsageError` for a damaged one."""
    try:
        return Wish(path.read_text()[:100].strip())
    except FileNotFoundError:
        return Wish.WORK
    except ValueError:
        raise UsageError(f"{path} is damaged; run: labapex-worker resume") from None


def write(path: Path, wish: Wish) -> None:
    if wish is Wish.WORK:
        path.unlink(missing_ok=True)
        return
    part = path.with_suffix(".part")
    part.write_text(wish + "\n")
    part.replace(path)
