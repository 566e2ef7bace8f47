"""A job starts from a model only where the platform's own log vouches for the very file."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings
from tests.browser.stage import Story
from tests.labapex_server.scenes import request, upload

from labapex.protocol.api import JobRequest
from labapex.protocol.canonical import digest
from labapex.protocol.states import JobState
from labapex_server.accounts.models import User
from labapex_server.jobs import blobs
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib.errors import Refused
from labapex_server.marketplace import executables
from labapex_server.transparency import certificates, starts
from labapex_server.verification import judgement

pytestmark = pytest.mark.django_db

WEIGHTS = b"the weights of a verified job"
MODEL = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def verified(researcher: User, host: User) -> Callable[..., Job]:
    """A verified job whose weights lie where the platform keeps them."""

    def made(owner: User = researcher, began: float = 1_790_000_000, **judged: Any) -> Job:
        story = Story(owner=owner, host=host, began=began, epochs=2)
        story.submitted().queued().running(worker=f"rig-{began}").trained(100).challenged()
        story.judged(**({"weights": MODEL} | judged))
        settings.LABAPEX.private_folder("leases", str(story.lease.pk))
        judgement.weights_path(story.lease, settings.LABAPEX.home).write_bytes(WEIGHTS)
        return Job.objects.get(pk=story.job.pk)

    return made


def submit(owner: User, *origins: object, **spec: Any) -> Job:
    return starts.submit(owner, request=request(owner, start_from=tuple(map(str, origins)), **spec))


def certificate(job: Job) -> str:
    record = certificates.record_of(job)
    assert record is not None
    return record.digest


def test_an_own_verified_jobs_weights_travel_with_the_data_under_the_contract(
    researcher: User, verified: Callable[..., Job]
) -> None:
    parent = verified()
    job = submit(researcher, parent.pk, data="data")
    (origin,) = job.origins
    assert (origin.path, origin.weights, origin.certificate) == (
        "parents/0.safetensors",
        MODEL,
        certificate(parent),
    )
    assert [part.path for part in job.files.data] == ["data/digits.bin", "parents/0.safetensors"]
    blob = blobs.find(researcher, MODEL)
    assert blob is not None
    target = settings.LABAPEX.private_folder("tried") / "plain"
    blobs.open_into(blob, target)
    assert target.read_bytes() == WEIGHTS
    job.facts = {
        "loop": "train.py:1", "iterations_per_epoch": 7, "has_loader": True, "gradients_are_state": False, "parameters": 1,
        "state_bytes": 1,
    }  # fmt: skip
    terms = executables.contract(job, lease=uuid4(), seed="5e" * 32)
    assert terms.parents == (origin,)
    assert terms.data == digest([part.model_dump(mode="json") for part in job.files.data])


def test_success_of_the_parents_chain_is_what_its_certificate_states(
    researcher: User, verified: Callable[..., Job]
) -> None:
    (origin,) = submit(researcher, verified().pk).origins
    assert origin.success == pytest.approx(1 - 0.9**4)


def test_a_strangers_model_is_a_start_for_whoever_has_its_file(
    other_researcher: User, verified: Callable[..., Job]
) -> None:
    named = certificate(verified())
    with pytest.raises(Refused, match=f"SHA-256 {MODEL}, which you did not upload"):
        submit(other_researcher, named)
    upload(other_researcher, b"other weights", "model.safetensors")
    with pytest.raises(Refused, match="upload that very file"):
        submit(other_researcher, named)
    blobs.store(other_researcher, MODEL, io.BytesIO(WEIGHTS), size=len(WEIGHTS))
    assert submit(other_researcher, named).origins[0].weights == MODEL


def test_several_parents_have_a_place_each(researcher: User, verified: Callable[..., Job]) -> None:
    parent = verified()
    job = submit(researcher, parent.pk, certificate(parent))
    assert [origin.path for origin in job.origins] == ["parents/0.safetensors", "parents/1.safetensors"]


def test_what_is_not_proven_is_no_start(researcher: User, other_researcher: User, verified: Callable[..., Job]) -> None:
    foreign = verified()
    rejected = verified(other_researcher, 1_790_000_001, failing="replay")
    empty = verified(other_researcher, 1_790_000_002, weights=None)
    running = Story(owner=other_researcher, host=researcher, began=1_790_000_003, epochs=2).submitted().queued()
    for origin, why in {
        foreign.pk: "you have no job",
        uuid4(): "you have no job",
        rejected.pk: "is rejected; only the weights of a verified job",
        empty.pk: "left no weights",
        running.job.pk: "is queued; only the weights of a verified job",
        "00" * 32: "log holds no certificate",
        "results/old": "is neither a job's id nor the digest of a certificate",
    }.items():
        with pytest.raises(Refused, match=f"start_from: .*{why}"):
            submit(other_researcher, origin)
    assert not Job.objects.filter(owner=other_researcher, state=JobState.SUBMITTED).exists()


def test_the_place_of_the_models_is_not_for_other_files(researcher: User, verified: Callable[..., Job]) -> None:
    parent = verified()
    asked = request(researcher, start_from=(str(parent.pk),), data="parents")
    data = (upload(researcher, b"x", "parents/1.safetensors"),)
    wrong = JobRequest(spec=asked.spec, bundle=asked.bundle.model_copy(update={"data": data}))
    with pytest.raises(Refused, match=r"parents/1\.safetensors lies where the models come"):
        starts.submit(researcher, request=wrong)


def test_the_same_key_gives_the_same_warm_start(researcher: User, verified: Callable[..., Job]) -> None:
    asked = request(researcher, start_from=(str(verified().pk),))
    first = starts.submit(researcher, request=asked, idempotency_key="k")
    assert starts.submit(researcher, request=asked, idempotency_key="k") == first


def test_the_certificate_of_a_warm_start_names_its_parent_and_multiplies(
    researcher: User, host: User, verified: Callable[..., Job], client: Any
) -> None:
    parent = verified()
    story = Story(owner=researcher, host=host, began=1_790_000_010, epochs=2)
    story.submitted().queued().running(worker="warm")
    origins = submit(researcher, parent.pk).parents
    story.lease.contract["parents"] = origins
    story.lease.save()
    story.trained(100).challenged().judged(weights="77" * 32)
    job = Job.objects.get(pk=story.job.pk)
    record = certificates.record_of(job)
    assert record is not None
    stated = certificates.statement(record).predicate
    assert stated.parents == (certificate(parent),)
    assert stated.origin.success == pytest.approx((1 - 0.9**4) ** 2)
    page = client.get(f"/transparency/claims/{'77' * 32}/").content.decode()
    assert stated.origin.formula in page
    (link,) = re.findall(rf'href="(/transparency/\?model={certificate(parent)})"', page)
    assert f'href="/transparency/claims/{MODEL}/"' in client.get(link).content.decode()


def test_jobs_are_never_submitted_with_a_start_that_was_not_looked_up(researcher: User) -> None:
    with pytest.raises(ValueError, match="must be found"):
        jobs.submit(researcher, request=request(researcher, start_from=("00" * 32,)))
