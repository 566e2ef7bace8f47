"""Releases that this platform has statements of: which runners workers start, and what their agents become.

Statements lie in `home/releases`; they are signed where the release key is (`manage.py release`). A platform that set
itself up has a release key of its own and states what it froze by itself.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

from django.conf import settings

from labapex.errors import MalformedInput, UsageError
from labapex.executable import Runner
from labapex.protocol.canonical import canonical, parse
from labapex.protocol.trust import Release, SignedRelease, order
from labapex.trust import NotTrusted, sign_release
from labapex_server.lib import trust
from labapex_server.lib.errors import Conflict
from labapex_server.lib.files import fsync_folder, secret_file

MAX_STATEMENT = 64 << 10
MAX_WHEEL = 32 << 20  # agents take no more
DAY = 24 * 3600
LOCAL_DAYS = 365  # of a statement that the platform makes by itself
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def of_runner(runner: Runner) -> SignedRelease:
    """The statement that lets workers start this runner. Raises `Conflict` where there is none that counts."""
    path = folder() / f"runner-{runner.digest}.json"
    now, believed = time.time(), trust.current()
    try:
        found = parse(SignedRelease, path.read_bytes(), limit=MAX_STATEMENT)
        if believed.release(found, "runner", now).digest == runner.digest:
            return found
        why = f"{path} is of another runner"
    except FileNotFoundError:
        why = "no release names it"
    except (MalformedInput, NotTrusted) as error:
        why = str(error)
    if not trust.signs_for_itself():
        raise Conflict(
            f"workers would refuse the runner {runner.digest[:16]}..: {why}; sign and publish it: manage.py release"
        )
    return _state(runner, path)


def publish(signed: SignedRelease, wheel: bytes | None = None) -> Path:
    """Keep a statement, and for an agent the wheel that it names: it is what agents are offered from now on.

    Raises `NotTrusted` where workers would refuse it, `UsageError` where the wheel is another."""
    release = signed.release
    trust.current().release(signed, release.kind, time.time())
    if release.kind == "runner":
        return _write(folder() / f"runner-{release.digest}.json", canonical(signed))
    before = agent()
    if before is not None and order(before.release.version) > order(release.version):
        raise UsageError(f"agents are offered {before.release.version} already, and never go back; raise the version")
    if wheel is None or (len(wheel), hashlib.sha256(wheel).hexdigest()) != (release.size, release.digest):
        raise UsageError("name the wheel that the statement was signed for")
    _write(folder() / f"agent-{release.digest}.whl", wheel)
    return _write(_agent(), canonical(signed))


def agent() -> SignedRelease | None:
    """The agent that workers are offered."""
    return read(_agent()) if _agent().exists() else None


def wheel(digest: str) -> bytes | None:
    """The wheel of the agent that is offered; None for any other."""
    offered = agent()
    if offered is None or offered.release.digest != digest:
        return None
    return (folder() / f"agent-{digest}.whl").read_bytes()


def _agent() -> Path:
    return folder() / "agent.json"


def _write(path: Path, content: bytes) -> Path:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)
    fsync_folder(path.parent)
    return path


def read(path: Path) -> SignedRelease:
    """A statement in a file, not judged yet. Raises `UsageError`."""
    try:
        with path.open("rb") as file:
            return parse(SignedRelease, file.read(MAX_STATEMENT + 1), limit=MAX_STATEMENT)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except MalformedInput as error:
        raise UsageError(f"{path} holds no statement of a release: {error}") from None


def folder() -> Path:
    found: Path = settings.LABAPEX.private_folder("releases")
    return found


def _state(runner: Runner, path: Path) -> SignedRelease:
    """A statement of a platform for itself: each freezing is a version of its own, and all of a version of the sources go."""
    _, key = trust.signer("release")
    now, base = time.time(), version("labapex")
    release = Release(
        kind="runner",
        version=f"{base}.{int(1000 * now)}",
        digest=runner.digest,
        size=runner.bootloader_size + runner.archive_size,
        python=PYTHON,
        minimum=base,
        issued_at=int(now),
        expires_at=int(now) + LOCAL_DAYS * DAY,
    )
    signed = sign_release(release, key)
    path.unlink(missing_ok=True)  # one that does not count any more
    made = secret_file(path, lambda: canonical(signed))  # of several processes that try, one wins
    return parse(SignedRelease, made, limit=MAX_STATEMENT)
