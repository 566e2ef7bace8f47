"""One chunk of every kept state: what it shows is what torch computes, and nothing but the committed bytes is believed."""

from __future__ import annotations

import contextlib
import io
import math
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.labapex.proof import lab

from labapex.errors import MalformedInput, Tampered
from labapex.proof import chunks, merkle, statefile
from labapex.proof.chunks import Change, Measured
from labapex.proof.state import State, parameter_change
from labapex.protocol.contract import Contract, ScriptFacts
from labapex.protocol.records import Leaf

KINDS = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ZERO = "0" * 64


@dataclass
class Kept:
    """A run of states on disk, as a host keeps them."""

    contract: Contract
    leaves: list[Leaf]
    states: list[State]
    folder: Path

    def part(self, index: int, number: int) -> bytes:
        with (self.folder / f"{index}.safetensors").open("rb") as file:
            return chunks.show(file, (self.folder / f"{index}.tree").read_bytes(), number)

    def answer(self, number: int) -> bytes:
        return b"".join(self.part(index, number) for index in chunks.asked(self.contract, self.leaves))

    def check(self, number: int, answer: bytes) -> Measured:
        return chunks.check(self.contract, self.leaves, number, io.BytesIO(answer))


def kept(folder: Path, states: list[State], *, keep_every: int = 1) -> Kept:
    folder.mkdir(exist_ok=True)
    leaves, before = [], None
    for index, state in enumerate(states):
        tree = state.tree()
        size = state.save(folder / f"{index}.safetensors")
        (folder / f"{index}.tree").write_bytes(b"".join(tree))
        leaves.append(
            Leaf(
                index=index, step=index, state=merkle.root_of_hashes(tree).hex(), size=size, chunks=len(tree),
                settings=ZERO, update_norm=parameter_change(before, state) if before else 0.0, batches=ZERO, losses=ZERO,
                prev=ZERO,
            )
        )  # fmt: skip
        before = state
    facts = ScriptFacts(
        loop="train.py:1", iterations_per_epoch=max(1, len(states) - 1), has_loader=True, gradients_are_state=False,
        parameters=1, state_bytes=1, layout=states[0].layout(),
    )  # fmt: skip
    terms = lab.contract(facts, epochs=1, every=1).model_copy(update={"keep_every": keep_every})
    return Kept(terms, leaves, states, folder)


def walk(shapes: dict[str, tuple[str, int]], steps: int, seed: int = 0) -> list[State]:
    """States whose parameters move at random; beside them lies a counter and a tensor that nobody trains."""
    source = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randn(size, generator=source).to(KINDS[kind]) for n, (kind, size) in shapes.items()}
    made = []
    for step in range(steps):
        others = {"counter": torch.tensor([step]), "seen": torch.full((5000,), float(step))}
        made.append(State({"step": step}, {**tensors, **others}, sorted(tensors)))
        tensors = {n: t + torch.randn(t.shape, generator=source).to(t.dtype) / 8 for n, t in tensors.items()}
    return made


def part_of(state: State, number: int) -> torch.Tensor:
    """The chunk's numbers, by torch."""
    order = sorted(state.parameters, key=lambda n: (-state.tensors[n].element_size(), n))
    places = torch.cat([state.tensors[n].double().repeat_interleave(state.tensors[n].element_size()) for n in order])
    widths = torch.cat([torch.full_like(state.tensors[n].double(), state.tensors[n].element_size()) for n in order])
    widths = widths.repeat_interleave(widths.long())
    stretch = slice(number * chunks.CHUNK, (number + 1) * chunks.CHUNK)
    return torch.stack([places[stretch], widths[stretch]])


shapes = st.dictionaries(
    st.text("abcxyz.", min_size=1, max_size=4), st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 9000)),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes=shapes, data=st.data())
def test_a_chunk_shows_the_change_that_torch_computes(
    tmp_path: Path, shapes: dict[str, tuple[str, int]], data: st.DataObject
) -> None:
    run = kept(tmp_path / "run", walk(shapes, 3))
    number = data.draw(st.integers(0, chunks.count(run.contract.facts.layout) - 1))
    answer = run.answer(number)
    assert len(answer) == chunks.answer_size(run.contract, run.leaves, number)
    found = run.check(number, answer)
    assert [(c.start, c.stop) for c in found.changes] == [(0, 1), (1, 2)]
    for change in found.changes:
        (before, widths), (after, _) = (
            part_of(run.states[change.start], number),
            part_of(run.states[change.stop], number),
        )
        assert change.norm == pytest.approx(float(((after - before).square() / widths).sum().sqrt()), rel=1e-12)
    total = sum(run.states[0].tensors[n].nbytes for n in run.states[0].parameters)
    assert found.share == pytest.approx(len(part_of(run.states[0], number)[0]) / total)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_chunk_with_one_bit_more_or_less_is_not_believed(tmp_path: Path, data: st.DataObject) -> None:
    run = kept(tmp_path / "run", walk({"w": ("float32", 9000)}, 3))
    number = data.draw(st.integers(0, 2))
    answer = bytearray(run.answer(number))
    answer[data.draw(st.integers(0, len(answer) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Tampered, match=r"the chunk of leaf [012] is not in the state that was committed to"):
        run.check(number, bytes(answer))


def test_an_answer_that_is_too_short_too_long_or_of_another_state_or_place_names_what_is_wrong(tmp_path: Path) -> None:
    run = kept(tmp_path, walk({"w": ("float32", 9000)}, 3))
    whole = run.answer(1)
    with pytest.raises(MalformedInput, match="end early, at that of leaf 2"):
        run.check(1, whole[:-1])
    with pytest.raises(MalformedInput, match="more chunks came"):
        run.check(1, whole + b"x")
    with pytest.raises(Tampered, match="leaf 1 is not"):
        run.check(1, run.part(0, 1) + run.part(2, 1) + run.part(2, 1))
    with pytest.raises(Tampered, match="leaf 0 is not"):
        run.check(1, run.answer(0))


def test_a_tree_file_that_lies_is_found_before_anything_is_sent(tmp_path: Path) -> None:
    run = kept(tmp_path, walk({"w": ("float32", 9000)}, 2))
    (tmp_path / "1.tree").write_bytes((tmp_path / "0.tree").read_bytes())
    with pytest.raises(MalformedInput, match="is not the state's"):
        run.part(1, 0)
    (tmp_path / "1.tree").write_bytes(b"")
    with pytest.raises(MalformedInput, match="is not the state's"):
        run.part(1, 0)


def test_a_leaf_whose_tree_could_not_hold_the_parameters_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    run = kept(tmp_path, walk({"w": ("float32", 9000)}, 2))
    run.leaves[1] = run.leaves[1].model_copy(update={"chunks": 3})
    with pytest.raises(Tampered, match="leaf 1 claims a tree of 3 entries"):
        chunks.answer_size(run.contract, run.leaves, 0)


def test_only_what_the_host_keeps_is_asked_for_and_nothing_from_where_parameters_changed_their_shape(
    tmp_path: Path,
) -> None:
    states = walk({"w": ("float32", 10)}, 6)
    run = kept(tmp_path, states, keep_every=2)
    assert chunks.asked(run.contract, run.leaves) == (0, 2, 4, 5)
    found = run.check(0, run.answer(0))
    assert [(c.start, c.stop) for c in found.changes] == [(0, 2), (2, 4), (4, 5)]
    run.leaves[3] = run.leaves[3].model_copy(update={"update_norm": None})
    assert chunks.asked(run.contract, run.leaves) == (0, 2)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_parameters_that_change_their_type_claim_no_norm(kind: str) -> None:
    one, other = walk({"w": ("float32", 10)}, 2)
    other.tensors["w"] = other.tensors["w"].to(KINDS[kind])
    assert parameter_change(one, other) is None


def test_no_honest_claim_is_below_what_a_chunk_shows_and_a_false_one_is_named(tmp_path: Path) -> None:
    run = kept(tmp_path, walk({"w": ("float32", 4000)}, 5))  # one chunk: all of the parameters
    found = run.check(0, run.answer(0))
    assert chunks.understated(run.leaves, found, tolerance=1e-6) == []
    norm = run.leaves[3].update_norm
    assert norm is not None
    run.leaves[3] = run.leaves[3].model_copy(update={"update_norm": norm * 0.999})
    assert chunks.understated(run.leaves, found, tolerance=1e-6) == [3]


def test_a_change_that_is_not_finite_is_no_small_one(tmp_path: Path) -> None:
    states = walk({"w": ("float32", 10)}, 3)
    states[2].tensors["w"] = states[2].tensors["w"] * math.nan
    run = kept(tmp_path, states)
    run.leaves[2] = run.leaves[2].model_copy(update={"update_norm": 0.1})  # the claim
    found = run.check(0, run.answer(0))
    assert found.changes[1] == Change(1, 2, None)
    assert chunks.updates(run.leaves, found)[1] == math.inf
    assert chunks.understated(run.leaves, found, tolerance=1e-6) == [2]


def test_parameters_of_types_that_cannot_be_looked_at_have_no_chunk_to_ask_for() -> None:
    whole = State({}, {"w": torch.zeros(9, dtype=torch.int64)}, ["w"])
    assert chunks.count(whole.layout()) == 0
    assert chunks.count(()) == 0


def test_a_random_chunk_ranks_updates_almost_as_their_norms_do(tmp_path: Path) -> None:
    source = random.Random(4)
    weight, states = torch.zeros(40_000), []
    for step in range(30):
        states.append(State({"step": step}, {"w": weight}, ["w"]))
        weight = weight + torch.randn(40_000, generator=torch.Generator().manual_seed(step)) * source.random()
    run = kept(tmp_path, states)
    estimates = chunks.updates(run.leaves, run.check(3, run.answer(3)))
    for estimate, leaf in zip(estimates, run.leaves[1:], strict=True):
        assert estimate == pytest.approx(leaf.update_norm, rel=0.1)


# -- the file ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes=shapes)
def test_the_tree_of_a_file_is_the_tree_of_its_state(tmp_path: Path, shapes: dict[str, tuple[str, int]]) -> None:
    (state,) = walk(shapes, 1)
    state.structure |= {"lr": 0.1, "names": ["ä", None, True], "empty": {}}
    state.tensors["nothing"] = torch.zeros(0)
    state.save(tmp_path / "state")
    with (tmp_path / "state").open("rb") as file:
        assert statefile.tree(file) == state.tree()


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_make_a_file_s_tree_stumble(tmp_path: Path, data: st.DataObject) -> None:
    (state,) = walk({"w": ("float32", 3)}, 1)
    path = tmp_path / "state"
    state.save(path)
    plain = bytearray(path.read_bytes()) if data.draw(st.booleans()) else bytearray(data.draw(st.binary(max_size=99)))
    for _ in range(data.draw(st.integers(0, 3))):
        if plain:
            plain[data.draw(st.integers(0, len(plain) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(plain)
    with path.open("rb") as file, contextlib.suppress(MalformedInput):
        statefile.tree(file)
