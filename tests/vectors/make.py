"""Makes the good proof folders of this directory: one for each feature of the format, the same bytes on one class of hosts.

    python -m tests.vectors.make

The script is `job/train.py`. Clocks are set and nonces are chosen, so all that a host adds is its arithmetic.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.labapex.proof.forge import replayer
from tests.labapex.proof.lab import Lab

from labapex import sealing
from labapex.proof import chunks, folder, sources, verifier
from labapex.proof.challenge import Opening, draw, draw_chunk
from labapex.proof.chunks import Measured
from labapex.proof.folder import Asked, Proof
from labapex.protocol.contract import Contract, Handover
from labapex.protocol.records import Leaf
from labapex.protocol.replay import PreflightReport, PreflightRequest, ReplayRequest
from labapex.protocol.verdict import Cost, SignedVerdict

HERE = Path(__file__).parent
JOB = HERE / "job"
SEED = hashlib.sha256(b"a seed for vectors").hexdigest()
BEGAN = 1_700_000_000.0  # Unix time of all that is dated here
KEY = hashlib.sha256(b"a key for vectors; it signs nothing else").digest()
KEY_ID = "vectors"


@dataclass(frozen=True)
class Terms:
    """`job`: 0 for a run that nobody ordered. `held`: the leaves of a host that was lost, behind the last of which another one
    went on."""

    every: int
    epochs: int = 2
    keep: int = 1
    args: tuple[str, ...] = ()
    job: int = 0
    held: tuple[int, ...] = ()


TERMS = {
    "recorded": Terms(every=2),
    "sparse": Terms(every=1, keep=3),
    "platform": Terms(every=1, args=("--width", "586", "--momentum", "0"), job=1),
    "handover": Terms(every=1, job=2, held=(0, 2, 4)),
}


def make(root: Path, lab: Lab) -> None:
    """Write all folders below `root`, which must not hold them yet."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, terms in TERMS.items():
            _Run(lab, Path(scratch) / name, terms).write(root / name)


class _Run:
    """One run of the script, recorded in the folder `work`."""

    def __init__(self, lab: Lab, work: Path, terms: Terms) -> None:
        self.lab, self.work, self.terms = lab, work, terms
        self.found = sources.collect(JOB / "train.py", None)
        (work / "work").mkdir(parents=True)
        self.found.fill(work / "work")
        preflight = self._preflight()
        self.environment = preflight.environment
        self.contract = self._contract(preflight)
        made = lab.record(self.contract, work)
        self.leaves, self.losses = made.leaves, made.losses
        self.states = {index: work / "states" / f"{index}.safetensors" for index in self.contract.kept_leaves()}
        if terms.held:
            self._hand_over(terms.held)

    def _hand_over(self, held: tuple[int, ...]) -> None:
        """What is there behind the last of these leaves comes from a second host."""
        first = self.contract
        leaf, kept = self.leaves[held[-1]], {index: self.states[index] for index in held}
        handover = Handover(lease=first.lease, leaf=leaf, held=held)
        self.contract = first.model_copy(update={"lease": UUID(int=first.lease.int + 1), "handovers": (handover,)})
        second = self.work / "second"
        self.found.fill(second / "work")
        made = self.lab.take_over(self.contract, second, self.states[leaf.index])
        self.leaves = [*self.leaves[: leaf.index + 1], *made.leaves]
        self.losses = [*self.losses[: leaf.step], *made.losses]
        own = {each.index: second / "states" / f"{each.index}.safetensors" for each in made.leaves}
        self.states = kept | own

    def write(self, root: Path) -> None:
        if not self.terms.job:
            folder.store(*self._build(origin="recorded", states=self.states, weights=self._weights()), root)
            return
        asked, answer, opening = self._challenge()
        told = {
            "origin": "platform",
            "states": {index: self.states[index] for index in opening.indices},
            "asked": asked,
            "chunks": answer,
        }
        draft = self.work / "draft"
        _copied(self._build(**told), draft)
        _copied(self._build(**told, verdict=self._verdict(folder.read(draft))), root)

    def _preflight(self) -> PreflightReport:
        request = PreflightRequest(
            script="train.py",
            args=self.terms.args,
            epochs=self.terms.epochs,
            iterations_per_epoch=None,
            checkpoint_every=self.terms.every,
            threads=1,
            seed=SEED,
        )
        answer = self.lab.ask("preflight", self.work, request=request.model_dump(mode="json"))
        return PreflightReport.model_validate(answer)

    def _contract(self, preflight: PreflightReport) -> Contract:
        assert preflight.facts is not None, preflight.problem
        return Contract(
            job=UUID(int=self.terms.job),
            lease=UUID(int=2 * self.terms.job),
            seed=SEED,
            code=folder.parts_digest(self.found.files.code),
            data=folder.parts_digest(self.found.files.data),
            script="train.py",
            args=self.terms.args,
            epochs=self.terms.epochs,
            checkpoint_every=self.terms.every,
            keep_every=self.terms.keep,
            upload_every=2 if self.terms.held else 0,
            threads=1,
            facts=preflight.facts,
        )

    def _build(self, **told: Any) -> tuple[folder.Manifest, dict[str, folder.Content]]:
        return folder.build(
            contract=self.contract,
            leaves=self.leaves,
            losses=self.losses,
            times=[BEGAN + n for n in range(len(self.losses))],
            files=self.found.files,
            code=[(JOB / part.path).read_bytes() for part in self.found.files.code],
            environment=self.environment,
            **told,
        )

    def _weights(self) -> Path:
        last = self.leaves[-1]
        request = ReplayRequest(contract=self.contract, segments=(), digests={last.index: last.state})
        self.lab.ask("replay", self.work, request=request.model_dump(mode="json"))
        return self.work / folder.WEIGHTS

    def _challenge(self) -> tuple[Asked, Path, Opening]:
        """The last chunk, which is the smallest, and a draw that tells much."""
        count = chunks.count(self.contract.facts.layout)
        chunk_nonce = next(n for n in _nonces("chunk") if draw_chunk(self.contract, random.Random(n)) == count - 1)
        answer = self.work / folder.CHUNKS
        shown = chunks.asked(self.contract, self.leaves)
        answer.write_bytes(b"".join(self._shown(self.leaves[index], count - 1) for index in shown))
        with answer.open("rb") as file:
            measured = chunks.check(self.contract, self.leaves, count - 1, file)
        drawn = ((n, self._draw(n, measured)) for n in _nonces("states"))
        nonce, opening = next((n, each) for n, each in drawn if self._tells(each))
        asked = Asked(
            chunk_nonce=chunk_nonce,
            chunk=count - 1,
            nonce=nonce,
            audit_segments=1,
            top_q=0,
            pev_percent=50,
            ends=False,
            indices=opening.indices,
            segments=opening.segments,
            evaluations=opening.evaluations,
        )
        return asked, answer, opening

    def _tells(self, opening: Opening) -> bool:
        """One state stays closed, and that is opened from which another host went on."""
        after = self.contract.after
        return len(opening.indices) < len(self.leaves) and (after is None or after.index in opening.indices)

    def _shown(self, leaf: Leaf, number: int) -> bytes:
        with self.states[leaf.index].open("rb") as state:
            return chunks.show(state, self.states[leaf.index].with_suffix(".tree").read_bytes(), number)

    def _draw(self, nonce: str, measured: Measured) -> Opening:
        return draw(
            self.contract,
            self.leaves,
            measured=measured,
            audit_segments=1,
            top_q=0,
            pev_percent=50,
            random=random.Random(nonce),
            ends=False,
        )

    def _verdict(self, proof: Proof) -> SignedVerdict:
        found = verifier.verify(
            proof,
            policy=verifier.AuditPolicy(),
            random=random.Random(0),
            replay=replayer(self.lab, proof, JOB / "data", self.work / "replay"),
        )
        cost = Cost(**{**dict(found.cost), "verify_seconds": 1.0})
        stated = found.model_copy(update={"issued_at": BEGAN + 60, "cost": cost})
        return SignedVerdict(verdict=stated, key_id=KEY_ID, signature=sealing.sign(KEY, stated))


def _copied(built: tuple[folder.Manifest, dict[str, folder.Content]], root: Path) -> None:
    """`folder.store` moves files; these are needed once more."""
    manifest, contents = built
    plain = {path: c if isinstance(c, bytes) else c.read_bytes() for path, c in contents.items()}
    folder.store(manifest, plain, root)


def _nonces(purpose: str) -> Iterator[str]:
    return (hashlib.sha256(f"{purpose} {n}".encode()).hexdigest() for n in range(1000))


if __name__ == "__main__":
    for name in TERMS:
        shutil.rmtree(HERE / name, ignore_errors=True)
    laboratory = Lab()
    make(HERE, laboratory)
    laboratory.close()
