"""Capture, file, digest and restore: the same state comes back, and hostile bytes end in one kind of error."""

from __future__ import annotations

import json
import random
import sys
import types
from collections import OrderedDict, deque, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from labapex.errors import MalformedInput, TrainingFailed
from labapex.proof import merkle
from labapex.proof.block import FILE_TYPES, Buffers, raw_bytes
from labapex.proof.capture import Capture, Memory
from labapex.proof.clock import Reading
from labapex.proof.restore import Restore
from labapex.proof.state import State, distances, first_difference, parameter_change
from labapex.proof.statefile import CHUNK
from labapex.protocol.canonical import canonical

Point = namedtuple("Point", "x y")


class Thing:
    """An object of the script's own."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def own(module: str) -> bool:
    return module == __name__


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or types.ModuleType(__name__))
    sys.modules[__name__].__dict__.update(Thing=Thing, Point=Point)


def capture(variables: dict[str, Any], memory: Memory | None = None) -> State:
    """The state of some variables; large ones that changed since the first look are stored."""
    memory = memory or seen({})
    walk = Capture(memory, own)
    return walk.finish({"variables": walk.variables("v", variables)})


def seen(variables: dict[str, Any]) -> Memory:
    memory = Memory(gradients=True)
    walk = Capture(memory, own)
    walk.variables("v", variables)
    walk.finish({})
    return memory


def restored(state: State, variables: dict[str, Any]) -> dict[str, Any]:
    return Restore(state, own).variables(state.structure["variables"], "v", variables)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=5)
)
keys = st.text(max_size=5) | st.integers() | st.floats(allow_nan=False) | st.tuples(st.integers(), st.text(max_size=3))
arrays = st.lists(st.floats(width=32, allow_nan=False), max_size=4).map(lambda v: np.array(v, dtype=np.float32))
tensors = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]).flatmap(
    lambda kind: st.lists(st.integers(0, 100), max_size=6).map(lambda v: torch.tensor(v).to(kind))
)
values = st.recursive(
    scalars | arrays | tensors,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=4).map(deque)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
        | st.builds(Point, inner, inner)
        | st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), inner, max_size=3).map(lambda d: Thing(**d))
    ),
    max_leaves=12,
)
names = st.from_regex(r"[a-z]{1,4}", fullmatch=True)


@settings(max_examples=150, deadline=None)
@given(variables=st.dictionaries(names, values, max_size=4), other=st.dictionaries(names, values, max_size=4))
def test_what_was_captured_comes_back_over_whatever_is_there(variables: dict[str, Any], other: dict[str, Any]) -> None:
    state = capture(variables)
    again = restored(state, other)
    assert capture(again).digest() == state.digest()
    assert {n: type(v) for n, v in again.items()} == {n: type(v) for n, v in variables.items()}


@settings(max_examples=50, deadline=None)
@given(variables=st.dictionaries(names, values, max_size=4))
def test_a_state_survives_its_file(variables: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("state") / "0.safetensors"
    state = capture(variables)
    size = state.save(path)
    assert size == path.stat().st_size
    assert State.load(path).digest() == state.digest()
    assert first_difference(State.load(path), state) is None


def test_aliases_stay_aliases() -> None:
    inner = [1]
    tensor = torch.ones(2)
    state = capture({"a": {"x": inner, "t": tensor}, "b": [inner, tensor], "c": Thing(held=inner)})
    again = restored(state, {})
    again["a"]["x"].append(2)
    assert again["b"][0] == [1, 2]
    assert again["c"].held is again["a"]["x"]
    assert again["b"][1] is again["a"]["t"]


def test_what_became_one_object_meanwhile_comes_back_as_two() -> None:
    apart = {"a": [1.0], "b": [2.0], "s": torch.zeros(2), "t": torch.ones(2), "x": {"k": 1}, "y": {"k": 2}}
    state = capture(apart)
    values, tensor, table = [3.0], torch.full((2,), 3.0), {"k": 3}
    back = restored(state, {"a": values, "b": values, "s": tensor, "t": tensor, "x": table, "y": table})
    assert (back["a"], back["b"], back["x"], back["y"]) == ([1.0], [2.0], {"k": 1}, {"k": 2})
    assert (back["s"].tolist(), back["t"].tolist()) == ([0, 0], [1, 1])
    assert [id(back[name]) for name in "asx"] == [id(values), id(tensor), id(table)], "the first is filled in place"


def test_an_object_that_holds_itself_is_captured_once() -> None:
    thing = Thing(n=1)
    thing.me = thing
    thing.friends = [thing]
    again = restored(capture({"a": thing}), {})["a"]
    assert again.me is again
    assert again.friends[0] is again


def test_a_list_that_holds_itself_ends_in_an_error_not_in_a_loop() -> None:
    items: list[Any] = []
    items.append(items)
    with pytest.raises(MalformedInput):
        restored(capture({"a": items}), {})


def test_tied_weights_stay_tied_and_modules_are_filled_in_place() -> None:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        module = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "n": nn.BatchNorm1d(3)})
        module["b"].weight = module["a"].weight
        return module

    one, other = build(1), build(2)
    state = capture({"m": one})
    weight = other["a"].weight
    again = restored(state, {"m": other})["m"]
    assert again is other
    assert again["a"].weight is weight
    assert again["b"].weight is weight
    assert torch.equal(weight, one["a"].weight)
    assert capture({"m": again}).digest() == state.digest()


def test_an_optimizer_comes_back_with_its_state_its_groups_and_gradients() -> None:
    def build(seed: int, steps: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        optimizer = torch.optim.Adam(model[0].parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        for step in range(steps):
            if step == 1:
                optimizer.add_param_group({"params": model[1].parameters(), "lr": 0.01})
            model(torch.randn(5, 3)).sum().backward()
            optimizer.step()
            scheduler.step() if step == 0 else None
        return {"model": model, "optimizer": optimizer, "scheduler": scheduler}

    state = capture(build(1, 3))
    fresh = build(2, 0)
    again = restored(state, fresh)
    assert capture(again).digest() == state.digest()
    assert again["optimizer"].param_groups[1]["params"][0] is again["model"][1].weight
    back = restored(capture(build(3, 0)), again)  # and backwards, where the second group did not exist yet
    assert len(back["optimizer"].param_groups) == 1
    assert back["model"][0].weight.grad is None


def test_generators_of_all_kinds_go_on_where_they_were() -> None:
    def build() -> dict[str, Any]:
        return {
            "t": torch.Generator().manual_seed(1),
            "n": np.random.default_rng(2),
            "o": np.random.RandomState(3),
            "p": random.Random(4),
        }

    def draw(g: dict[str, Any]) -> list[float]:
        return [torch.rand(1, generator=g["t"]).item(), g["n"].normal(), g["o"].normal(), g["p"].random()]

    first = build()
    draw(first)
    state = capture(first)
    expected = draw(first)
    assert draw(restored(state, build())) == expected


def test_a_closure_s_cells_are_state() -> None:
    def counter() -> Any:
        n = 0

        def count() -> int:
            nonlocal n
            n += 1
            return n

        return count

    one, other = counter(), counter()
    one(), one()
    restored(capture({"c": one}), {"c": other})
    assert other() == 3


def test_the_clock_is_no_part_of_the_state() -> None:
    assert capture({"t": Reading(1.5)}).digest() == capture({"t": Reading(2.5)}).digest()


def test_large_things_that_nobody_touched_are_not_stored_and_touched_ones_are() -> None:
    variables = {"x": torch.zeros(1000), "a": np.zeros(1000), "l": list(range(5000)), "s": "text" * 1000}
    memory = seen(variables)
    assert capture(variables, memory).size() == 0
    variables["x"][3] = 1
    variables["a"][5] = 1
    variables["l"][7] = 1
    state = capture(variables, memory)
    assert set(state.tensors) == {"v/x", "v/a"}
    assert state.structure["variables"]["l"]["l"][7] == 1
    variables["x"][3] = 0
    assert "v/x" in capture(variables, memory).tensors  # once changed, always stored: a replay starts later


def test_the_digest_is_a_merkle_root_that_anyone_can_recompute() -> None:
    state = capture({"x": torch.arange(10_000)}, seen({"x": 0}))
    raw = torch.arange(10_000).numpy().tobytes()
    header = {"structure": state.structure, "tensors": [["v/x", "torch.int64", [10_000]]], "parameters": []}
    chunks = [raw[n : n + CHUNK] for n in range(0, len(raw), CHUNK)]
    assert state.digest() == merkle.root([canonical(header), *chunks]).hex()


@settings(max_examples=150, deadline=None)
@given(variables=st.dictionaries(names | st.text(max_size=3), values, max_size=4))
def test_the_digest_is_that_of_the_plain_definition(variables: dict[str, Any]) -> None:
    """RFC 8785 spelling and RFC 6962 tree, written down without any of the recorder's shortcuts."""
    state = capture(variables)
    shapes = [[n, str(t.dtype), list(t.shape)] for n, t in sorted(state.tensors.items())]
    entries = [canonical({"structure": state.structure, "tensors": shapes, "parameters": state.parameters})]
    for own in (True, False):
        names = [n for n in state.tensors if (n in state.parameters) == own]
        tensors = [state.tensors[n] for n in sorted(names, key=lambda n: (-state.tensors[n].element_size(), n))]
        raw = b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors if t.numel())
        entries += [raw[n : n + CHUNK] for n in range(0, len(raw), CHUNK)]
    assert [merkle.leaf_hash(entry) for entry in entries] == state.tree()
    assert state.digest() == merkle.root(entries).hex()


@pytest.mark.parametrize(
    "structure",
    [
        {"f": 1.5},
        {"f": 1.0},
        {"é": 1},
        {"a": "\x7f\u2028"},
        {"\U0001f600": 1, "\ufb33": 2},
        {"n": 2**53 - 1},
        {"b": True},
    ],
)
def test_whatever_json_can_spell_is_spelled_canonically(structure: dict[str, Any]) -> None:
    header = canonical({"structure": structure, "tensors": [], "parameters": []})
    assert State(structure).digest() == merkle.root([header]).hex()


@pytest.mark.parametrize("structure", [{"n": 2**53}, {"n": -(2**53)}, {"n": float("nan")}, {1: 2}, {"s": "\ud800"}])
def test_what_json_cannot_spell_has_no_digest(structure: dict[str, Any]) -> None:
    with pytest.raises(MalformedInput):
        State(structure).digest()


@pytest.mark.parametrize("kind", FILE_TYPES, ids=str)
def test_a_state_file_is_plain_safetensors_for_every_type(kind: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    tensors = {
        "b": torch.arange(5).to(torch.float32).to(kind),
        "a": torch.zeros(3, dtype=torch.uint8),
        "c": torch.zeros(0),
    }
    size = State({}, {**tensors, "s": torch.tensor(2.5)}).save(path)
    assert size == path.stat().st_size
    found = safetensors.torch.load_file(path)
    assert all(raw_bytes(found[n]) == raw_bytes(t) and found[n].dtype == t.dtype for n, t in tensors.items())


def test_a_type_that_no_file_can_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"spectrum is of type torch\.complex128"):
        State({}, {"spectrum": torch.zeros(1, dtype=torch.complex128)}).save(tmp_path / "0.safetensors")


def test_copies_are_contiguous_their_own_and_made_in_memory_that_was_given_back() -> None:
    buffers = Buffers()
    model = nn.Linear(3, 2)
    source = {"t": torch.arange(6.0).reshape(2, 3).t(), "p": model.weight, "n": torch.tensor(3), "b": torch.ones(2) > 0}
    first, second = buffers.copy(source, ["p"]), buffers.copy(source, ["p"])
    assert all(torch.equal(first[n], t) and first[n].is_contiguous() for n, t in source.items())
    assert not first["p"].requires_grad
    places = {n: t.data_ptr() for n, t in first.items()}
    source["t"].zero_()
    assert first["t"].sum() == 15
    buffers.give_back(first)
    third = buffers.copy(source, ["p"])
    assert {n: t.data_ptr() for n, t in third.items()} == places
    assert second["t"].sum() == 15
    buffers.give_back(third)
    grown = buffers.copy({**source, "t": torch.ones(4)}, ["p"])
    assert grown["t"].tolist() == [1, 1, 1, 1]


sizes = st.one_of(st.integers(0, 3), st.integers(0, 9 * CHUNK))


@settings(max_examples=100, deadline=None)
@given(tensors=st.lists(st.tuples(sizes, st.booleans(), st.floats(0, 1) | st.none()), max_size=6), odd=st.booleans())
def test_what_is_as_it_was_at_the_leaf_before_is_not_hashed_again_and_the_tree_is_the_same(
    tensors: list[tuple[int, bool, float | None]], odd: bool
) -> None:
    """`tensors`: how many elements each has, whether it is trained, and where in it something changes, if at all."""
    source = {
        f"t{n}": torch.arange(size).to(torch.int16 if odd and n % 2 else torch.float32)
        for n, (size, _, _) in enumerate(tensors)
    }
    own = [f"t{n}" for n, (_, trained, _) in enumerate(tensors) if trained]
    buffers = Buffers()
    before = State({"step": 1}, buffers.copy(source, own), own).image()
    before.tree()
    for tensor, (size, _, at) in zip(source.values(), tensors, strict=True):
        if size and at is not None:
            tensor[int(at * (size - 1))] += 1
    after = State({"step": 2}, buffers.copy(source, own), own)
    assert after.image().tree(before) == after.tree() == State(after.structure, dict(after.tensors), own).tree()


@pytest.mark.parametrize(("was", "now"), [(0.0, -0.0), (float("nan"), -float("nan"))])
def test_what_is_equal_as_a_number_and_not_as_bits_is_hashed_again(was: float, now: float) -> None:
    buffers = Buffers()
    before, after = (
        State({}, buffers.copy({"w": torch.ones(100_000).index_fill(0, torch.tensor(50_000), v)}, ["w"]), ["w"])
        for v in (was, now)
    )
    first = before.image()
    assert first.tree() != after.image().tree(first) == after.tree()


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 9_999), bit=st.integers(0, 31))
def test_one_flipped_bit_is_another_digest(at: int, bit: int) -> None:
    state = capture({"x": torch.zeros(10_000)}, seen({"x": 0}))
    flipped = State(state.structure, {"v/x": state.tensors["v/x"].clone()}, [])
    flipped.tensors["v/x"].view(torch.int32)[at] ^= (1 << bit) - (1 << 32 if bit == 31 else 0)
    assert flipped.digest() != state.digest()


def test_the_first_difference_has_a_name() -> None:
    one = capture({"a": 1, "t": torch.zeros(3), "d": {"lr": 0.1}})
    assert first_difference(one, capture({"a": 1, "t": torch.ones(3), "d": {"lr": 0.1}})) == "v/t"
    assert first_difference(one, capture({"a": 2, "t": torch.zeros(3), "d": {"lr": 0.1}})) == "/variables/a"


def test_distances_are_those_of_the_paper() -> None:
    def at(*values: float) -> State:
        return State({}, {"w": torch.tensor(values)}, ["w"])

    found = distances(claimed=at(3.0, 4.0), replayed=at(3.0, 0.0), start=at(0.0, 0.0))
    assert (found.l1, found.l2, found.linf) == (4.0, 4.0, 4.0)
    assert found.relative == pytest.approx(0.8)
    assert found.cos == pytest.approx(1 - 9 / 15)
    assert parameter_change(at(0.0, 0.0), at(3.0, 4.0)) == 5.0
    assert parameter_change(at(0.0, 0.0), at(float("nan"), 4.0)) is None
    assert parameter_change(at(0.0), at(3.0, 4.0)) is None
    many, few = torch.randn(100_000), torch.randn(100_000)
    exact = float((many.double() - few.double()).norm())
    assert parameter_change(State({}, {"w": many}, ["w"]), State({}, {"w": few}, ["w"])) == pytest.approx(
        exact, rel=1e-12
    )
    nothing = distances(claimed=at(1.0, 1.0), replayed=at(2.0, 2.0), start=at(1.0, 1.0))
    assert nothing.relative is None  # no update was claimed, and one was made


# -- hostile -----------------------------------------------------------------------------------------------------------


def write(path: Path, structure: str, parameters: str = "[]") -> Path:
    safetensors.torch.save_file(
        {"t": torch.zeros(2)}, path, metadata={"structure": structure, "parameters": parameters}
    )
    return path


@pytest.mark.parametrize(
    ("structure", "parameters"),
    [
        ("[]", "[]"),
        ("{}", "{}"),
        ("{}", '["other"]'),
        ("{}", "[[]]"),
        ("{}", "[{}]"),
        ("{", "[]"),
        ("[" * 100_000, "[]"),
        ('{"a": NaN}', "[]"),
        ('{"a": 99999999999999999999}', "[]"),
        ('{"a": "\\ud800"}', "[]"),
    ],
)
def test_malformed_metadata_is_malformed_input(structure: str, parameters: str, tmp_path: Path) -> None:
    path = write(tmp_path / "0.safetensors", structure, parameters)
    with pytest.raises(MalformedInput):
        State.load(path).digest()


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300), cut=st.integers(0, 400), at=st.integers(0, 399), value=st.integers(0, 255))
def test_bytes_that_are_no_state_are_malformed_input(
    data: bytes, cut: int, at: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("hostile") / "0.safetensors"
    path.write_bytes(data)
    with pytest.raises(MalformedInput):
        State.load(path).digest()
    good = write(path, '{"a": 1}').read_bytes()
    digest = State.load(path).digest()
    changed = bytearray(good)
    changed[at % len(good)] = value
    path.write_bytes(bytes(changed[:cut] if cut < 300 else changed))
    try:
        loaded = State.load(path).digest()
    except MalformedInput:
        return
    assert loaded == digest or bytes(changed) != good


HOSTILE = [
    {},
    {"what": 1},
    3.5,
    ["l"],
    {"ref": "v/nowhere"},
    {"ref": []},
    {"t": "absent"},
    {"t": []},
    {"t": "t", "np": "O"},
    {"t": "t", "np": "S1000000"},
    {"t": "t", "np": "nonsense"},
    {"f": "0x1p999999999"},
    {"f": "one"},
    {"i": "9" * 5000},
    {"i": "x"},
    {"b": "zz"},
    {"n": "O", "b": "00" * 8},
    {"n": "<f8", "b": ""},
    {"l": 1},
    {"q": [], "max": -1},
    {"d": [[[1], 1]]},
    {"d": [[{"x": 1}, 1]]},
    {"d": [1]},
    {"s": [[]], "frozen": False},
    {"o": "os:_Environ", "a": {}},
    {"o": "subprocess:Popen", "a": {}},
    {"o": "builtins:eval", "a": {}},
    {"o": "types:FunctionType", "a": {}},
    {"o": "types:ModuleType", "a": {}},
    {"o": "torch.optim.adam:Optimizer.__class__", "a": {}},
    {"o": "torch.utils.data.dataloader:os._Environ", "a": {}},
    {"o": "torch.utils.data.dataloader:_MultiProcessingDataLoaderIter", "a": {}},
    {"o": "torch.utils.data.dataloader:threading.Thread", "a": {}},
    {"o": 5, "a": {}},
    {"o": "argparse:Namespace", "a": []},
    {"opt": "SGD", "state": [], "groups": [], "sizes": []},
    {"rng": "torch", "t": "t"},
    {"rng": "numpy", "state": {"d": []}},
    {"rng": "python", "state": 1},
    {"rng": "numpy-legacy", "t": "t", "rest": []},
    {"pass": ["0@x", 0, 0]},
    {"dl": {}},
]


REFUSALS = (MalformedInput, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


@pytest.mark.parametrize("node", HOSTILE, ids=lambda n: json.dumps(n)[:40])
def test_a_hostile_node_is_refused(node: Any) -> None:
    """The engine turns these few kinds of error into `MalformedInput`; nothing else may come, and nothing may run."""
    state = State({"variables": {"a": node}}, {"t": torch.zeros(2)}, [])
    with pytest.raises(REFUSALS):
        restored(state, {})


@pytest.mark.parametrize("name", ["__builtins__", "__file__", "__labapex__", "_labapex_loop_1"])
def test_names_that_are_no_variables_cannot_be_bound(name: str) -> None:
    with pytest.raises(MalformedInput):
        restored(State({"variables": {name: 1}}, {}, []), {})


def test_a_namespace_and_an_ordered_dictionary_come_back() -> None:
    from argparse import Namespace

    state = capture({"n": Namespace(lr=0.1), "o": OrderedDict(a=1)})
    again = restored(state, {"o": OrderedDict()})
    assert again["n"].lr == 0.1
    assert again["o"] == OrderedDict(a=1)
