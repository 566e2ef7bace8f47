"""Lies at the opening: the run was honest, and the files that are asked for are not what was committed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tests.attacks.lies.telling import enter, run

from labapex.proof.record import Recorder
from labapex.proof.state import State


def at_the_opening(rule: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def enlist(lie: Callable[[Path], None]) -> Callable[[Path], None]:
        enter(rule, lie, lambda job: run(job, Recorder(job.contract, job.folder / "states", job.sink)), opening=lie)
        return lie

    return enlist


@at_the_opening("opening")
def a_withheld_state(states: Path) -> None:
    """Trains honestly and withholds one of the states."""
    (states / "3.safetensors").unlink()


@at_the_opening("opening")
def the_state_of_another_leaf(states: Path) -> None:
    """Opens the state after the one that was asked for."""
    (states / "3.safetensors").write_bytes((states / "4.safetensors").read_bytes())


@at_the_opening("opening")
def a_state_with_one_other_bit(states: Path) -> None:
    """Opens a state in which one bit of one entry is another."""
    path = states / "3.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@at_the_opening("opening")
def a_state_that_is_cut(states: Path) -> None:
    """Opens the first half of a state."""
    path = states / "3.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@at_the_opening("opening")
def a_header_without_end(states: Path) -> None:
    """Opens a file whose header claims all memory that there is."""
    (states / "3.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


@at_the_opening("opening")
def a_pickle_as_a_state(states: Path) -> None:
    """Opens a pickle that would run a program on whoever loads it."""
    (states / "3.safetensors").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")


@at_the_opening("opening")
def an_extra_entry_at_the_opening(states: Path) -> None:
    """Opens the committed state with one entry more."""
    path = states / "3.safetensors"
    state = State.load(path)
    state.tensors["zzz.hidden"] = torch.ones(3)
    state.save(path)


# -- the chunk of every kept state -------------------------------------------------------------------------------------


def in_the_answer(lie: Callable[[list[bytes]], list[bytes]]) -> Callable[[list[bytes]], list[bytes]]:
    """A lie about the chunk: `parts` are the honest ones, a leaf's each, of a chunk and its path."""
    enter("opening", lie, lambda job: run(job, Recorder(job.contract, job.folder / "states", job.sink)), answer=lie)
    return lie


@in_the_answer
def a_withheld_chunk(parts: list[bytes]) -> list[bytes]:
    """Shows the chunk of every state but one."""
    return parts[:3] + parts[4:]


@in_the_answer
def no_chunk_at_all(parts: list[bytes]) -> list[bytes]:
    """Shows nothing before states are drawn."""
    return []


@in_the_answer
def the_chunk_of_another_state(parts: list[bytes]) -> list[bytes]:
    """Shows the chunk of the state before once more, so that the update between them seems to be none."""
    return [*parts[:3], parts[2], *parts[4:]]


@in_the_answer
def a_chunk_with_one_other_bit(parts: list[bytes]) -> list[bytes]:
    """Shows a chunk in which one bit is another."""
    return [*parts[:3], bytes([parts[3][0] ^ 1]) + parts[3][1:], *parts[4:]]


@in_the_answer
def a_path_to_another_tree(parts: list[bytes]) -> list[bytes]:
    """Shows the true chunk in a tree that is not the committed one."""
    return [*parts[:3], parts[3][:-1] + bytes([parts[3][-1] ^ 1]), *parts[4:]]


@in_the_answer
def a_chunk_that_is_cut(parts: list[bytes]) -> list[bytes]:
    """Leaves the last hash of the last path out."""
    return [*parts[:-1], parts[-1][:-32]]


@in_the_answer
def more_chunks_than_were_asked_for(parts: list[bytes]) -> list[bytes]:
    """Shows one more."""
    return [*parts, parts[-1]]
