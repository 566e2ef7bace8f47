"""The executable of a lease: never a file on the platform, a signed manifest and the parts that it names."""

from __future__ import annotations

import math
import secrets
import shutil
import tempfile
import threading
from functools import lru_cache
from pathlib import Path
from uuid import UUID

from django.conf import settings

from labapex.executable import Layout, Runner, describe, layout, load_runner
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Contract, Handover, ScriptFacts
from labapex.protocol.limits import Limits
from labapex.protocol.manifest import Manifest, Section, SuppliedTorch
from labapex_server.jobs import limits as job_limits
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib import store, trust
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace import releases
from labapex_server.marketplace.models import Lease

_PARTS = ("bootloader", "runner.pkg")
_loading = threading.Lock()


def runner() -> Runner:
    """The frozen runner that jobs are given. Raises `MalformedInput` where it was not built."""
    folder = settings.LABAPEX.runner_dir
    stamps = tuple((folder / name).stat().st_mtime_ns for name in _PARTS if (folder / name).exists())
    with _loading:  # it is digested once, not once in each thread
        return _load(folder, stamps)


@lru_cache(maxsize=8)
def _load(folder: Path, stamps: tuple[int, ...]) -> Runner:
    return load_runner(folder)


def runner_of(lease: Lease) -> Path:
    """The very runner that a lease was given, as a program: after an upgrade too, its work is judged by its own engine."""
    folder = _kept(lease)
    program = folder / "runner"
    if not program.exists():
        draft = folder / f".runner.{secrets.token_hex(8)}"
        with draft.open("wb") as whole:
            for name in _PARTS:
                whole.write((folder / name).read_bytes())
        draft.chmod(0o755)
        folder.chmod(0o755)  # the sandbox's user looks in; `home` above stays closed
        draft.rename(program)
    return program


def _kept(lease: Lease) -> Path:
    """The folder with the parts of the runner that a lease was given."""
    folder = _folder(Manifest.model_validate(lease.manifest).runner)
    for name in _PARTS:
        store.fetch(folder / name)
    return folder


def _folder(runner: str) -> Path:
    folder: Path = settings.LABAPEX.private_folder("runners") / runner
    return folder


def _keep(made: Runner) -> None:
    """Keep the current runner where it is found by its digest. Raises `Conflict` while it is being replaced."""
    final = _folder(made.digest)
    if all(store.size(final / name) is not None for name in _PARTS):
        return
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=settings.LABAPEX.private_folder("runners")))
    try:
        for part in (made.bootloader, made.archive):
            shutil.copyfile(part, draft / part.name)
        if load_runner(draft).digest != made.digest:
            raise Conflict("the runner is being replaced; try again")
        for name in _PARTS:
            store.keep(draft / name, final / name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def contract(job: Job, *, lease: UUID, seed: str) -> Contract:
    """The terms of one lease of a job that passed its preflight."""
    spec, files = job.job_spec, job.files
    terms = Contract(
        job=job.pk,
        lease=lease,
        seed=seed,
        code=jobs.code_digest(files),
        data=jobs.data_digest(files),
        parents=job.origins,
        requirements=digest(job.lock),
        script=spec.script,
        args=tuple(spec.arguments()),
        epochs=spec.epochs,
        checkpoint_every=spec.checkpoint_every,
        threads=spec.threads,
        facts=ScriptFacts.model_validate(job.facts),
    )
    terms = terms.model_copy(update={"keep_every": keep_every(terms, settings.LABAPEX.kept_states_gb)})
    terms = terms.model_copy(update={"limits": limits(job, terms)})
    return terms.model_copy(update={"upload_every": upload_every(job, terms)})


def limits(job: Job, terms: Contract) -> Limits:
    """What a run may take of its host: what its script may, and on disk its files, which may lie there twice, and the states
    that are kept, which may still grow by a quarter."""
    script, files = job_limits.of_script(job.job_spec), job.files
    sizes = sum(part.size for part in (*files.code, *files.data))
    states = len(terms.kept_leaves()) * terms.facts.state_bytes
    return script.model_copy(update={"disk": script.disk + 2 * sizes + states * 5 // 4})


def continued(before: Lease, handovers: tuple[Handover, ...], *, lease: UUID) -> Contract:
    """The terms of a lease whose host goes on with the run of `before`: the very same, seed and all, but for who has them."""
    return before.terms.model_copy(update={"lease": lease, "handovers": handovers, "stopped": None})


def upload_every(job: Job, terms: Contract) -> int:
    """Every how many leaves a host that trains hands in its state: one that it keeps, about each `handover_seconds`, and so
    seldom that neither the line nor the platform's disk has too much of them. 0 where none would come before the end."""
    config, facts = settings.LABAPEX, terms.facts
    if not config.handover_seconds or not job.job_spec.takeover or not job.iteration_seconds:
        return 0
    leaves = len(terms.leaf_steps())
    leaf_seconds = job.iteration_seconds * terms.iterations / (leaves - 1)
    by_time = max(config.handover_seconds, facts.state_bytes / config.handover_bytes_per_second) / leaf_seconds
    by_room = leaves * facts.state_bytes / (config.handover_gb * 1e9)
    every = math.ceil(max(by_time, by_room, 1) / terms.keep_every) * terms.keep_every
    return every if every < leaves - 1 else 0


def keep_every(terms: Contract, gigabytes: float) -> int:
    """Every how many leaves a host keeps a state so that all kept ones are of about so many gigabytes: 1 where all fit."""
    leaves = len(terms.leaf_steps())
    return min(leaves, max(1, math.ceil(leaves * terms.facts.state_bytes / (gigabytes * 1e9))))


def manifest(
    job: Job,
    *,
    terms: Contract,
    worker: UUID,
    torch: SuppliedTorch | None,
    expires_at: int,
    before: Lease | None = None,
) -> Manifest:
    """What is signed: this runner, these sections, for this worker, under these terms, with `torch` where its host has none.

    `before`: the lease with whose run it goes on, and with its runner: another one might train otherwise."""
    if before is None:
        made = runner()
        _keep(made)
        release = releases.of_runner(made)
    else:
        made, release = _load(_kept(before), ()), Manifest.model_validate(before.manifest).release
    key, _ = trust.signer("manifest")
    sections = [describe(_index(job))]
    sections += [Section(digest=blob.sealed_digest, size=blob.sealed_size) for _, blob in jobs.parts(job)]
    return Manifest(
        key=key,
        release=release,
        bootloader_size=made.bootloader_size,
        archive_size=made.archive_size,
        sections=tuple(sections),
        worker=worker,
        contract=terms,
        requirements=job.lock,
        torch=torch,
        expires_at=expires_at,
    )


def executable_parts(lease: Lease) -> Layout:
    """All of a lease's executable in order, to be streamed from any offset."""
    job = lease.job
    sections: list[bytes | Path] = [_index(job), *(store.fetch(blob.path) for _, blob in jobs.parts(job))]
    made = _load(_kept(lease), ())
    return layout(made, sections, Manifest.model_validate(lease.manifest), bytes(lease.manifest_signature))


def _index(job: Job) -> bytes:
    if job.sealed_index is None:
        raise ValueError(f"job {job.pk} was not packaged")
    return bytes(job.sealed_index)
