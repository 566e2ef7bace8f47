"""A good folder is changed at random by one who owns all keys and makes every digest above it fit: it is never verified.

All segments are replayed, so nothing hides behind chance. What a change may alter without being a lie stands in `FREE`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.labapex.proof.forge import replayer
from tests.labapex.proof.lab import Lab
from tests.vectors import make, patch
from tests.vectors.independent import reader

from labapex.client import check_verdict
from labapex.errors import LabApexError
from labapex.proof import folder, sources, verifier
from labapex.proof.verifier import AuditPolicy, Replayed
from labapex.protocol.replay import ReplayRequest
from labapex.sealing import public_signing_key

HERE = Path(__file__).parent
FIT = ["chain", "manifest"]
KEY = public_signing_key(make.KEY)
OVER_FOLDERS = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
Outcome = Callable[[Path], str]

# Fields that say nothing about the training: whose run it was, what is only shown, what was kept, and claims that gain nothing
# where all is equal to the last bit. There is one format yet, and data's digest says more than its size.
FREE = {
    ("files.json", "data", 0, "size"),
    ("contract.json", "job"),
    ("contract.json", "lease"),
    ("contract.json", "keep_every"),
    ("contract.json", "upload_every"),
    ("contract.json", "facts", "has_loader"),
    ("contract.json", "facts", "parameters"),
    ("contract.json", "facts", "state_bytes"),
    *(("environment.json", name) for name in ("capability", "device", "python", "threads", "torch")),
}


@pytest.fixture(scope="session")
def outcome(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """ "verified", the rule that decided, or the name of the error.

    A report follows from the request (which names the sources by their digests) and from the states: what was replayed once is
    remembered."""
    scratch, known = tmp_path_factory.mktemp("replay") / "scratch", dict[str, Replayed]()

    def judge(root: Path) -> str:
        try:
            proof = folder.read(root)
            sources.match(proof, None, make.JOB / "data")
            if proof.verdict is not None:
                check_verdict(proof.verdict, KEY)

            def replay(request: ReplayRequest) -> Replayed:
                states = [proof.entries[f"states/{index}.safetensors"].digest for index in sorted(request.digests)]
                key = hashlib.sha256(json.dumps([request.model_dump_json(), states]).encode()).hexdigest()
                if key not in known:
                    known[key] = replayer(lab, proof, make.JOB / "data", scratch)(request)
                return known[key]

            policy = AuditPolicy(pev_percent=100)  # nothing is drawn where all is taken
            verdict = verifier.verify(proof, policy=policy, random=random.Random(0), replay=replay)
        except LabApexError as error:
            return type(error).__name__
        return verdict.deciding_rule or "verified"

    return judge


@contextmanager
def copied(good: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        yield Path(shutil.copytree(good, Path(place) / "proof"))


def differs(root: Path, good: Path) -> bool:
    """False where the digests were made to fit by undoing the change."""
    return (root / "manifest.json").read_bytes() != (good / "manifest.json").read_bytes()


def scalars(document: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all scalars of a document."""
    if not isinstance(document, dict | list):
        yield way
        return
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in pairs:
        yield from scalars(value, (*way, key))


def other(value: Any, data: st.DataObject) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        if len(value) == 64:
            return f"{int(value, 16) ^ 1 << data.draw(st.integers(0, 255), label='bit'):064x}"
        return value[:-1] + ("1" if value[-1:] != "1" else "2")
    if value is None:
        return 1
    near = [value + 1, value * 2, 0, value * (1 + 1e-5)] if isinstance(value, float) else [value + 1, value * 2, 0]
    return data.draw(st.sampled_from([each for each in near if each != value]), label="value")


def test_the_good_folders_are_verified(fresh: Path, outcome: Outcome) -> None:
    assert [outcome(fresh / name) for name in make.TERMS] == ["verified"] * len(make.TERMS)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(make.TERMS)), data=st.data())
def test_a_flipped_byte_in_any_file_is_refused_by_both_readers(name: str, data: st.DataObject) -> None:
    with copied(HERE / name) as root:
        path = data.draw(st.sampled_from(sorted(p for p in root.rglob("*") if p.is_file())), label="file")
        at = data.draw(st.integers(0, path.stat().st_size - 1), label="byte")
        patch.apply(root, [{"op": "flip", "path": str(path), "at": at, "mask": data.draw(st.integers(1, 255))}])
        with pytest.raises(LabApexError):
            folder.read(root)
        with pytest.raises(reader.Refused, match="form"):
            reader.read(root)


@settings(max_examples=80, **OVER_FOLDERS)  # type: ignore[arg-type]
@given(name=st.sampled_from(["recorded", "sparse"]), data=st.data())
def test_a_field_of_any_document_cannot_change(name: str, data: st.DataObject, fresh: Path, outcome: Outcome) -> None:
    """Leaves are drawn most often; what the contract says takes a replay each time."""
    with copied(fresh / name) as root:
        documents = ["leaves.jsonl"] * 4 + ["contract.json", "files.json", "environment.json"]
        path = data.draw(st.sampled_from(documents), label="document")
        content = patch.load(root, path)
        way = data.draw(st.sampled_from(sorted(scalars(content), key=str)), label="field")
        closed = path == "leaves.jsonl" and way[1] == "size" and not (root / f"states/{way[0]}.safetensors").exists()
        assume((path, *way) not in FREE and not closed)
        value = content
        for step in way:
            value = value[step]
        changed = {"op": "set", "path": path, "at": list(way), "value": other(value, data)}
        fit = ["files", *FIT] if path == "files.json" else FIT
        patch.apply(root, [changed, {"fit": data.draw(st.sampled_from([fit, ["manifest"]]), label="fit")}])
        assume(differs(root, fresh / name))
        assert outcome(root) != "verified"


@settings(max_examples=60, **OVER_FOLDERS)  # type: ignore[arg-type]
@given(data=st.data())
def test_nothing_that_a_platform_says_can_change(data: st.DataObject, fresh: Path, outcome: Outcome) -> None:
    """Under its key, whatever its name. The challenge is bound by its nonces: others that give the same say the same."""
    with copied(fresh / "platform") as root:
        path = data.draw(st.sampled_from(["verdict.json", "challenge.json", "contract.json", "leaves.jsonl"]))
        content = patch.load(root, path)
        drawn = ("chunk", "indices", "segments", "evaluations")
        looked_at = {"challenge.json": drawn, "verdict.json": ("verdict", "signature")}.get(path, content)
        ways = [way for way in scalars(content) if path == "leaves.jsonl" or way[0] in looked_at]
        way = data.draw(st.sampled_from(sorted(ways, key=str)), label="field")
        value = content
        for step in way:
            value = value[step]
        changed = {"op": "set", "path": path, "at": list(way), "value": other(value, data)}
        fit = ["manifest"] if path.endswith(("verdict.json", "challenge.json")) else ["chain", "verdict", "manifest"]
        patch.apply(root, [changed, {"fit": fit}])
        assume(differs(root, fresh / "platform"))
        assert outcome(root) != "verified"


@settings(max_examples=100, **OVER_FOLDERS)  # type: ignore[arg-type]
@given(name=st.sampled_from(["recorded", "sparse"]), at=st.integers(0, 47), bit=st.integers(0, 7))
def test_no_bit_of_a_loss_can_change(name: str, at: int, bit: int, fresh: Path, outcome: Outcome) -> None:
    with copied(fresh / name) as root:
        patch.apply(root, [{"op": "flip", "path": "losses.f64", "at": at, "mask": 1 << bit}, {"fit": FIT}])
        assert outcome(root) == "point-loss"


@settings(max_examples=6, **OVER_FOLDERS)  # type: ignore[arg-type]
@given(name=st.sampled_from(["recorded", "sparse"]), data=st.data())
def test_no_bit_of_a_tensor_can_change(name: str, data: st.DataObject, fresh: Path, outcome: Outcome) -> None:
    with copied(fresh / name) as root:
        path = data.draw(st.sampled_from(sorted((root / "states").iterdir())), label="state")
        (length,) = struct.unpack("<Q", path.read_bytes()[:8])
        at = data.draw(st.integers(8 + length, path.stat().st_size - 1), label="byte")
        flip = {"op": "flip", "path": str(path), "at": at, "mask": 1 << data.draw(st.integers(0, 7), label="bit")}
        patch.apply(root, [flip, {"fit": ["states", *FIT]}])
        assert outcome(root) != "verified"


@settings(max_examples=60, **OVER_FOLDERS)  # type: ignore[arg-type]
@given(
    name=st.sampled_from(["recorded", "sparse"]),
    how=st.sampled_from(["remove", "double", "swap"]),
    places=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    renumbered=st.booleans(),
)
def test_leaves_cannot_be_dropped_doubled_or_exchanged(
    name: str, how: str, places: tuple[int, int], renumbered: bool, fresh: Path, outcome: Outcome
) -> None:
    """Nor under the numbers and steps that are due, each with the state that lies there."""
    assume(how != "swap" or places[0] != places[1])
    with copied(fresh / name) as root:
        due = [leaf["step"] for leaf in patch.load(root, "leaves.jsonl")]
        patch.apply(root, [{"op": how, "path": "leaves.jsonl", "at": [places[0]], "with": places[1]}])
        if renumbered:
            leaves = patch.load(root, "leaves.jsonl")
            for index, (leaf, step) in enumerate(zip(leaves, due, strict=False)):
                leaf |= {"index": index, "step": step}
            patch.save(root, "leaves.jsonl", leaves)
        patch.apply(root, [{"fit": ["states", *FIT]}])
        assert outcome(root) != "verified"


@settings(max_examples=60, **OVER_FOLDERS)  # type: ignore[arg-type]
@given(
    name=st.sampled_from(["recorded", "sparse"]),
    path=st.sampled_from(
        ["chunks.bin", "states/1.safetensors", "states/9.safetensors", "challenge.json", "verdict.json", ""]
    ),
    content=st.binary(max_size=40),
)
def test_no_file_can_be_added(name: str, path: str, content: bytes, fresh: Path, outcome: Outcome) -> None:
    with copied(fresh / name) as root:
        added = root / (path or f"code/{hashlib.sha256(content).hexdigest()}")
        added.write_bytes(content)
        patch.apply(root, [{"fit": ["manifest"]}])
        assert outcome(root) in ("MalformedInput", "Tampered")


def spaced(root: Path) -> None:
    """Another header of a state file that says the same."""
    path = root / "states" / "3.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + length]), indent=1).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    patch.apply(root, [{"fit": ["states", *FIT]}])


def retimed(root: Path) -> None:
    """A prover's clock is his own."""
    os.truncate(root / "times.f64", 16)
    patch.apply(root, [{"op": "set", "path": "times.f64", "at": [0], "value": "inf"}, {"fit": ["manifest"]}])


def of_another_class(root: Path) -> None:
    """Where all is equal to the last bit a false class gains nothing."""
    patch.apply(
        root, [{"op": "set", "path": "environment.json", "at": ["device"], "value": "x"}, {"fit": ["manifest"]}]
    )


@pytest.mark.parametrize("change", [spaced, retimed, of_another_class], ids=lambda each: each.__name__)
def test_a_change_without_meaning_is_none(change: Callable[[Path], None], fresh: Path, outcome: Outcome) -> None:
    with copied(fresh / "recorded") as root:
        before = (root / "manifest.json").read_bytes()
        change(root)
        assert (root / "manifest.json").read_bytes() != before
        assert outcome(root) == "verified"
