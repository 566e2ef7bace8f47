"""Bad proof folders, each refused where the format says, by this implementation and by one that knows the document alone."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.labapex.proof.forge import replayer
from tests.labapex.proof.lab import Lab
from tests.vectors import make, patch
from tests.vectors.independent import reader

from labapex.client import check_verdict
from labapex.errors import MalformedInput, Tampered, UsageError
from labapex.proof import folder, verifier
from labapex.proof.verifier import AuditPolicy, Replay, Replayed
from labapex.protocol.replay import ReplayRequest
from labapex.protocol.verdict import Verdict
from labapex.sealing import public_signing_key

HERE = Path(__file__).parent
VECTORS: list[dict[str, Any]] = json.loads((HERE / "vectors.json").read_text())
STAGES = ("form", "log", "shown", "drawn")


def named(vector: dict[str, Any]) -> str:
    return f"{vector['of']}: {vector['name']}"


def bad(vector: dict[str, Any], good: Path, tmp_path: Path) -> Path:
    root = Path(shutil.copytree(good / vector["of"], tmp_path / "proof"))
    patch.apply(root, vector["edits"])
    return root


def verify(root: Path, replay: Replay) -> Verdict:
    return verifier.verify(folder.read(root), policy=AuditPolicy(), random=random.SystemRandom(), replay=replay)


def never(request: ReplayRequest) -> Replayed:
    raise AssertionError("there is nothing to replay")


def stage(root: Path) -> str | None:
    """How far the independent reader gets; None: to the end."""
    try:
        reader.read(root)
    except reader.Refused as refused:
        return refused.stage
    return None


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["stage"] in STAGES], ids=named)
def test_a_bad_folder_is_refused_before_anything_runs(vector: dict[str, Any], tmp_path: Path) -> None:
    root = bad(vector, HERE, tmp_path)
    if "rule" in vector:
        verdict = verify(root, never)
        assert (verdict.verdict, verdict.deciding_rule) == ("rejected", vector["rule"]), verdict.reason
        assert vector["says"] in verdict.reason
        return
    if vector["stage"] != "form":
        folder.read(root)  # whole so far
    with pytest.raises((MalformedInput, UsageError), match=re.escape(vector["says"])):
        verify(root, never)


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["stage"] in STAGES], ids=named)
def test_one_who_knows_the_document_alone_refuses_it_at_the_same_stage(vector: dict[str, Any], tmp_path: Path) -> None:
    """But for what a nonce gives, which the independent reader does not draw again."""
    found = stage(bad(vector, HERE, tmp_path))
    assert found == (None if vector["stage"] == "drawn" else vector["stage"])


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["stage"] == "replay"], ids=named)
def test_a_lie_that_fits_all_digests_is_found_by_the_replay(
    vector: dict[str, Any], lab: Lab, fresh: Path, tmp_path: Path
) -> None:
    root = bad(vector, fresh, tmp_path)
    assert stage(root) == ("shown" if vector["rule"] == "opening" else None)
    verdict = verify(root, replayer(lab, folder.read(root), make.JOB / "data", tmp_path / "scratch"))
    assert (verdict.verdict, verdict.deciding_rule) == ("rejected", vector["rule"]), verdict.reason


@pytest.mark.parametrize("name", list(make.TERMS))
def test_a_good_folder_is_whole_for_both_readers(name: str) -> None:
    assert stage(HERE / name) is None
    assert folder.read(HERE / name).contract.epochs == 2


@pytest.mark.parametrize("name", list(make.TERMS))
def test_a_good_folder_is_verified_where_it_was_made(name: str, lab: Lab, fresh: Path, tmp_path: Path) -> None:
    root = fresh / name
    verdict = verify(root, replayer(lab, folder.read(root), make.JOB / "data", tmp_path))
    assert verdict.verdict == "verified", verdict.reason


def test_the_folders_in_the_tree_are_those_that_a_host_of_their_class_makes(fresh: Path) -> None:
    """Else: python -m tests.vectors.make"""
    if folder.read(HERE / "recorded").environment != folder.read(fresh / "recorded").environment:
        pytest.skip("this host is of another class than the one that made the folders")
    for name in make.TERMS:
        paths = [sorted(p.relative_to(each) for p in (each / name).rglob("*")) for each in (HERE, fresh)]
        assert paths[0] == paths[1]
        files = [path for path in paths[0] if (HERE / path).is_file()]
        assert [p for p in files if (HERE / p).read_bytes() != (fresh / p).read_bytes()] == []


def test_the_platforms_verdict_is_signed_by_the_key_for_vectors() -> None:
    signed = folder.read(HERE / "platform").verdict
    assert signed is not None
    assert check_verdict(signed, public_signing_key(make.KEY)).verdict == "verified"
    with pytest.raises(Tampered):
        check_verdict(signed, public_signing_key(bytes(32)))


def test_each_stage_and_each_good_folder_has_bad_ones() -> None:
    assert {v["stage"] for v in VECTORS} == {*STAGES, "replay"}
    assert {v["of"] for v in VECTORS} == set(make.TERMS)
    assert len({named(v) for v in VECTORS}) == len(VECTORS)
