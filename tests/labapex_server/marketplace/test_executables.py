from __future__ import annotations

import hashlib
import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.labapex_server.gateway.stage import Host, a_host, a_run, queued_job
from tests.labapex_server.telemetry.executable import a_contract

from labapex import executable
from labapex.protocol.api import JobRequest
from labapex.protocol.manifest import Manifest
from labapex.protocol.spec import Bundle, JobSpec, Part
from labapex.protocol.states import JobState
from labapex_server.accounts.models import User
from labapex_server.jobs import blobs
from labapex_server.jobs import services as jobs
from labapex_server.lib import clock, trust
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.executables import executable_parts, keep_every, runner_of
from labapex_server.marketplace.models import Lease


@given(epochs=st.integers(1, 50), state_bytes=st.integers(0, 10**9), gigabytes=st.floats(1e-3, 100))
def test_the_kept_states_fit_into_what_a_host_gives_and_all_are_kept_where_they_do(
    epochs: int, state_bytes: int, gigabytes: float
) -> None:
    terms = a_contract(epochs=epochs)
    terms = terms.model_copy(update={"facts": terms.facts.model_copy(update={"state_bytes": state_bytes})})
    leaves, room = len(terms.leaf_steps()), gigabytes * 1e9
    every = keep_every(terms, gigabytes)
    kept = len(terms.model_copy(update={"keep_every": every}).kept_leaves())
    assert (every == 1) == (leaves * state_bytes <= room)
    assert (kept - 2) * state_bytes <= room, "the first and the last are kept in any case"


def _lease_of(owner: User, files: dict[str, bytes], name: str, to: Host) -> Lease:
    """The lease of a job of these files, which are uploaded where they were not."""
    parts = {}
    for path, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        blobs.store(owner, digest, io.BytesIO(content), size=len(content))
        parts[path] = Part(path=path, digest=digest, size=len(content))
    spec = JobSpec.model_validate({"name": name, "script": "train.py", "data": "data", "epochs": 1, "budget": "1"})
    data = tuple(part for path, part in parts.items() if path != "train.py")
    job = jobs.submit(owner, request=JobRequest(spec=spec, bundle=Bundle(code=(parts["train.py"],), data=data)))
    facts = a_contract().facts.model_dump(mode="json")
    assert jobs.advance(job, JobState.PACKAGING, iteration_seconds=0.01, facts=facts)
    assert jobs.package(job)
    granted = marketplace.lease(to.worker)
    assert granted is not None
    return granted[0]


def _on_disk(home: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in home.rglob("*") if path.is_file()}


@pytest.mark.django_db
def test_many_sections_are_streamed_from_any_edge_and_nothing_is_copied_for_a_job(
    rig: Host, host: User, researcher: User, home: Path, tmp_path: Path
) -> None:
    files = {"train.py": b"print('training')", **{f"data/{n}.bin": bytes([n]) * (997 * n) for n in range(40)}}
    first = _lease_of(researcher, files, "first", rig)
    stored = _on_disk(home)
    whole = b"".join(executable_parts(first).stream())
    edges = list(itertools.accumulate(executable_parts(first).sizes, initial=0))
    assert len(edges) > len(files)
    for edge in edges:
        for offset in {max(0, edge - 1), edge, min(edge + 1, len(whole))}:
            assert b"".join(executable_parts(first).stream(offset, 1 << 16)) == whole[offset:]

    (tmp_path / "executable").write_bytes(whole)
    executable.verify(tmp_path / "executable", trust.current(), rig.worker.pk, clock.now().timestamp())

    second = _lease_of(researcher, files, "second", a_host(host, "second"))
    again = executable_parts(second)
    assert sum(1 for part in again.parts if isinstance(part, Path)) == len(files) + 2, (
        "sections, bootloader and archive"
    )
    assert b"".join(again.stream()) != whole
    assert _on_disk(home) == stored, "the second job, its executable and its download took no file"


@pytest.mark.django_db
def test_a_lease_keeps_its_runner_when_the_platform_gets_another(
    rig: Host, host: User, researcher: User, settings: Any
) -> None:
    lease = a_run(queued_job(researcher), rig).lease
    before = executable_parts(lease)
    content = b"".join(before.stream())
    bootloader = Path(settings.LABAPEX.runner_dir) / "bootloader"
    bootloader.write_bytes(bootloader.read_bytes() + b"upgraded")
    assert b"".join(executable_parts(lease).stream()) == content
    assert hashlib.sha256(runner_of(lease).read_bytes()).hexdigest() == Manifest.model_validate(lease.manifest).runner
    other = a_run(queued_job(researcher, name="next"), a_host(host, "second")).lease
    assert Manifest.model_validate(other.manifest).runner != Manifest.model_validate(lease.manifest).runner
