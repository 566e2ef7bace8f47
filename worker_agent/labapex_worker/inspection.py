"""What an executable is and whether this host would start it, found out without starting it.

The file is hostile until it is shown to be the platform's: what it says of itself is told apart from what is proven.
"""

from __future__ import annotations

import stat
from pathlib import Path
from uuid import UUID

from labapex import executable, trust
from labapex.errors import LabApexError, MalformedInput, UsageError
from labapex.protocol.canonical import Message
from labapex.protocol.contract import TorchBuild
from labapex.protocol.trust import Release
from labapex.trust import NotTrusted, Trust


class Signer(Message):
    """The key that signed, as the trust document names it."""

    key: str
    not_before: int  # Unix time, as are all times here
    not_after: int
    root: str  # fingerprint of the root key that vouches for it


class Report(Message):
    """An executable as `labapex-worker inspect` shows it. Sizes are in bytes."""

    trusted: bool  # this host would start it now
    problem: str | None  # why not
    job: UUID
    lease: UUID
    worker: UUID
    script: str
    epochs: int
    iterations_per_epoch: int
    checkpoint_every: int
    size: int
    bootloader_size: int
    sections: int
    sections_size: int
    archive_size: int
    expires_at: int
    runner: Release
    torch: TorchBuild | None  # that the platform gives beside it; None: the host's own
    runner_key: str
    manifest_key: str
    signer: Signer | None  # None: not signed by a key that counts


def report(path: Path, believed: Trust | None, worker: UUID | None, now: float) -> Report:
    """Look at a file. `believed` and `worker` are None on a host that is not enrolled, where nothing can be trusted.

    Raises `UsageError` for something that is no file, `MalformedInput` for a file that is no executable."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is not a file")
    found = executable.inspect(path)
    manifest, problem = found.manifest, _problem(path, believed, worker, now)
    terms = manifest.contract
    return Report(
        trusted=problem is None,
        problem=problem,
        job=terms.job,
        lease=terms.lease,
        worker=manifest.worker,
        script=terms.script,
        epochs=terms.epochs,
        iterations_per_epoch=terms.facts.iterations_per_epoch,
        checkpoint_every=terms.checkpoint_every,
        size=path.stat().st_size,
        bootloader_size=manifest.bootloader_size,
        sections=len(manifest.sections),
        sections_size=sum(section.size for section in manifest.sections),
        archive_size=manifest.archive_size,
        expires_at=manifest.expires_at,
        runner=manifest.release.release,
        torch=manifest.torch.build if manifest.torch is not None else None,
        runner_key=manifest.release.key,
        manifest_key=manifest.key,
        signer=_signer(found, believed, now),
    )


def _problem(path: Path, believed: Trust | None, worker: UUID | None, now: float) -> str | None:
    if believed is None or worker is None:
        return "this host trusts no platform: no worker is enrolled here, or it has not heard of its platform yet"
    try:
        executable.verify(path, believed, worker, now)
    except LabApexError as error:
        return str(error)
    return None


def _signer(found: executable.Inspection, believed: Trust | None, now: float) -> Signer | None:
    if believed is None:
        return None
    manifest = found.manifest
    try:
        key = believed.verify(found.canonical_text, found.signature, key=manifest.key, role="manifest", now=now)
    except (MalformedInput, NotTrusted):
        return None
    return Signer(key=key.id, not_before=key.not_before, not_after=key.not_after, root=trust.fingerprint(believed.root))
