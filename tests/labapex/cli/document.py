"""Writes what docs/cli.md shows of the command line: each command's own help, and a session that really runs.

    python -m tests.labapex.cli.document       brings docs/cli.md up to date

Text between `<!-- generated: NAME -->` and `<!-- end -->` is made here; `test_document.py` holds the document to it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock
from uuid import UUID

import typer
from tests.labapex.memory_platform import TOKEN, URL, Chapter, MemoryPlatform, happy_story

from labapex import errors
from labapex.cli import options
from labapex.cli.main import app, main
from labapex.client import Client
from labapex.protocol.states import JobState

DOCUMENT = Path(__file__).parents[3] / "docs" / "cli.md"
JOB = UUID("4635f120-5b1c-4d0e-9a36-0d5f1d1a7c11")
SCRIPT = 'import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument("--epochs", type=int, default=3)\n'
SESSION = (
    "labapex whoami",
    "labapex offers",
    "labapex init -y",
    "labapex run -y",
    "labapex ps",
    "labapex metrics 4635",
    "labapex metrics 4635 --csv",
    "labapex receipts 4635",
    "labapex whoami --json",
    "labapex logs 4635",
    "labapex show digits",
)
_LONGEST = 600  # characters of one line
_MARK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def reference() -> str:
    """Every command with its arguments and options, as `--help` knows them."""
    lines = ["| command | |", "| --- | --- |"]
    for name, command in vars(typer.main.get_command(app))["commands"].items():
        named = [p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument"]
        flags = [
            f"`{'`, `'.join([*p.opts, *p.secondary_opts])}` {(p.help or '').rstrip('.')}".strip()
            for p in command.params
            if p.param_type_name == "option"
        ]
        said = " ".join((command.help or "").split())
        lines.append(f"| `{' '.join([name, *named])}` | {_cell('<br>'.join([said, *flags]))} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def codes() -> str:
    """The errors of `labapex.errors` with their exit codes."""
    tree = re.findall(r"(\w+)\s{2,}(\d+)   (.+)", errors.__doc__ or "")
    lines = ["| code | error | meaning |", "| --- | --- | --- |", "| 0 | | done; of `run` and `logs -f`: verified |"]
    lines += [f"| {code} | `{name}` | {meaning} |" for name, code, meaning in sorted(tree, key=lambda row: int(row[1]))]
    return "\n".join([*lines, "| 130 | | interrupted; the job goes on |"])


def session() -> str:
    """What somebody sees who types these commands. The platform is in memory; everything else is the program."""
    platform = MemoryPlatform(story=[*happy_story()[1:-1], Chapter(JobState.VERIFIED, reason="every rule passed")])
    out = []
    with _at_home() as folder, _platform(platform):
        (folder / "train.py").write_text(SCRIPT)
        for line in SESSION:
            out.append(f"$ {line}")
            code, said = _typed(line)
            text = said.replace(str(folder.resolve()), "/home/ada/digits")
            out += [each.rstrip()[:_LONGEST] for each in text.splitlines()]
            if code:
                out.append(f"(exit code {code})")
            for job in platform.jobs.values():  # told from the start by whoever asks next
                job.told = len(job.story)
    return "```console\n" + "\n".join(out) + "\n```"


def _typed(line: str) -> tuple[int, str]:
    both = io.StringIO()
    with (
        mock.patch.object(sys, "argv", shlex.split(line)),
        contextlib.redirect_stdout(both),
        contextlib.redirect_stderr(both),
    ):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), both.getvalue()
    return 0, both.getvalue()


@contextlib.contextmanager
def _at_home() -> Iterator[Path]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "digits"
        folder.mkdir()
        variables = {"LABAPEX_URL": URL, "LABAPEX_TOKEN": TOKEN, "HOME": name, "XDG_CONFIG_HOME": name, "TZ": "UTC"}
        with mock.patch.dict(os.environ, variables):
            time.tzset()
            os.chdir(folder)
            try:
                yield folder
            finally:
                os.chdir(before)
    time.tzset()


@contextlib.contextmanager
def _platform(platform: MemoryPlatform) -> Iterator[None]:
    client = functools.partial(Client, transport=platform.transport, sleep=lambda seconds: None)
    with mock.patch.object(options, "Client", client), mock.patch("uuid.uuid4", return_value=JOB):
        yield


def whole(text: str) -> str:
    """The document with everything generated in it made anew."""
    parts: dict[str, Callable[[], str]] = {"reference": reference, "codes": codes, "session": session}
    return _MARK.sub(lambda found: f"{found[1]}{parts[found[2]]()}\n{found[3]}", text)


if __name__ == "__main__":
    DOCUMENT.write_text(whole(DOCUMENT.read_text()))
