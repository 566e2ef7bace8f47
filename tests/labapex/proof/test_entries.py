"""A state taken apart: every piece has its entry, what changed shows in just that entry, and no file makes it stumble."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labapex.errors import MalformedInput
from labapex.proof.entries import entries
from labapex.proof.state import State

STRUCTURE = {"step": 3, "groups": [{"lr": {"f": "0x1p-3"}}], "a/b": {"~": True}, "a": {"b": {"~": False}}}


def taken_apart(folder: Path, structure: dict[str, Any], **tensors: torch.Tensor) -> dict[str, bytes]:
    path = folder / "state.safetensors"
    State(structure, tensors, sorted(tensors)).save(path)
    return entries(path)


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def test_what_changed_shows_in_its_own_entry_alone(tmp_path: Path) -> None:
    w = torch.arange(6.0).reshape(2, 3)
    before = taken_apart(tmp_path, STRUCTURE, w=w)
    assert not differing(before, taken_apart(tmp_path, STRUCTURE, w=w.clone()))
    assert differing(before, taken_apart(tmp_path, STRUCTURE, w=w + 1)) == {"tensors/w"}
    other = {**STRUCTURE, "groups": [{"lr": {"f": "0x1p-4"}}]}
    assert differing(before, taken_apart(tmp_path, other, w=w)) == {"structure/groups/0/lr/f"}
    other = {**STRUCTURE, "a/b": {"~": False}}
    assert differing(before, taken_apart(tmp_path, other, w=w)) == {"structure/a~1b/~0"}


@pytest.mark.parametrize("other", [torch.zeros(6), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32)])
def test_type_and_shape_of_a_tensor_are_in_its_entry(tmp_path: Path, other: torch.Tensor) -> None:
    changed = differing(taken_apart(tmp_path, {}, w=torch.zeros(2, 3)), taken_apart(tmp_path, {}, w=other))
    assert "tensors/w" in changed


def test_what_comes_or_goes_is_a_change_of_what_it_belongs_to(tmp_path: Path) -> None:
    before = taken_apart(tmp_path, {"log": [1.5], "names": {"x": 1}})
    after = taken_apart(tmp_path, {"log": [1.5, 2.5], "names": {"x": 1, "y": 2}})
    assert differing(before, after) == {"structure/log", "structure/log/1", "structure/names", "structure/names/y"}


def test_rows_that_became_zero_show_and_stay_the_same_while_the_others_change(tmp_path: Path) -> None:
    w = torch.ones(4, 3, 2)
    pruned = w.clone()
    pruned[1] = -0.0
    before, after = taken_apart(tmp_path, {}, w=w), taken_apart(tmp_path, {}, w=pruned)
    assert differing(before, after) == {"tensors/w", "zeros/w"}
    assert differing(after, taken_apart(tmp_path, {}, w=3 * pruned)) == {"tensors/w"}


def test_a_long_list_is_one_entry(tmp_path: Path) -> None:
    found = taken_apart(tmp_path, {"log": list(range(5000))})
    assert {name for name in found if name.startswith("structure/log")} == {"structure/log"}


def test_a_structure_that_is_too_much_to_be_taken_apart_differs_from_any_other(tmp_path: Path) -> None:
    vast = taken_apart(tmp_path, {"step": 1, "bomb": [[]] * (1 << 21)})
    assert [name for name in vast if name.startswith("structure")] == ["structure"]
    assert vast["structure"] != taken_apart(tmp_path, {"step": 1})["structure"]


def test_too_many_tensors_are_not_compared_one_by_one(tmp_path: Path) -> None:
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    about = {"__metadata__": {"structure": "{}", "parameters": "[]"}}
    header = json.dumps({**about, **{f"t{n}": nothing for n in range(40_000)}}).encode()
    (tmp_path / "many.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    found = entries(tmp_path / "many.safetensors")
    assert found.keys() == {"structure", "tensors"}
    assert found["tensors"] != taken_apart(tmp_path, {}, t=torch.zeros(0))["tensors"]


def test_spaces_in_a_file_hide_nothing(tmp_path: Path) -> None:
    plain = taken_apart(tmp_path, STRUCTURE)
    header = json.dumps({"__metadata__": {"structure": json.dumps(STRUCTURE, indent=300), "parameters": "[]"}}).encode()
    (tmp_path / "wide.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert entries(tmp_path / "wide.safetensors") == plain


@settings(deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_make_it_stumble(tmp_path_factory: pytest.TempPathFactory, data: bytes, framed: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data if framed else data)
    with pytest.raises(MalformedInput):
        entries(path)
