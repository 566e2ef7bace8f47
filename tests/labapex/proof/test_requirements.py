"""A proof names the packages that its script ran with, and a verifier hears where his are others."""

from __future__ import annotations

import importlib.metadata
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from labapex.cli import proofs
from labapex.errors import MalformedInput, Tampered
from labapex.proof import folder
from labapex.proof.folder import Proof
from labapex.protocol.canonical import digest
from labapex.protocol.requirements import Lock, Wheel

VECTOR = Path(__file__).parents[2] / "vectors" / "recorded"


def wheel(name: str, version: str) -> Wheel:
    file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    return Wheel(name=name, version=version, file=file, sha256="ab" * 32, size=1)


HERE = importlib.metadata.version("numpy")
LOCK = Lock(python="3.11", wheels=(wheel("nowhere-here", "1.0"), wheel("numpy", HERE), wheel("pydantic", "0.1")))


def stored(tmp_path: Path, promised: Lock, shown: Lock) -> Path:
    """A proof folder whose contract promises one lock and that holds another."""
    shutil.copytree(VECTOR, tmp_path / "from")
    proof = folder.read(tmp_path / "from")
    contract = proof.contract.model_copy(update={"requirements": digest(promised)})
    made = folder.build(
        origin="recorded",
        contract=contract,
        leaves=proof.leaves,
        losses=proof.losses,
        times=proof.times,
        files=proof.files,
        code=[folder.code_text(proof, part) or b"" for part in proof.files.code],
        requirements=shown,
        environment=proof.environment,
        states={index: proof.state_path(index) for index in proof.states},
        weights=proof.root / folder.WEIGHTS,
    )
    folder.store(*made, tmp_path / "proof")
    return tmp_path / "proof"


def test_a_proof_brings_the_lock_that_its_contract_promises(tmp_path: Path) -> None:
    proof = folder.read(stored(tmp_path, LOCK, LOCK))
    assert proof.requirements == LOCK
    assert proof.contract.requirements == digest(LOCK)


@pytest.mark.parametrize("shown", [Lock(), Lock(python="3.11", wheels=LOCK.wheels[:1])], ids=["none", "another"])
def test_a_proof_with_another_lock_than_its_contract_promises_is_refused(tmp_path: Path, shown: Lock) -> None:
    with pytest.raises(Tampered, match=r"requirements.json does not hold the packages of the contract"):
        folder.read(stored(tmp_path, LOCK, shown))


def test_a_lock_that_is_not_exact_is_refused(tmp_path: Path) -> None:
    loose = LOCK.model_copy(update={"wheels": tuple(reversed(LOCK.wheels))})
    with pytest.raises(MalformedInput, match="in the order of their names"):
        folder.read(stored(tmp_path, loose, loose))


def test_a_job_without_requirements_has_no_such_file(tmp_path: Path) -> None:
    root = stored(tmp_path, Lock(), Lock())
    assert not (root / "requirements.json").exists()
    assert folder.read(root).requirements == Lock()


def test_a_verifier_hears_which_of_his_packages_are_others(capsys: pytest.CaptureFixture[str]) -> None:
    proof: Proof = replace(folder.read(VECTOR), requirements=LOCK)
    proofs._tell_packages(proof)
    said = " ".join(capsys.readouterr().err.split())
    assert "nowhere-here 1.0 (here none)" in said
    assert f"pydantic 0.1 (here {importlib.metadata.version('pydantic')})" in said
    assert "numpy" not in said
