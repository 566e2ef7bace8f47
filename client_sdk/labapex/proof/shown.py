"""What a proof folder shows before anything is replayed: whether its states are the committed ones, and what the updates were.

Of a recorded folder every state is hashed, and a chunk drawn by the verifier measures the updates. Of a platform's there is the
worker's answer about the chunk that the platform drew; what it drew is drawn again from its nonces. No tensors here.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from labapex.errors import MalformedInput, Tampered
from labapex.proof import chunks, merkle, statefile
from labapex.proof.challenge import draw, draw_chunk
from labapex.proof.chunks import Measured
from labapex.proof.folder import CHUNKS, Asked, Proof, opened


@dataclass(frozen=True)
class Shown:
    """`problem`: what was withheld or is not what was committed to. `measured`: None too where nothing could be measured."""

    measured: Measured | None = None
    problem: str | None = None


def look(proof: Proof, random: random.Random) -> Shown:
    """Look at a folder whose log is whole. `random` is the verifier's own. Reads every state of a recorded one.

    Raises `Tampered` where a platform says to have drawn what its nonces do not give."""
    try:
        if proof.manifest.origin == "recorded":
            return Shown(_recorded(proof, random))
        if proof.asked is None:
            raise _Withheld("the folder does not say what the platform asked for")
        return _answered(proof, proof.asked)
    except _Withheld as withheld:
        return Shown(problem=str(withheld))


class _Withheld(Exception):
    """What should be shown is not there, or is something else."""


def _recorded(proof: Proof, random: random.Random) -> Measured | None:
    number = draw_chunk(proof.contract, random)
    wanted = set(chunks.asked(proof.contract, proof.leaves))
    parts = ((index, part) for index, part in _parts(proof, number) if index in wanted)
    if number is None:
        deque(parts, maxlen=0)  # they are looked at all the same
        return None
    try:
        return chunks.measure(proof.contract, number, parts)
    except MalformedInput as error:
        raise _Withheld(str(error)) from None


def _parts(proof: Proof, number: int | None) -> Iterator[tuple[int, bytes]]:
    """A chunk of every state in the folder, each checked against its leaf; no bytes where there is none to look at."""
    for index in sorted(proof.states):
        leaf = proof.leaves[index]
        with opened(proof.root, f"states/{index}.safetensors") as file:
            try:
                tree, found = statefile.tree(file), statefile.layout(file)
                layout = found.stretches()
            except MalformedInput as error:
                raise _Withheld(f"the state of leaf {index}: {error}") from None
            if (merkle.root_of_hashes(tree).hex(), len(tree)) != (leaf.state, leaf.chunks):
                raise _Withheld(f"the state of leaf {index} is not the one that was committed to")
            if index == 0 and layout != proof.contract.facts.layout:
                raise _Withheld("the contract describes other parameters than those of the first state")
            yield index, b"" if number is None else chunks.chunk(file, found, number)


def _answered(proof: Proof, asked: Asked) -> Shown:
    contract, leaves = proof.contract, proof.leaves
    if draw_chunk(contract, random.Random(asked.chunk_nonce)) != asked.chunk:  # noqa: S311 - drawn again
        raise Tampered("challenge.json asks for another chunk than its nonce gives")
    measured = None
    if asked.chunk is not None:
        measured = _answer(proof, asked.chunk)
    if asked.nonce is None:
        raise _Withheld("the worker never showed what its states are drawn by")
    drawn = draw(
        contract,
        leaves,
        measured=measured,
        audit_segments=asked.audit_segments,
        top_q=asked.top_q,
        pev_percent=asked.pev_percent,
        random=random.Random(asked.nonce),  # noqa: S311 - drawn again
        ends=asked.ends,
    )
    if (drawn.indices, drawn.segments, drawn.evaluations) != (asked.indices, asked.segments, asked.evaluations):
        raise Tampered("challenge.json asks for other states, segments or iterations than its nonce gives")
    absent = sorted({*asked.indices, *asked.further} - proof.states)
    missing = f"{len(absent)} of the states that were asked for are not in the folder, the first is"
    return Shown(measured, f"{missing} {absent[0]}" if absent else None)


def _answer(proof: Proof, number: int) -> Measured:
    if CHUNKS not in proof.entries:
        raise _Withheld(f"chunk {number} of the parameters was never shown")
    try:
        with opened(proof.root, CHUNKS) as file:
            return chunks.check(proof.contract, proof.leaves, number, file)
    except MalformedInput as error:
        raise _Withheld(str(error)) from None
