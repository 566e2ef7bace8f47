"""The proof of a job, for its owner to keep and to verify without us: the folder of `labapex.proof.folder`, as a stream."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from labapex.errors import Tampered
from labapex.proof import parcel
from labapex.proof.folder import Asked, Content, Files, Manifest, build
from labapex.protocol.api import Stored
from labapex.protocol.contract import Environment
from labapex.protocol.replay import EpochSample
from labapex.sealing import open_stream
from labapex_server.jobs import blobs, erasure
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Blob, Job
from labapex_server.lib import store
from labapex_server.lib.errors import Missing
from labapex_server.marketplace.models import Lease
from labapex_server.verification import evidence, openings
from labapex_server.verification import services as verification
from labapex_server.verification.models import Challenge


def prepare(job: Job) -> tuple[Manifest, dict[str, Content]]:
    """What the proof of a judged job consists of. Reads each opened state once.

    Raises `NotFinishedYet` before there is a verdict, `Gone` once a part was deleted, `Missing` for a run that committed itself
    to nothing.
    """
    signed = verification.signed(job)
    erasure.require(job, *Stored)
    lease = Lease.objects.select_related("job").get(pk=signed.verdict.lease)
    record = evidence.read(lease)
    drawn = Challenge.objects.filter(lease=lease).first()
    code = {part.path: blob for part, blob in jobs.parts(job)}
    spec, files = job.job_spec, job.files
    if not record.leaves:
        raise Missing("the run made no commitment, so there is nothing to prove or to disprove")
    return build(
        origin="platform",
        contract=lease.terms,
        leaves=record.leaves,
        losses=record.losses,
        times=record.times,
        files=Files(code=files.code, data=files.data, data_root=spec.data if files.data else None),
        code=[_plain(code[part.path]) for part in files.code],
        requirements=job.lock,
        environment=Environment.model_validate(lease.environment) if lease.environment else None,
        states=openings.states(lease.terms, drawn.all_indices if drawn is not None else ()),
        asked=_asked(lease, drawn) if drawn is not None else None,
        chunks=_chunks(drawn),
        verdict=signed,
    )


def stream(manifest: Manifest, contents: dict[str, Content]) -> tuple[int, Iterator[bytes]]:
    """The size of the parcel, and its bytes."""
    return parcel.size(manifest), parcel.pack(manifest, contents)


def _chunks(drawn: Challenge | None) -> Path | None:
    if drawn is None or store.size(drawn.chunks_path) is None:
        return None
    return store.fetch(drawn.chunks_path)


def _asked(lease: Lease, drawn: Challenge) -> Asked:
    spec = lease.job.job_spec
    return Asked(
        chunk_nonce=drawn.chunk_nonce,
        chunk=drawn.chunk,
        nonce=drawn.nonce or None,
        audit_segments=drawn.audit_segments,
        top_q=spec.top_q,
        pev_percent=drawn.pev_percent,
        ends=drawn.ends,
        indices=tuple(drawn.indices),
        segments=tuple(drawn.segments),
        evaluations=tuple(EpochSample.model_validate(each) for each in drawn.evaluations),
        further=tuple(drawn.further),
        further_segments=tuple(drawn.further_segments),
    )


def _plain(blob: Blob) -> bytes:
    plain = io.BytesIO()
    with blobs.open_sealed(blob) as sealed:
        open_stream(sealed, plain, blobs.content_key(blob))
    if len(plain.getvalue()) != blob.size:
        raise Tampered(f"the stored file {blob.digest} does not have its size")
    return plain.getvalue()
