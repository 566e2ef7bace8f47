"""Where the CLI's words go: data to stdout, messages to stderr, and nothing from outside reaches the terminal raw."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TextIO

from pydantic import BaseModel
from rich.console import Console

from labapex.protocol.spec import CREDIT

# C0 and C1 controls but tab and line feed, and the marks that turn the direction of text around.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


_PIPE_WIDTH = 1000  # a program reads whole lines; a table there is as wide as its content


def stdout() -> Console:
    return _console(sys.stdout)


def stderr() -> Console:
    return _console(sys.stderr)


def _console(file: TextIO) -> Console:
    width = None if file.isatty() else _PIPE_WIDTH
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False, soft_wrap=True)


def say(message: str) -> None:
    """A message for people, on stderr."""
    stderr().print(clean(message))


def clean(text: str) -> str:
    """Text from outside without terminal sequences: a job's console must not command the reader's terminal."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def one_line(text: str) -> str:
    return " ".join(clean(text).split())


def headline(text: str) -> str:
    """The line that says it: of a traceback the last one, of anything else the first."""
    lines = [line for line in clean(text).splitlines() if line.strip()]
    if not lines:
        return ""
    return lines[-1 if any("Traceback (most recent call last)" in line for line in lines) else 0].strip()


def plain(value: BaseModel | Mapping[str, Any] | list[Any]) -> Any:
    """What JSON can carry: numbers that are not finite become null."""
    if isinstance(value, BaseModel):
        return json.loads(value.model_dump_json())
    return value


def print_json(value: BaseModel | Mapping[str, Any] | list[Any]) -> None:
    """One line of JSON on stdout; ASCII, so that no text in it can command a terminal."""
    sys.stdout.write(json.dumps(plain(value), allow_nan=False) + "\n")
    sys.stdout.flush()


def credits(micro: int) -> str:
    """Micro-credits as people write them: 2500000 is '2.5'."""
    return format((Decimal(micro) / CREDIT).normalize(), "f")


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """'42s', '3m 05s', '2h 07m'."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
