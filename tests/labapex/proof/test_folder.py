"""A proof folder is whole or it is refused: no byte of it can change without notice, and none of it leads elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.labapex.proof.forge import Forgery

from labapex.errors import LabApexError, MalformedInput, Tampered, UsageError
from labapex.proof import folder, parcel
from labapex.proof.folder import MANIFEST, Entry, Manifest
from labapex.protocol.canonical import canonical

OVER_ONE_COPY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded / "proof", tmp_path / "proof"))


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def edit(root: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change the manifest and spell it canonically again."""
    document = json.loads((root / MANIFEST).read_bytes())
    change(document)
    (root / MANIFEST).write_bytes(canonical(document))


def test_a_recorded_proof_is_read_back_as_it_was_made(recorded: Path) -> None:
    proof = folder.read(recorded / "proof")
    assert [leaf.step for leaf in proof.leaves] == [0, 2, 4, 5, 6, 8, 10]
    assert len(proof.losses) == len(proof.times) == 10
    assert proof.states == set(range(7))
    assert [part.path for part in proof.files.code] == ["net.py", "train.py"]
    assert [part.path for part in proof.files.data] == ["data/points.bin"]
    assert proof.contract.iterations == 10


def test_nothing_in_it_is_open_to_other_users(recorded: Path) -> None:
    assert {path.stat().st_mode & 0o077 for path in files(recorded / "proof")} == {0}


@OVER_ONE_COPY
@given(st.data())
def test_a_changed_byte_anywhere_is_refused(copy: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files(copy)), label="file")
    before = path.read_bytes()
    at = data.draw(st.integers(0, len(before) - 1), label="byte")
    mask = data.draw(st.integers(1, 255), label="mask")
    path.write_bytes(before[:at] + bytes([before[at] ^ mask]) + before[at + 1 :])
    with pytest.raises(LabApexError):
        folder.read(copy)
    path.write_bytes(before)
    folder.read(copy)


@OVER_ONE_COPY
@given(st.data())
def test_a_file_that_was_cut_or_that_grew_is_refused(copy: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files(copy)), label="file")
    before = path.read_bytes()
    cut = data.draw(st.integers(0, len(before) - 1), label="cut")
    path.write_bytes(data.draw(st.sampled_from([before[:cut], before + b"\0", before + b" "])))
    with pytest.raises(LabApexError):
        folder.read(copy)
    path.write_bytes(before)


def test_a_missing_file_is_refused_whichever_it_is(copy: Path) -> None:
    for path in files(copy):
        path.rename(copy.parent / "aside")
        with pytest.raises(LabApexError):
            folder.read(copy)
        (copy.parent / "aside").rename(path)


def test_files_that_nobody_listed_do_not_count(copy: Path) -> None:
    (copy / "states" / "99.safetensors").write_bytes(b"x")
    (copy / "notes.txt").write_text("mine")
    assert folder.read(copy).states == set(range(7))


def test_a_link_is_not_followed_even_to_the_right_bytes(copy: Path, recorded: Path) -> None:
    state = copy / "states" / "2.safetensors"
    state.unlink()
    state.symlink_to(recorded / "proof" / "states" / "2.safetensors")
    with pytest.raises(MalformedInput, match=r"2\.safetensors cannot be read"):
        folder.read(copy)


def test_a_linked_folder_is_not_followed_either(copy: Path, recorded: Path) -> None:
    shutil.rmtree(copy / "states")
    (copy / "states").symlink_to(recorded / "proof" / "states")
    with pytest.raises(MalformedInput, match="cannot be read"):
        folder.read(copy)


def test_a_pipe_does_not_stop_the_reader(copy: Path) -> None:
    (copy / "losses.f64").unlink()
    os.mkfifo(copy / "losses.f64")
    with pytest.raises(MalformedInput, match="not an ordinary file"):
        folder.read(copy)


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", "states/../x", "states/01.safetensors", "code/train.py"])
def test_no_name_leads_out_of_the_folder(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        Entry(path=path, digest="0" * 64, size=0)


def test_a_manifest_that_is_spelled_otherwise_is_refused(copy: Path) -> None:
    document = json.loads((copy / MANIFEST).read_bytes())
    (copy / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(MalformedInput, match="canonical"):
        folder.read(copy)


def test_a_manifest_in_another_order_is_refused(copy: Path) -> None:
    edit(copy, lambda document: document["files"].reverse())  # type: ignore[attr-defined]
    with pytest.raises(MalformedInput, match="order"):
        folder.read(copy)


def test_an_unknown_field_is_refused(copy: Path) -> None:
    edit(copy, lambda document: document.update(trusted=True))
    with pytest.raises(MalformedInput, match="trusted"):
        folder.read(copy)


def test_a_recorded_proof_may_hide_no_state(recorded: Path, tmp_path: Path) -> None:
    forged = Forgery.of(folder.read(recorded / "proof"))
    del forged.states[3]
    with pytest.raises(MalformedInput, match="state of leaf 3 is missing"):
        folder.read(forged.write(tmp_path / "forged"))


def test_files_of_another_run_are_refused_though_each_is_whole(recorded: Path, tmp_path: Path) -> None:
    forged = Forgery.of(folder.read(recorded / "proof"))
    forged.terms(code="1" * 64)
    with pytest.raises(Tampered, match=r"files\.json"):
        folder.read(forged.write(tmp_path / "forged"))


@pytest.mark.parametrize("terms", [{"epochs": 10**9}, {"epochs": 2**24, "checkpoint_every": 2**30}, {"epochs": 10**15}])
def test_terms_that_would_take_for_ever_to_enumerate_are_refused_at_once(
    recorded: Path, tmp_path: Path, terms: dict[str, int]
) -> None:
    forged = Forgery.of(folder.read(recorded / "proof"))
    forged.terms(**terms)
    with pytest.raises(MalformedInput, match=r"at most|more than"):
        folder.read(forged.write(tmp_path / "forged"))


def test_what_is_no_proof_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="labapex record"):
        folder.read(tmp_path)


# -- on the wire -------------------------------------------------------------------------------------------------------


@pytest.fixture
def parcelled(recorded: Path) -> bytes:
    root = recorded / "proof"
    manifest = folder.read(root).manifest
    packed = b"".join(parcel.pack(manifest, {entry.path: root / entry.path for entry in manifest.files}))
    assert len(packed) == parcel.size(manifest)
    return packed


def pieces(data: bytes, size: int = 700) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def receive(data: bytes, root: Path) -> folder.Proof:
    """As the client does: a changed manifest may be whole as a parcel, but not as a proof."""
    parcel.unpack(iter(pieces(data, 4096)), root, limit=1 << 20)
    return folder.read(root)


def test_a_parcel_is_the_folder_again_and_a_plain_tar(parcelled: bytes, recorded: Path, tmp_path: Path) -> None:
    import io
    import tarfile

    parcel.unpack(iter(pieces(parcelled)), tmp_path / "proof", limit=1 << 20)
    assert folder.read(tmp_path / "proof").manifest == folder.read(recorded / "proof").manifest
    with tarfile.open(fileobj=io.BytesIO(parcelled)) as tar:
        names = tar.getnames()
    assert names == [MANIFEST, *sorted(set(names) - {MANIFEST})]


@OVER_ONE_COPY
@given(at=st.integers(min_value=0), mask=st.integers(1, 255))
def test_a_parcel_with_a_changed_byte_leaves_nothing_behind(
    parcelled: bytes, tmp_path: Path, at: int, mask: int
) -> None:
    at %= len(parcelled)
    changed = parcelled[:at] + bytes([parcelled[at] ^ mask]) + parcelled[at + 1 :]
    with pytest.raises(MalformedInput):
        receive(changed, tmp_path / "proof")
    shutil.rmtree(tmp_path / "proof", ignore_errors=True)


def test_a_parcel_that_ends_early_or_is_too_long_leaves_nothing_behind(parcelled: bytes, tmp_path: Path) -> None:
    for data, limit in ((parcelled[:-1], 1 << 20), (parcelled[:1000], 1 << 20), (parcelled, len(parcelled) - 1)):
        with pytest.raises(MalformedInput):
            parcel.unpack(iter(pieces(data)), tmp_path / "proof", limit=limit)
        assert not (tmp_path / "proof").exists()


def test_a_parcel_of_anything_else_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"<html>" * 1000, bytes(4096), parcel.header("../evil", 3) + b"abc" + bytes(2000)):
        with pytest.raises(MalformedInput):
            parcel.unpack(iter(pieces(data)), tmp_path / "proof", limit=1 << 20)


def test_a_parcel_that_lists_a_file_twice_is_refused(recorded: Path, tmp_path: Path) -> None:
    root = recorded / "proof"
    manifest = folder.read(root).manifest
    twice = Manifest.model_construct(**{**dict(manifest), "files": (manifest.files[0], *manifest.files)})
    packed = b"".join(parcel.pack(twice, {entry.path: root / entry.path for entry in manifest.files}))
    with pytest.raises(MalformedInput, match="twice"):
        parcel.unpack(iter(pieces(packed)), tmp_path / "proof", limit=1 << 20)
    assert not (tmp_path / "proof").exists()
