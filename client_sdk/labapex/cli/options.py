"""Options that several commands share, and what they stand for."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from labapex.cli.output import say
from labapex.client import Client, credentials
from labapex.errors import NotFound, UsageError

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or the beginning of it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The platform. Default: LABAPEX_URL, else the last login.")
]
_LEAST_PREFIX = 4


def connect(url: str | None, token: str | None = None) -> Client:
    """A client; says so where what it sends could be read on the way."""
    client = Client(url, token)
    if not credentials.is_private(client.url):
        say(f"warning: {client.url} is not encrypted; whoever carries your traffic can read your token and your files")
    return client


def short(job: UUID) -> str:
    """How tables name a job; `find` understands it."""
    return str(job)[:8]


def find(client: Client, text: str) -> UUID:
    """The job that an id, or the beginning of one, means. Raises `UsageError` or `NotFound`."""
    try:
        return UUID(text)
    except ValueError:
        pass
    prefix = text.lower()
    if len(prefix) < _LEAST_PREFIX or not set(prefix) <= set("0123456789abcdef-"):
        raise UsageError(f"'{text}' is not a job's id; `labapex ps` lists your jobs")
    found = [job.id for job in client.all_jobs() if str(job.id).startswith(prefix)]
    if not found:
        raise NotFound(f"you have no job whose id begins with '{text}'; `labapex ps` lists your jobs")
    if len(found) > 1:
        raise UsageError(f"{len(found)} jobs begin with '{text}'; give more of the id")
    return found[0]
