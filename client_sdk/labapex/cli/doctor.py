"""`labapex doctor`: what is missing on this machine, one line each, with what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table
from rich.text import Text

from labapex import sandbox
from labapex.cli.options import JsonOption, UrlOption, connect
from labapex.cli.output import one_line, print_json, size, stdout
from labapex.client import credentials
from labapex.errors import LabApexError

_NEEDED_TO_TRAIN = ("torch", "numpy", "safetensors")
_LEAST_SPACE = 5 << 30  # of a recording of a small model; bytes
_WORST_SKEW = 60.0  # seconds
_STYLE = {"ok": "green", "warning": "yellow", "missing": "bold red"}


@dataclass(frozen=True)
class Finding:
    """`state`: ok, warning (something will not work) or missing (nothing works)."""

    what: str
    state: str
    detail: str


def doctor(url: UrlOption = None, json: JsonOption = False) -> None:
    """Look at this machine, its login and the platform; say what is missing. Exits with 1 where something is."""
    findings = [*_machine(), *_login_file(), *_platform(url)]
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for finding in findings:
            row = (Text(finding.state, style=_STYLE[finding.state]), Text(finding.what), Text(one_line(finding.detail)))
            table.add_row(*row)
        stdout().print(table)
    missing = [finding.what for finding in findings if finding.state == "missing"]
    if missing:
        raise LabApexError(f"missing: {', '.join(missing)}")


def _machine() -> Iterator[Finding]:
    yield Finding("labapex", "ok", f"{version('labapex')} on Python {platform.python_version()}")
    absent = [name for name in _NEEDED_TO_TRAIN if not _installed(name)]
    if absent:
        yield Finding(
            "torch", "warning", f"not installed: {', '.join(absent)}; only check, record, verify and replay need them"
        )
    else:
        yield Finding("torch", "ok", f"torch {version('torch')}")
    without = sandbox.available()
    yield Finding("sandbox", "warning" if without else "ok", without or "a stranger's script can be confined here")
    free = shutil.disk_usage("/var/tmp").free  # noqa: S108 - where the commands make their private folders
    state = "ok" if free >= _LEAST_SPACE else "warning"
    yield Finding("space", state, f"{size(free)} free in /var/tmp, where scripts are tried and replayed")


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _login_file() -> Iterator[Finding]:
    file: Path = credentials.path()
    if os.environ.get(credentials.TOKEN_VARIABLE):
        yield Finding("login file", "ok", f"{credentials.TOKEN_VARIABLE} is set and beats it")
    elif not file.exists():
        yield Finding("login file", "warning", f"there is no {file}; `labapex login` makes it")
    elif stat.S_IMODE(file.stat().st_mode) & 0o077:
        yield Finding("login file", "missing", f"others can read {file}: chmod 600 it, then log out and in again")
    else:
        yield Finding("login file", "ok", f"{file}, readable by you alone")


def _platform(url: str | None) -> Iterator[Finding]:
    try:
        client = connect(url)
    except LabApexError as error:
        yield Finding("platform", "missing", str(error))
        return
    with client:
        private = credentials.is_private(client.url)
        said = client.url if private else f"{client.url} is not encrypted: others on the way can read your token"
        yield Finding("address", "ok" if private else "warning", said)
        try:
            skew = client.clock_skew()
        except LabApexError as error:
            yield Finding("platform", "missing", str(error))
            return
        yield Finding("platform", "ok", "answers")
        if skew is not None and abs(skew) > _WORST_SKEW:
            yield Finding(
                "clock", "warning", f"{abs(skew):.0f} seconds {'behind' if skew > 0 else 'ahead of'} the platform's"
            )
        try:
            me = client.me()
        except LabApexError as error:
            yield Finding("token", "missing", str(error))
            return
        yield Finding("token", "ok", f"{me.username}; {', '.join(me.token.scopes)}")
