"""A job that waits for a worker, a worker that is enrolled, and a run that is under way, through the real services."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.labapex_server.telemetry.executable import Executable

from labapex.proof import merkle, statefile
from labapex.protocol.api import JobRequest
from labapex.protocol.contract import Environment, ScriptFacts, Stretch
from labapex.protocol.frames import KeyRequest
from labapex.protocol.manifest import Manifest
from labapex.protocol.spec import Bundle, JobSpec, Part
from labapex.protocol.states import JobState
from labapex.sealing import new_hpke_keys, new_signing_keys, open_release, public_signing_key
from labapex_server.accounts.models import User
from labapex_server.jobs import blobs
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry import services as telemetry
from labapex_server.verification.models import Challenge
from labapex_server.workers import services as workers
from labapex_server.workers.models import Worker

SCRIPT = b"print('training')\n"
ENVIRONMENT = Environment(python="3.11", torch="2.13", device="cpu: test", capability="AVX2", threads=1)


def a_runner(settings: Any, folder: Path) -> None:
    """Stand-ins for the frozen runner's two files: this door only passes them on."""
    folder.mkdir()
    (folder / "bootloader").write_bytes(b"\x7fELF bootloader" * 100_000)
    table = b"archive" * 100_000
    cookie = struct.pack("!8sIIII64s", b"MEI\014\013\012\013\016", len(table) + 88, 0, 0, 311, b"libpython3.11.so")
    (folder / "runner.pkg").write_bytes(table + cookie)
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"runner_dir": folder, "trial_hours": 0})


def queued_job(
    owner: User,
    *,
    epochs: int = 2,
    per_epoch: int = 7,
    every: int = 3,
    name: str = "digits",
    layout: bool = False,
    script: bytes = SCRIPT,
    **fields: Any,
) -> Job:
    """A job that waits for a worker. `fields` are the spec's."""
    digest = hashlib.sha256(script).hexdigest()
    blobs.store(owner, digest, io.BytesIO(script), size=len(script))
    spec = JobSpec.model_validate(
        {"name": name, "script": "train.py", "epochs": epochs, "budget": "1", "checkpoint_every": every} | fields
    )
    bundle = Bundle(code=(Part(path="train.py", digest=digest, size=len(script)),))
    job = jobs.submit(owner, request=JobRequest(spec=spec, bundle=bundle))
    facts = ScriptFacts(
        loop="train.py:9",
        iterations_per_epoch=per_epoch,
        has_loader=True,
        gradients_are_state=False,
        parameters=10,
        state_bytes=100,
        layout=(Stretch(type="float32", size=40),) if layout else (),
    )
    found = {"facts": facts.model_dump(mode="json"), "preflight": {"environment": ENVIRONMENT.model_dump(mode="json")}}
    assert jobs.advance(job, JobState.PACKAGING, iteration_seconds=0.01, **found)
    assert jobs.package(job)
    return job


@dataclass
class Host:
    """An enrolled worker with its private key."""

    worker: Worker
    private_key: bytes


def a_host(owner: User, name: str = "rig") -> Host:
    private, public = new_signing_keys()
    code, _ = workers.new_code(owner)
    return Host(workers.enrol(code, name, public), private)


@dataclass
class Run:
    """A lease whose keys were given out, and the executable that holds them."""

    lease: Lease
    token: str
    host: Host
    executable: Executable


def key_request(lease: Lease) -> tuple[KeyRequest, bytes, bytes]:
    """The request with the private halves of its two keys."""
    hpke_private, hpke_public = new_hpke_keys()
    signing = new_signing_keys()[0]
    request = KeyRequest(
        lease=lease.pk, hpke_key=hpke_public, signing_key=public_signing_key(signing), environment=ENVIRONMENT
    )
    return request, hpke_private, signing


def a_run(job: Job, host: Host, **kwargs: Any) -> Run:
    """The job leased to the host, and training."""
    granted = marketplace.lease(host.worker)
    assert granted is not None
    lease, token = granted
    assert lease.job_id == job.pk
    request, hpke_private, signing = key_request(lease)
    sealed = marketplace.release_keys(lease, request=request)
    keys = open_release(hpke_private, manifest=Manifest.model_validate(lease.manifest), sealed=sealed)
    lease = Lease.objects.select_related("job", "worker").get(pk=lease.pk)
    executable = Executable(lease.terms, run_key=keys.run_key, signing_key=signing, **kwargs)
    return Run(lease, token, host, executable)


def a_state(size: int = 128) -> bytes:
    """A file of `size` bytes that is laid out as safetensors."""
    for width in range(size):
        header = json.dumps({"w": {"dtype": "U8", "shape": [width], "data_offsets": [0, width]}}).encode()
        padded = header + b" " * max(0, size - 8 - width - len(header))
        if 8 + len(padded) + width == size:
            return struct.pack("<Q", len(padded)) + padded + bytes(width)
    raise ValueError(f"no state fits {size} bytes")


def a_true_state(index: int) -> bytes:
    """A state file with a tree of its own: one parameter, which is the leaf's number."""
    metadata = {"structure": json.dumps({"step": index}), "parameters": json.dumps(["w"])}
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"__metadata__": metadata, "w": entry}).ljust(256).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", index)


def a_true_digest(index: int) -> str:
    """The digest of that state."""
    with tempfile.TemporaryFile() as file:
        file.write(a_true_state(index))
        file.flush()
        return merkle.root_of_hashes(statefile.tree(file)).hex()


def a_challenge(run: Run) -> Challenge:
    """The log is complete, and leaves 0 and 2 are asked for."""
    for frame in run.executable.frames:
        telemetry.ingest(run.host.worker.pk, frame)
    telemetry.finish(run.host.worker.pk, run.executable.fin())
    return Challenge.objects.create(
        lease=run.lease,
        round=1,
        nonce="00" * 32,
        indices=[0, 2],
        wanted=[0, 2],
        segments=[0],
        evaluations=[],
        issued_at=clock.now(),
        deadline=clock.after(60),
    )
