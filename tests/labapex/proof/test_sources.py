"""Where a verifier's files come from: models that a run started from are asked for, and must be the contract's."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from tests.labapex.proof.forge import Forgery

from labapex.errors import MalformedInput, Tampered, UsageError
from labapex.proof import folder, sources
from labapex.proof.folder import Proof, parts_digest
from labapex.protocol.contract import Parent
from labapex.protocol.spec import Part

MODEL = b"weights of a certified model"
PATH = "parents/0.safetensors"


@pytest.fixture
def forged(recorded: Path, tmp_path: Path) -> Forgery:
    shutil.copytree(recorded / "job" / "data", tmp_path / "data")
    return Forgery.of(folder.read(recorded / "proof"))


def started_from(forged: Forgery, tmp_path: Path, *, listed: bool = True) -> Proof:
    """The proof of a run that started from a model."""
    digest = hashlib.sha256(MODEL).hexdigest()
    parent = Parent(path=PATH, weights=digest, certificate="c" * 64, success=0.5)
    data = (*forged.files.data, *([Part(path=PATH, digest=digest, size=len(MODEL))] if listed else []))
    forged.files = forged.files.model_copy(update={"data": data})
    forged.terms(parents=(parent,), data=parts_digest(data))
    forged.rechain()
    return folder.read(forged.write(tmp_path / "proof"))


def put(place: Path, content: bytes = MODEL) -> None:
    (place / "parents").mkdir()
    (place / PATH).write_bytes(content)


def test_a_model_beside_the_proof_is_taken_into_the_run(forged: Forgery, tmp_path: Path) -> None:
    proof = started_from(forged, tmp_path)
    put(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    sources.match(proof, None, tmp_path / "data").fill(work)
    assert (work / PATH).read_bytes() == MODEL
    assert (work / "data" / "points.bin").exists()


def test_without_the_model_it_is_said_which_file_is_needed_and_where(forged: Forgery, tmp_path: Path) -> None:
    proof = started_from(forged, tmp_path)
    with pytest.raises(UsageError, match=rf"SHA-256 {hashlib.sha256(MODEL).hexdigest()}, at {PATH}"):
        sources.match(proof, None, tmp_path / "data")


def test_another_model_of_the_same_size_is_refused(forged: Forgery, tmp_path: Path) -> None:
    proof = started_from(forged, tmp_path)
    put(tmp_path, MODEL[::-1])
    (tmp_path / "work").mkdir()
    with pytest.raises(Tampered, match=PATH):
        sources.match(proof, None, tmp_path / "data").fill(tmp_path / "work")


def test_a_contract_that_names_a_model_which_is_not_among_the_data_is_refused(forged: Forgery, tmp_path: Path) -> None:
    proof = started_from(forged, tmp_path, listed=False)
    with pytest.raises(MalformedInput, match="starts from is not among the data"):
        sources.match(proof, None, tmp_path / "data")
