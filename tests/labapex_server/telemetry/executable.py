"""The other side in memory: an executable that makes the frames of a lease's log from invented losses."""

from __future__ import annotations

import hashlib
import random
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from labapex.proof import merkle
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Contract, ScriptFacts
from labapex.protocol.frames import Data, Fin, fin_bytes, frame_hash, genesis
from labapex.protocol.records import Console, FrameBody, Leaf, Sample, column
from labapex.sealing import new_key, new_signing_keys, public_signing_key, seal_frame, sign


def a_contract(
    *, epochs: int = 2, per_epoch: int = 7, every: int = 3, lease: uuid.UUID | None = None, job: uuid.UUID | None = None
) -> Contract:
    return Contract(
        job=job or uuid.uuid4(),
        lease=lease or uuid.uuid4(),
        seed="5e" * 32,
        code="0c" * 32,
        data="0d" * 32,
        script="train.py",
        args=(),
        epochs=epochs,
        checkpoint_every=every,
        threads=1,
        facts=ScriptFacts(
            loop="train.py:9",
            iterations_per_epoch=per_epoch,
            has_loader=True,
            gradients_are_state=False,
            parameters=10,
            state_bytes=100,
        ),
    )


@dataclass
class Executable:
    """Makes all frames of a run. `sizes` are the sizes of its state files by leaf index."""

    contract: Contract
    run_key: bytes = field(default_factory=new_key)
    signing_key: bytes = field(default_factory=lambda: new_signing_keys()[0])
    frame_losses: int = 4
    leaf_lag: int = 0  # frames by which leaves come after their losses
    state_size: int = 128
    update_norm: float = 0.5
    states: list[str] = field(default_factory=list)  # digests by leaf; empty: invented ones
    losses: list[float] = field(default_factory=list)
    frames: list[Data] = field(default_factory=list)

    def __post_init__(self) -> None:
        source = random.Random(7)
        if not self.losses:
            self.losses = [source.random() for _ in range(self.contract.iterations)]
        leaves = list(self.leaves())
        begin = 0 if self.contract.after is None else self.contract.after.step
        stretches = [
            self.losses[start : start + self.frame_losses]
            for start in range(begin, len(self.losses), self.frame_losses)
        ]
        stretches += [[]] * (1 + self.leaf_lag)
        ends = list(accumulate(map(len, stretches), initial=begin))
        sent, done = 0, begin
        for number, stretch in enumerate(stretches):
            reached = ends[max(0, number + 1 - self.leaf_lag)]
            due = [leaf for leaf in leaves[sent:] if leaf.step <= reached]
            sent += len(due)
            self.append(stretch, first=done, leaves=tuple(due))
            done += len(stretch)

    @property
    def public_key(self) -> bytes:
        return public_signing_key(self.signing_key)

    def leaves(self) -> Iterator[Leaf]:
        prev, start, after = digest(self.contract), 0, self.contract.after
        if after is not None:
            prev, start = after.digest(), after.step
        for index, step in enumerate(self.contract.leaf_steps()):
            if after is not None and index <= after.index:
                continue
            leaf = Leaf(
                index=index,
                step=step,
                state=self.root(index),
                size=self.state_size,
                chunks=3,
                settings="5e" * 32,
                update_norm=self.update_norm if index else 0.0,
                batches="ba" * 32 if index else hashlib.sha256().hexdigest(),
                losses=hashlib.sha256(column(self.losses[start:step])).hexdigest(),
                prev=prev,
            )
            yield leaf
            prev, start = leaf.digest(), step

    def root(self, index: int) -> str:
        """A state's digest; where its parameters have a layout, the root over a tree of a header and their chunks."""
        if self.states:
            return self.states[index]
        if not self.contract.facts.layout:
            return hashlib.sha256(f"state {index}".encode()).hexdigest()
        return merkle.root(self.tree(index)).hex()

    def tree(self, index: int) -> list[bytes]:
        """Parameters that move by 0.25 in each segment, all in one chunk; and another tensor."""
        (stretch,) = self.contract.facts.layout
        numbers = [index / 4, *[1.0] * (stretch.size // 4 - 1)]
        return [f"header {index}".encode(), struct.pack(f"<{len(numbers)}f", *numbers), f"others {index}".encode()]

    def answer(self) -> bytes:
        """The honest answer about the only chunk."""
        parts = []
        for index in range(len(self.contract.leaf_steps())):
            entries = self.tree(index)
            parts += [entries[1], *merkle.inclusion_proof(entries, 1)]
        return b"".join(parts)

    @property
    def head(self) -> bytes:
        return self.frames[-1].hash if self.frames else genesis(self.contract.lease)

    def append(self, losses: list[float], *, first: int, leaves: tuple[Leaf, ...] = (), **changes: object) -> Data:
        """One more frame with these losses."""
        body = FrameBody(
            losses=column(losses),
            times=column([1_700_000_000.0 + first + i for i in range(len(losses))]),
            samples=(a_sample(first),),
            console=(Console(stream="stdout", text=f"iteration {first}\n"),),
            leaves=leaves,
        )
        return self.append_body(body.model_copy(update=changes), first=first)

    def append_body(self, body: FrameBody, *, first: int) -> Data:
        frame = seal_frame(
            self.run_key, lease=self.contract.lease, seq=len(self.frames), first=first, prev=self.head, body=body
        )
        self.frames.append(frame)
        return frame

    def fin(self) -> Fin:
        fields = {
            "lease": self.contract.lease,
            "seq": len(self.frames),
            "total": len(self.losses),
            "head": self.head,
        }
        return Fin(signature=sign(self.signing_key, fin_bytes(**fields)), **fields)  # type: ignore[arg-type]


def a_sample(at: float) -> Sample:
    return Sample(
        at=1_700_000_000 + at, source="cpu", device="a CPU", utilisation=50, memory=1 << 30, memory_total=1 << 32
    )


def rehashed(frame: Data, **changes: object) -> Data:
    """A frame with other fields and the hash that fits them: what a liar sends, not what a bad line does."""
    changed = frame.model_copy(update=changes)
    fields = {name: getattr(changed, name) for name in ("lease", "seq", "first", "n", "prev", "payload")}
    return changed.model_copy(update={"hash": frame_hash(**fields)})
