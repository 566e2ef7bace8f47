"""One run of the sandboxed child over states that are here."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from django.conf import settings

from labapex.errors import MalformedInput
from labapex.protocol.records import Leaf
from labapex.protocol.replay import EpochSample, ReplayReport, ReplayRequest
from labapex_server.jobs import packages
from labapex_server.lib import childprocess, store
from labapex_server.lib.errors import Refused
from labapex_server.marketplace.executables import runner_of
from labapex_server.marketplace.models import Lease
from labapex_server.verification import judgement, openings
from labapex_server.verification.preflight import fill

log = logging.getLogger(__name__)


def run(
    lease: Lease,
    leaves: Sequence[Leaf],
    states: Mapping[int, Path],
    segments: Collection[int],
    *,
    compare: Iterable[int],
    evaluations: Iterable[object] = (),
    keep: bool = False,
    make: Leaf | None = None,
    made: Mapping[int, Path] | None = None,
    beat: Callable[[], None],
) -> tuple[ReplayReport, str | None]:
    """Replay segments of a lease's run from `states`, by leaf; `compare`: those whose end state is among them.

    `keep`, for a whole run's first replay: what it made of the final state, by its digest, and what it foretells of all.
    `make`: a leaf to which a segment leads, whose state is kept as if the host had handed it in, if it comes out as committed.
    `made`: likewise leaves, 0 for the initial state, and the places where their states go."""
    contract = lease.terms
    with childprocess.private_folder("replay") as folder, packages.environment(lease.job) as environment:
        fill(lease.job, folder / "work", beat)
        (folder / "states").mkdir(mode=0o700)
        for index, path in states.items():
            shutil.copyfile(path, folder / "states" / f"{index}.safetensors")
            beat()
        request = ReplayRequest(
            contract=contract,
            segments=tuple(segments),
            compare=tuple(compare),
            evaluations=tuple(EpochSample.model_validate(each) for each in evaluations),
            digests={index: leaves[index].state for index in sorted(states)},
            make=(*(() if make is None else (make.index,)), *(index for index in made or () if index)),
            foretell=settings.LABAPEX.replay_seconds / 5 if keep else 0,
        )
        report = childprocess.run(
            "replay",
            folder,
            request=request,
            report=ReplayReport,
            threads=contract.threads,
            seconds=settings.LABAPEX.replay_seconds,
            beat=beat,
            runner=runner_of(lease),
            packages=environment,
        )
        if make is not None:
            _keep_state(lease, make, folder / "made" / f"{make.index}.safetensors")
        for index, place in (made or {}).items():
            name = f"{index}.safetensors" if index else "initial.safetensors"
            _place_state(folder / "made" / name, leaves[index], place)
        weights = _keep_weights(lease, folder / "weights.safetensors") if keep and not report.problem else None
        return report, weights


def _keep_state(lease: Lease, leaf: Leaf, made: Path) -> None:
    """Nothing is kept of a state that is not the committed one: what the replay says of its segment tells why."""
    try:
        with childprocess.open_hostile(made, limit=leaf.size) as source:
            openings.keep(lease, leaf, source)
    except (MalformedInput, Refused) as error:
        log.warning("lease %s: the state of leaf %d was not made anew: %s", lease.pk, leaf.index, error)


def _place_state(made: Path, leaf: Leaf, place: Path) -> None:
    """Put a state at a place of the platform's, if it is the committed one; of any other the report tells."""
    draft = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    try:
        _copy(childprocess.open_hostile(made, limit=leaf.size), draft)
        if openings.is_leafs(draft, leaf):
            store.keep(draft, place)
    except MalformedInput as error:
        log.warning("the state of leaf %d was not made anew: %s", leaf.index, error)
    finally:
        draft.unlink(missing_ok=True)


def _keep_weights(lease: Lease, made: Path) -> str | None:
    """Keep the result that the replay extracted from the final state; its SHA-256, or None where it made none."""
    try:
        source = childprocess.open_hostile(made, limit=settings.LABAPEX.result_limit_bytes)
    except MalformedInput:
        return None  # the verdict has no weights then, and `pull` says so
    settings.LABAPEX.private_folder("leases", str(lease.pk))
    final = judgement.weights_path(lease, settings.LABAPEX.home)
    temporary = final.with_name(f".weights.{secrets.token_hex(8)}")
    digest = _copy(source, temporary)
    store.keep(temporary, final)
    return digest


def _copy(source: IO[bytes], draft: Path) -> str:
    """Write a hostile file anew; its SHA-256."""
    digest = hashlib.sha256()
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with source, os.fdopen(descriptor, "wb") as target:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()
