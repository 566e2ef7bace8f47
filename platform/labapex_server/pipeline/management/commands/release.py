"""Releases: sign a statement where the release key is, publish it on the server. docs/operations.md, Trust."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labapex.errors import LabApexError, UsageError
from labapex.executable import load_runner
from labapex.protocol.canonical import canonical
from labapex.protocol.trust import Release
from labapex.trust import sign_release
from labapex_server.lib import offline
from labapex_server.marketplace import releases

DAY = 24 * 3600


class Command(BaseCommand):
    help = "State that a runner or an agent is fit to be run, and hand the statement out."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        sign = actions.add_parser("sign", help="sign a statement")
        sign.add_argument("kind", choices=["runner", "agent"])
        sign.add_argument("file", type=Path, help="the folder in which the runner was frozen, or the agent's wheel")
        sign.add_argument("--version", required=True, dest="number", help="numbers and dots, above every earlier one")
        sign.add_argument("--minimum", help="the oldest version that may still be run; without it: this one")
        sign.add_argument("--python", default=releases.PYTHON)
        sign.add_argument("--days", type=float, default=365, help="until workers refuse it")
        sign.add_argument("--key", type=Path, required=True, help="the release key")
        sign.add_argument("--passphrase-file", type=Path, help="a file of mode 0600; else it is asked for")
        sign.add_argument("--out", type=Path, required=True)
        publish = actions.add_parser("publish", help="hand out a statement")
        publish.add_argument("file", type=Path)
        publish.add_argument("wheel", type=Path, nargs="?", help="of an agent")

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        try:
            getattr(self, f"_{action}")(options)
        except LabApexError as error:
            raise CommandError(str(error)) from None

    def _sign(self, options: dict[str, Any]) -> None:
        digest, size = (_runner if options["kind"] == "runner" else _wheel)(options["file"], options["number"])
        now = int(time.time())
        try:
            release = Release(
                kind=options["kind"],
                version=options["number"],
                digest=digest,
                size=size,
                python=options["python"],
                minimum=options["minimum"] or options["number"],
                issued_at=now,
                expires_at=now + int(options["days"] * DAY),
            )
        except ValueError as error:
            raise UsageError(f"this is no release: {error}") from None
        signed = sign_release(release, offline.load(options["key"], options["passphrase_file"]))
        options["out"].write_bytes(canonical(signed))
        self.stdout.write(f"{release.kind} {release.version}, SHA-256 {release.digest}, in {options['out']}")

    def _publish(self, options: dict[str, Any]) -> None:
        wheel = None if options["wheel"] is None else _content(options["wheel"])
        self.stdout.write(f"kept as {releases.publish(releases.read(options['file']), wheel)}")


def _runner(folder: Path, version: str) -> tuple[str, int]:
    runner = load_runner(folder)
    return runner.digest, runner.bootloader_size + runner.archive_size


def _wheel(path: Path, version: str) -> tuple[str, int]:
    """Raises `UsageError` for a file that agents would not take."""
    if not path.name.startswith(f"labapex-{version}-py3-none-any"):
        raise UsageError(f"{path.name} is not labapex-{version}-py3-none-any.whl, as `pip wheel --no-deps .` makes it")
    content = _content(path)
    return hashlib.sha256(content).hexdigest(), len(content)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(releases.MAX_WHEEL + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > releases.MAX_WHEEL:
        raise UsageError(f"{path} has more than the {releases.MAX_WHEEL} bytes that agents take")
    return content
