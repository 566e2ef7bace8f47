"""The builds of torch that the operator has put on record: `labapex-worker digest` writes them, for `home/builds/*.json`."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from django.conf import settings

from labapex.errors import MalformedInput
from labapex.protocol.canonical import parse
from labapex.protocol.contract import TorchBuild

log = logging.getLogger(__name__)

MAX_BUILD = 4096


def stranger(version: str, build: str | None, supplied: TorchBuild | None = None) -> str | None:
    """Why a host's torch is not one on record, in words; None where it is, or where none of its version is.

    `build` is its `installed.Build.digest`, None where the host cannot say. The operator decides by what he puts on record: of a
    version of which nothing is, every build is accepted. Of a host that was `supplied` with a build, that one alone is."""
    if supplied is not None:
        same = build == supplied.digest
        return None if same else f"its torch {version} is {_named(build)}, and not the one that this platform supplied"
    known = _of(version)
    if not known or build in known:
        return None
    return f"its torch {version} is {_named(build)}, and none of the {len(known)} that this platform has on record"


def described(version: str, build: str | None, supplied: TorchBuild | None = None) -> str:
    """The build of torch in a few words for the job's history."""
    known = "on record" if build in _of(version) else "an unknown build"
    return f"torch {version}, {_named(build)}, {known if supplied is None else 'from this platform'}"


def _named(build: str | None) -> str:
    return "of a build that it cannot tell" if build is None else f"of build {build[:16]}"


def _of(version: str) -> set[str | None]:
    return {build.digest for build in _on_record() if build.torch == version}


def _on_record() -> Iterator[TorchBuild]:
    for path in sorted((settings.LABAPEX.home / "builds").glob("*.json")):
        try:
            with path.open("rb") as file:
                yield parse(TorchBuild, file.read(MAX_BUILD + 1), limit=MAX_BUILD)
        except (OSError, MalformedInput) as error:
            log.error("%s is no build of torch and does not count: %s", path, error)
