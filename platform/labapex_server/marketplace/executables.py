"""The executable of a lease: never a file on the platform, a signed manifest and the parts that it names."""

from __future__ import annotations

import shutil
import tempfile
import threading
from functools import lru_cache
from pathlib import Path
from uuid import UUID

from django.conf import settings

from labapex.executable import Layout, Runner, describe, layout, load_runner
from labapex.protocol.contract import Contract, ScriptFacts
from labapex.protocol.manifest import Manifest, Section
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace.models import Lease

_loading = threading.Lock()


def runner() -> Runner:
    """The frozen runner that jobs are given. Raises `MalformedInput` where it was not built."""
    folder = settings.LABAPEX.runner_dir
    stamps = tuple(
        (folder / name).stat().st_mtime_ns for name in ("bootloader", "runner.pkg") if (folder / name).exists()
    )
    with _loading:  # it is digested once, not once in each thread
        return _load(folder, stamps)


@lru_cache(maxsize=8)
def _load(folder: Path, stamps: tuple[int, ...]) -> Runner:
    return load_runner(folder)


def runner_of(lease: Lease) -> Path:
    """The very runner that a lease was given, as a program: after an upgrade too, its work is judged by its own engine."""
    return _kept(Manifest.model_validate(lease.manifest).runner) / "runner"


def _kept(digest: str) -> Path:
    folder: Path = settings.LABAPEX.home / "runners" / digest
    return folder


def _keep(made: Runner) -> None:
    """Copy the current runner to where it is found by its digest. Raises `Conflict` while it is being replaced."""
    final = _kept(made.digest)
    if final.exists():
        return
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=settings.LABAPEX.private_folder("runners")))
    try:
        with (draft / "runner").open("wb") as whole:
            for part in (made.bootloader, made.archive):
                shutil.copyfile(part, draft / part.name)
                whole.write((draft / part.name).read_bytes())
        (draft / "runner").chmod(0o755)
        draft.chmod(0o755)  # the sandbox's user looks in; `home` above stays closed
        if load_runner(draft).digest != made.digest:
            raise Conflict("the runner is being replaced; try again")
        try:
            draft.rename(final)
        except OSError:
            if not final.exists():  # else another process was first
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def contract(job: Job, *, lease: UUID, seed: str) -> Contract:
    """The terms of one lease of a job that passed its preflight."""
    spec, files = job.job_spec, job.files
    return Contract(
        job=job.pk,
        lease=lease,
        seed=seed,
        code=jobs.code_digest(files),
        data=jobs.data_digest(files),
        script=spec.script,
        args=tuple(spec.arguments()),
        epochs=spec.epochs,
        checkpoint_every=spec.checkpoint_every,
        threads=spec.threads,
        facts=ScriptFacts.model_validate(job.facts),
    )


def manifest(job: Job, *, terms: Contract, worker: UUID, expires_at: int) -> Manifest:
    """What is signed: this runner, these sections, for this worker, under these terms."""
    made = runner()
    _keep(made)
    sections = [describe(_index(job))]
    sections += [Section(digest=blob.sealed_digest, size=blob.sealed_size) for _, blob in jobs.parts(job)]
    return Manifest(
        runner=made.digest,
        bootloader_size=made.bootloader_size,
        archive_size=made.archive_size,
        sections=tuple(sections),
        worker=worker,
        contract=terms,
        expires_at=expires_at,
    )


def executable_parts(lease: Lease) -> Layout:
    """All of a lease's executable in order, to be streamed from any offset."""
    job = lease.job
    sections: list[bytes | Path] = [_index(job), *(blob.path for _, blob in jobs.parts(job))]
    made = _load(runner_of(lease).parent, ())
    return layout(made, sections, Manifest.model_validate(lease.manifest), bytes(lease.manifest_signature))


def _index(job: Job) -> bytes:
    if job.sealed_index is None:
        raise ValueError(f"job {job.pk} was not packaged")
    return bytes(job.sealed_index)
