"""How a folder is refused."""

from __future__ import annotations


class Refused(Exception):
    """`stage`: how far the folder holds: `form`, `log` or `shown`."""

    def __init__(self, stage: str, why: str) -> None:
        super().__init__(f"{stage}: {why}")
        self.stage = stage
