"""What a script prints, cut into lines and kept within bounds."""

from __future__ import annotations

import codecs
from typing import Literal

from labapex.protocol.records import Console

BYTES_PER_MINUTE = 1 << 20
CHUNK = 16 << 10
IDLE_SECONDS = 1.0
TRUNCATED = "[console truncated: more than 1 MiB a minute]\n"


class Allowance:
    """How much may still be said in this minute, by both streams together."""

    def __init__(self, per_minute: int = BYTES_PER_MINUTE) -> None:
        self._per_minute = per_minute
        self._left = per_minute
        self._ends = float("-inf")
        self._told = False

    def admit(self, text: str, now: float) -> str:
        """The text, or what stands in its place: once a minute a notice, else nothing."""
        if now >= self._ends:
            self._left, self._ends, self._told = self._per_minute, now + 60, False
        size = len(text.encode(errors="replace"))
        if size <= self._left:
            self._left -= size
            return text
        self._left = 0  # nothing after a gap: the reader must see where the console ends
        if self._told:
            return ""
        self._told = True
        return TRUNCATED


class Stream:
    """One of the script's output streams: bytes in, `Console` records of whole lines out."""

    def __init__(self, name: Literal["stdout", "stderr"], allowance: Allowance) -> None:
        self._name = name
        self._allowance = allowance
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._text = ""
        self._since = 0.0

    def feed(self, data: bytes, now: float) -> list[Console]:
        """Whole lines, put together up to 16 KiB. `now` is a monotonic time in seconds."""
        self._since = now
        self._text += self._decoder.decode(data)
        cut = max(self._text.rfind("\n"), self._text.rfind("\r")) + 1
        if not cut and len(self._text) >= CHUNK:
            cut = len(self._text)
        ready, self._text = self._text[:cut], self._text[cut:]
        return self._records(ready, now)

    def idle(self, now: float) -> list[Console]:
        """A line that was begun and waits for its end, such as a prompt or a progress bar."""
        if not self._text or now - self._since < IDLE_SECONDS:
            return []
        return self.close(now)

    def close(self, now: float) -> list[Console]:
        """What is left when the stream has ended."""
        ready, self._text = self._text, ""
        return self._records(ready, now)

    def _records(self, text: str, now: float) -> list[Console]:
        pieces = (text[at : at + CHUNK] for at in range(0, len(text), CHUNK))
        admitted = (self._allowance.admit(piece, now) for piece in pieces)
        return [Console(stream=self._name, text=piece) for piece in admitted if piece]
