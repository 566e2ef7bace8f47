"""pip is asked for real, of a folder of wheels made here: what it finds is kept and exact, what it cannot find is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests import wheels
from tests.labapex_server.scenes import stand_in, submitted

from labapex.errors import LabApexError
from labapex.protocol.canonical import digest
from labapex.protocol.requirements import Lock, Package
from labapex.protocol.states import Fault, JobState
from labapex_server.accounts.models import User
from labapex_server.jobs import packages
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.marketplace import executables
from labapex_server.verification import services as verification

pytestmark = pytest.mark.django_db


def nothing() -> None:
    """A beat that is always fine."""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the operator's pip looks in, and nowhere else."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def resolved(*requirements: str) -> Lock:
    return packages.resolve(requirements, nothing)


def test_a_lock_is_exact_and_holds_what_is_needed_but_not_what_the_hosts_have(index: Path) -> None:
    wheels.make(index, "alpha", "1.0", requires=["beta>=1", "torch>=2", "numpy"])
    wheels.make(index, "beta", "1.0")
    newest = wheels.make(index, "beta", "1.1")
    wheels.make(index, "torch", "99.0")
    lock = resolved("alpha", "beta>=1")
    assert [str(wheel) for wheel in lock.wheels] == ["alpha 1.0", "beta 1.1"]
    assert lock.wheels[1] == wheels.entry(newest)
    given = {package.name: package.version for package in lock.given}
    assert given["torch"] != "99.0"
    assert {"numpy", "safetensors", "sympy"} <= set(given)
    assert packages.path(lock.wheels[1]).read_bytes() == newest.read_bytes()
    assert resolved("beta>=1", "alpha") == lock


def test_torch_itself_is_looked_at_and_not_installed(index: Path) -> None:
    lock = resolved("torch>=2")
    assert lock.wheels == ()
    assert digest(lock) != digest(Lock())


def test_an_extra_of_what_is_given_brings_what_the_extra_needs(index: Path) -> None:
    wheels.make(index, "tqdm", "4.0")
    assert [str(wheel) for wheel in resolved("fsspec[tqdm]").wheels] == ["tqdm 4.0"]


@pytest.mark.parametrize(
    ("requirements", "reason"),
    [
        (("torch<2",), "the hosts have torch"),
        (("numpy<1",), "the hosts have numpy"),
        (("old",), "old 1.0 depends on torch<2"),
        (("beta<1", "alpha"), "satisfies the requirement beta<1"),
        (("nowhere",), "No matching distribution found for nowhere"),
        (("source",), "No matching distribution found for source"),
    ],
)
def test_requirements_that_cannot_be_met_are_told_in_pips_words_with_what_to_do(
    index: Path, requirements: tuple[str, ...], reason: str
) -> None:
    wheels.make(index, "alpha", "1.0", requires=["beta>=1"])
    wheels.make(index, "beta", "1.0")
    wheels.make(index, "old", "1.0", requires=["torch<2"])
    (index / "source-1.0.tar.gz").write_bytes(b"setup.py would run here")
    with pytest.raises(packages.NotToBeHad) as caught:
        resolved(*requirements)
    said = str(caught.value)
    assert reason in said
    assert "Choose versions that go together" in said
    assert str(index) not in said
    assert "file:" not in said


def test_an_index_that_does_not_answer_is_no_fault_of_the_requirements(
    index: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:secret@127.0.0.1:9/simple")
    with pytest.raises(packages.IndexSilent, match="hand the job in again later") as caught:
        resolved("alpha")
    assert "127.0.0.1" not in str(caught.value), (
        "the client is told of it, and the operator's hosts are not the client's"
    )
    assert "127.0.0.1" in caplog.text
    assert "secret" not in caplog.text


def test_wheels_that_are_too_large_together_are_refused(index: Path, settings: Any) -> None:
    wheels.make(index, "alpha", "1.0", files={"alpha.bin": os.urandom(5000)})
    wheels.make(index, "beta", "1.0", files={"beta.bin": os.urandom(5000)})
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"packages_limit_bytes": 9000})
    with pytest.raises(packages.NotToBeHad, match="more than 9000 bytes"):
        resolved("alpha", "beta")


def test_pip_is_given_its_own_settings_and_no_secret_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABAPEX_DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PIP_CERT", "/a/certificate")
    monkeypatch.setenv("https_proxy", "http://proxy")
    seen = packages._environment(tmp_path)
    assert "secret" not in str(seen)
    assert (seen["PIP_CERT"], seen["https_proxy"]) == ("/a/certificate", "http://proxy")


def test_the_reason_is_pips_without_what_is_about_pip() -> None:
    said = (
        "Processing ./old.whl\nERROR: Cannot install old==1.0 because these have conflicting dependencies.\n\n"
        "The conflict is caused by:\n    old 1.0 depends on torch<2\n"
        "    The user requested (constraint) torch (from file:///home/given/torch-2.0-py3-none-any.whl)\n\n"
        "To fix this you could try to:\n1. loosen\nERROR: ResolutionImpossible: for help visit https://x\n"
    )
    lines = packages.plain(said, [Package(name="torch", version="2.0")]).splitlines()
    assert lines[:-1] == [
        "Cannot install old==1.0 because these have conflicting dependencies.",
        "old 1.0 depends on torch<2",
        "the hosts have torch 2.0",
    ]


# -- a job with requirements -------------------------------------------------------------------------------------------


@pytest.fixture
def child(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(settings, monkeypatch)


def preflight(owner: User, script: str, *requirements: str) -> Job:
    job = submitted(owner, script, requirements=requirements)
    verification.preflight(job, beat=nothing)
    return Job.objects.get(pk=job.pk)


def test_a_preflight_sees_the_packages_and_the_contract_names_them(index: Path, child: None, researcher: User) -> None:
    wheels.make(index, "alpha", "1.0")
    seen = preflight(researcher, "packages", "alpha")
    assert seen.reason == "alpha-1.0.dist-info alpha.py"
    job = preflight(researcher, "fine", "alpha")
    assert job.state == JobState.PACKAGING
    assert jobs.view(job).packages == ("alpha 1.0",)
    terms = executables.contract(job, lease=job.pk, seed="00" * 32)
    assert terms.requirements == digest(job.lock)


def test_requirements_are_locked_once_whatever_the_index_has_later(index: Path, child: None, researcher: User) -> None:
    wheels.make(index, "alpha", "1.0")
    job = submitted(researcher, requirements=("alpha",))
    first = packages.lock(job, nothing)
    wheels.make(index, "alpha", "2.0")
    assert packages.lock(Job.objects.get(pk=job.pk), nothing) == first


def test_a_job_whose_requirements_cannot_be_met_is_refused_and_nothing_is_held(
    index: Path, child: None, researcher: User
) -> None:
    job = preflight(researcher, "fine", "nowhere")
    assert (job.state, job.fault, job.hold) == (JobState.REFUSED, Fault.CLIENT, None)
    assert job.reason.startswith("requirements: Could not find a version")


def test_a_job_whose_wheel_brings_a_torch_of_its_own_is_refused(index: Path, child: None, researcher: User) -> None:
    wheels.make(index, "alpha", "1.0", files={"torch/__init__.py": "raise SystemExit"})
    job = preflight(researcher, "fine", "alpha")
    assert job.state == JobState.REFUSED
    assert "holds the module 'torch', which the hosts bring along" in job.reason


def test_a_job_whose_wheels_the_operator_lost_fails_by_the_platforms_fault(
    index: Path, child: None, researcher: User
) -> None:
    wheels.make(index, "alpha", "1.0")
    job = submitted(researcher, requirements=("alpha",))
    (wheel,) = packages.lock(job, nothing).wheels
    packages.path(wheel).unlink()
    with pytest.raises(LabApexError, match="no longer among the platform's wheels"):
        verification.preflight(job, beat=nothing)
    assert Job.objects.get(pk=job.pk).state == JobState.SUBMITTED
