"""A proof as a folder of files that anybody can check: what was promised, what is committed to, and states to open.

The layout is specified in docs/proof-folder.md. Everything in such a folder was written by whoever wants to be believed, so
nothing is read before its size is known to be bearable, no link is followed, JSON must be spelled canonically, and no file
counts that the manifest does not list with its digest. Whether the run was honest is not decided here: see `verifier`.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import Field, StringConstraints

from labapex.errors import MalformedInput, Tampered, UsageError
from labapex.proof import merkle
from labapex.proof.chunks import answer_size
from labapex.protocol.canonical import Digest, M, Message, canonical, digest, parse
from labapex.protocol.contract import Contract, Environment
from labapex.protocol.records import Leaf, column, uncolumn
from labapex.protocol.replay import EpochSample
from labapex.protocol.requirements import NOTHING, Lock
from labapex.protocol.spec import BundlePath, Part
from labapex.protocol.verdict import SignedVerdict

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
CHUNKS = "chunks.bin"
MAX_LEAVES = 100_000
MAX_ITERATIONS = 1 << 24
MAX_DOCUMENT = 64 << 20  # bytes of a JSON document
MAX_CODE = 16 << 20  # bytes of all code files
MAX_STATE = 1 << 40
NO_PACKAGES = Lock()
_CHUNK = 1 << 20

FolderPath = Annotated[
    str,
    StringConstraints(
        pattern=r"^(contract\.json|environment\.json|files\.json|requirements\.json|challenge\.json|verdict\.json|leaves\.jsonl"
        r"|losses\.f64|times\.f64|chunks\.bin|weights\.safetensors|states/(0|[1-9][0-9]{0,5})\.safetensors|code/[0-9a-f]{64})$"
    ),
]
"""Every name that a proof folder may have: none leads out of it."""


class Entry(Message):
    path: FolderPath
    digest: Digest  # SHA-256 of the file
    size: int = Field(ge=0, le=MAX_STATE)


class Manifest(Message):
    """What the folder consists of. `files` are in the order of their paths, by code point; each is there once."""

    format: Literal[1] = 1
    origin: Literal["recorded", "platform"]  # "recorded": all kept states and the weights are there
    contract: Digest
    proof_root: Digest  # RFC 6962 root over the leaves' digests
    files: tuple[Entry, ...] = Field(max_length=2 * MAX_LEAVES)


class Files(Message):
    """`files.json`: the code and data that the contract's digests stand for."""

    code: tuple[Part, ...] = Field(min_length=1, max_length=4096)
    data: tuple[Part, ...] = Field(default=(), max_length=4096)
    data_root: BundlePath | None = None  # the folder below which all data lies


class Asked(Message):
    """`challenge.json`: what a platform asked the worker to open after the last leaf, and what it was drawn from."""

    chunk_nonce: Digest  # 256 random bits that seeded the draw of the chunk
    chunk: int | None = Field(
        ge=0
    )  # number of the chunk that every kept state was to show; None: there was none to look at
    nonce: Digest | None  # 256 random bits that seeded the draw of states; None: the chunk was never shown
    audit_segments: int = Field(ge=0, le=MAX_LEAVES)
    top_q: int = Field(ge=0, le=MAX_LEAVES)
    pev_percent: float = Field(gt=0, le=100)
    ends: bool  # of each segment the end state was to be opened too
    indices: tuple[int, ...] = Field(max_length=MAX_LEAVES)
    segments: tuple[int, ...] = Field(max_length=MAX_LEAVES)
    evaluations: tuple[EpochSample, ...] = Field(max_length=MAX_LEAVES)
    further: tuple[int, ...] = Field(default=(), max_length=MAX_LEAVES)  # states that doubts asked for in later rounds
    further_segments: tuple[int, ...] = Field(default=(), max_length=MAX_LEAVES)


@dataclass(frozen=True)
class Proof:
    """A folder that was read and is whole: all digests hold. What its content claims is still to be checked."""

    root: Path
    manifest: Manifest
    contract: Contract
    leaves: tuple[Leaf, ...]
    losses: tuple[float, ...]
    times: tuple[float, ...]
    files: Files
    requirements: Lock  # the packages that the script ran with, besides what its host brought along
    environment: Environment | None
    asked: Asked | None
    verdict: SignedVerdict | None

    @property
    def entries(self) -> dict[str, Entry]:
        return {entry.path: entry for entry in self.manifest.files}

    @property
    def states(self) -> frozenset[int]:
        """Leaves whose states are in the folder."""
        return frozenset(_index(e.path) for e in self.manifest.files if e.path.startswith("states/"))

    @property
    def weights(self) -> str | None:
        """SHA-256 of the weights file; of a platform's, as the verdict in the folder names it."""
        entry = self.entries.get(WEIGHTS)
        if entry is not None:
            return entry.digest
        return self.verdict.verdict.weights if self.verdict else None

    def state_path(self, index: int) -> Path:
        return self.root / "states" / f"{index}.safetensors"


# -- writing -----------------------------------------------------------------------------------------------------------

Content = bytes | Path


def build(
    *,
    origin: Literal["recorded", "platform"],
    contract: Contract,
    leaves: Sequence[Leaf],
    losses: Sequence[float],
    times: Sequence[float],
    files: Files,
    code: Iterable[bytes],
    requirements: Lock = NO_PACKAGES,
    environment: Environment | None,
    states: Mapping[int, Path],
    weights: Path | None = None,
    asked: Asked | None = None,
    chunks: Path | None = None,
    verdict: SignedVerdict | None = None,
) -> tuple[Manifest, dict[str, Content]]:
    """The manifest of a proof and what its files hold. Reads each state once, for its digest."""
    contents: dict[str, Content] = {
        "contract.json": canonical(contract),
        "files.json": canonical(files),
        "leaves.jsonl": b"".join(canonical(leaf) + b"\n" for leaf in leaves),
        "losses.f64": column(list(losses)),
        "times.f64": column(list(times)),
    }
    optional = {
        "requirements.json": requirements if contract.requirements != NOTHING else None,
        "environment.json": environment,
        "challenge.json": asked,
        "verdict.json": verdict,
    }
    contents |= {path: canonical(document) for path, document in optional.items() if document is not None}
    contents |= {f"code/{hashlib.sha256(text).hexdigest()}": text for text in code}
    contents |= {f"states/{index}.safetensors": path for index, path in states.items()}
    if weights is not None:
        contents[WEIGHTS] = weights
    if chunks is not None:
        contents[CHUNKS] = chunks
    manifest = Manifest(
        origin=origin,
        contract=digest(contract),
        proof_root=proof_root(leaves),
        files=tuple(_entry(path, contents[path]) for path in sorted(contents)),
    )
    return manifest, contents


def store(manifest: Manifest, contents: Mapping[str, Content], root: Path) -> None:
    """Write a folder that does not exist yet. Files on the same disk are moved into it, others are copied."""
    root.mkdir(mode=0o700)
    for entry in manifest.files:
        target, content = root / entry.path, contents[entry.path]
        target.parent.mkdir(mode=0o700, exist_ok=True)
        if isinstance(content, bytes):
            with new_file(target) as file:
                file.write(content)
        else:
            _take(content, target)
    with new_file(root / MANIFEST) as file:  # last: a folder without it is no proof
        file.write(canonical(manifest))


def proof_root(leaves: Iterable[Leaf]) -> str:
    """The RFC 6962 root over the digests of the leaves (32 bytes each), in hexadecimal."""
    return merkle.root(bytes.fromhex(leaf.digest()) for leaf in leaves).hex()


def parts_digest(parts: Sequence[Part]) -> str:
    """`Contract.code` and `Contract.data`: SHA-256 of the canonical list of parts."""
    return digest([part.model_dump(mode="json") for part in parts])


# -- reading -----------------------------------------------------------------------------------------------------------


def read(root: Path) -> Proof:
    """Read a proof folder and check every digest in it.

    Raises `UsageError` for what is no proof folder at all, `MalformedInput` for what does not follow the specification and
    `Tampered` where a digest does not hold.
    """
    if not (root / MANIFEST).is_file():
        raise UsageError(f"{root} is no proof folder: it has no {MANIFEST}; `labapex record` makes one")
    manifest = _document(Manifest, MANIFEST, _read(root, MANIFEST, MAX_DOCUMENT))
    paths = [entry.path for entry in manifest.files]
    if paths != sorted(set(paths)):
        raise MalformedInput(f"{MANIFEST}: files must be listed once each, in the order of their paths")
    entries = {entry.path: entry for entry in manifest.files}
    contract = _document(Contract, "contract.json", _content(root, entries, "contract.json", MAX_DOCUMENT))
    check_bounds(contract)
    if digest(contract) != manifest.contract:
        raise Tampered("contract.json is not the contract that the manifest names")
    leaves = _leaves(_content(root, entries, "leaves.jsonl", MAX_DOCUMENT))
    if proof_root(leaves) != manifest.proof_root:
        raise Tampered("leaves.jsonl does not have the proof root that the manifest names")
    files = _document(Files, "files.json", _content(root, entries, "files.json", MAX_DOCUMENT))
    if (parts_digest(files.code), parts_digest(files.data)) != (contract.code, contract.data):
        raise Tampered("files.json does not list the code and data of the contract")
    proof = Proof(
        root=root,
        manifest=manifest,
        contract=contract,
        leaves=leaves,
        losses=_column(root, entries, "losses.f64"),
        times=_column(root, entries, "times.f64"),
        files=files,
        requirements=_requirements(root, entries, contract),
        environment=_optional(Environment, root, entries, "environment.json"),
        asked=_optional(Asked, root, entries, "challenge.json"),
        verdict=_optional(SignedVerdict, root, entries, "verdict.json"),
    )
    _check_verdict(proof)
    _check_files(proof)
    return proof


def check_bounds(contract: Contract) -> None:
    """Raise `MalformedInput` for a contract whose mere enumeration would take too long."""
    if contract.iterations > MAX_ITERATIONS:
        raise MalformedInput(f"the contract is of {contract.iterations} iterations; at most {MAX_ITERATIONS} are read")
    if contract.epochs + contract.iterations // contract.checkpoint_every >= MAX_LEAVES:
        raise MalformedInput(f"the contract makes more than {MAX_LEAVES} leaves")
    if contract.after is not None:
        steps = contract.leaf_steps()
        goes_on = len(steps) - (0 if contract.gone else 1)
        for leaf in (handover.leaf for handover in contract.handovers):
            if leaf.index >= goes_on or leaf.step != steps[leaf.index]:
                raise MalformedInput(
                    f"the run was handed over behind leaf {leaf.index}, which is none that it goes on from"
                )


def code_text(proof: Proof, part: Part) -> bytes | None:
    """The bytes of a code file, where the folder holds them."""
    entry = proof.entries.get(f"code/{part.digest}")
    return None if entry is None else _checked(proof.root, entry, MAX_CODE)


@contextmanager
def opened(root: Path, path: str) -> Iterator[BinaryIO]:
    """A file of a folder that others wrote: an ordinary one, reached over no link. Raises `MalformedInput`."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    parent, _, name = path.rpartition("/")
    try:
        folder = os.open(root / parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (os.O_NOFOLLOW if parent else 0))
        try:
            descriptor = os.open(name, flags, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise MalformedInput(f"{path} cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise MalformedInput(f"{path} is not an ordinary file")
        yield file


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file of mode 0600 that was not there before."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        yield file


def _document(model: type[M], path: str, data: bytes) -> M:
    document = parse(model, data, limit=MAX_DOCUMENT)
    try:
        plain = canonical(document)
    except (ValueError, RecursionError) as error:
        raise MalformedInput(f"{path}: {error}") from None
    if plain != data:
        raise MalformedInput(f"{path} is not in canonical form (RFC 8785)")
    return document


def _optional(model: type[M], root: Path, entries: Mapping[str, Entry], path: str) -> M | None:
    return _document(model, path, _content(root, entries, path, MAX_DOCUMENT)) if path in entries else None


def _requirements(root: Path, entries: Mapping[str, Entry], contract: Contract) -> Lock:
    """The contract's packages. There is no file of none."""
    locked = _optional(Lock, root, entries, "requirements.json") or Lock()
    if digest(locked) != contract.requirements:
        raise Tampered("requirements.json does not hold the packages of the contract")
    return locked


def _content(root: Path, entries: Mapping[str, Entry], path: str, limit: int) -> bytes:
    if path not in entries:
        raise MalformedInput(f"{path} is missing")
    return _checked(root, entries[path], limit)


def _checked(root: Path, entry: Entry, limit: int) -> bytes:
    """The bytes of a small file, if they are those of the manifest."""
    if entry.size > limit:
        raise MalformedInput(f"{entry.path} has {entry.size} bytes, at most {limit} are accepted")
    data = _read(root, entry.path, entry.size)
    if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.digest:
        raise Tampered(f"{entry.path} is not the file that the manifest names")
    return data


def _read(root: Path, path: str, limit: int) -> bytes:
    with opened(root, path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise MalformedInput(f"{path} has more than {limit} bytes")
    return data


def _leaves(data: bytes) -> tuple[Leaf, ...]:
    lines = data.split(b"\n")
    if lines.pop() or len(lines) > MAX_LEAVES:
        raise MalformedInput(f"leaves.jsonl must be of at most {MAX_LEAVES} lines, each with its line feed")
    return tuple(_document(Leaf, f"leaves.jsonl, line {n}", line) for n, line in enumerate(lines, start=1))


def _column(root: Path, entries: Mapping[str, Entry], path: str) -> tuple[float, ...]:
    data = _content(root, entries, path, 8 * MAX_ITERATIONS)
    if len(data) % 8:
        raise MalformedInput(f"{path} is no column of float64")
    return tuple(uncolumn(data))


def _check_verdict(proof: Proof) -> None:
    if proof.verdict is None:
        return
    stated = proof.verdict.verdict
    if (stated.contract, stated.proof_root) != (proof.manifest.contract, proof.manifest.proof_root):
        raise Tampered("verdict.json is the verdict on another run")


def _check_files(proof: Proof) -> None:
    """States, weights and code: of the size they should have, and with their digests."""
    manifest = proof.manifest
    for entry in manifest.files:
        if entry.path.startswith("states/"):
            index = _index(entry.path)
            if index >= len(proof.leaves) or proof.leaves[index].size != entry.size:
                raise Tampered(f"{entry.path} does not have the size that its leaf commits to")
    if CHUNKS in proof.entries:
        number = proof.asked.chunk if proof.asked is not None else None
        if number is None or proof.entries[CHUNKS].size != answer_size(proof.contract, proof.leaves, number):
            raise Tampered(f"{CHUNKS} does not have the size that contract, leaves and challenge.json give")
    code = {part.digest: part.size for part in proof.files.code}
    present = {e.digest: e.size for e in manifest.files if e.path == f"code/{e.digest}"}
    if len(present) != sum(e.path.startswith("code/") for e in manifest.files) or not present.items() <= code.items():
        raise Tampered("code/ holds what is not the contract's code")
    if sum(present.values()) > MAX_CODE:
        raise MalformedInput(f"code/ holds more than {MAX_CODE} bytes")
    if manifest.origin == "recorded":
        absent = proof.contract.kept_leaves() & set(range(len(proof.leaves))) - proof.states
        if absent or WEIGHTS not in proof.entries:
            missing = f"the state of leaf {min(absent)}" if absent else WEIGHTS
            raise MalformedInput(f"a recorded proof holds all kept states and the weights; {missing} is missing")
    for entry in manifest.files:
        if entry.path.startswith(("states/", "code/")) or entry.path in (WEIGHTS, CHUNKS):
            _check_digest(proof.root, entry)


def _check_digest(root: Path, entry: Entry) -> None:
    state, left = hashlib.sha256(), entry.size
    with opened(root, entry.path) as file:
        while chunk := file.read(min(_CHUNK, left + 1)):
            state.update(chunk)
            left -= len(chunk)
            if left < 0:
                break
    if left or state.hexdigest() != entry.digest:
        raise Tampered(f"{entry.path} is not the file that the manifest names")


def _index(path: str) -> int:
    return int(path.removeprefix("states/").removesuffix(".safetensors"))


def _entry(path: str, content: Content) -> Entry:
    if isinstance(content, bytes):
        return Entry(path=path, digest=hashlib.sha256(content).hexdigest(), size=len(content))
    with content.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return Entry(path=path, digest=found, size=os.fstat(file.fileno()).st_size)


def _take(source: Path, target: Path) -> None:
    try:
        source.rename(target)
        if os.geteuid() == 0:  # root's sandbox gave it to another user
            os.chown(target, 0, 0)
        target.chmod(0o600)
    except OSError:  # another disk
        with source.open("rb") as file, new_file(target) as copy:
            for chunk in iter(lambda: file.read(_CHUNK), b""):
                copy.write(chunk)


def train_seconds(times: Sequence[float]) -> float:
    """From the first iteration's end to the last one's, as the prover's clock told it."""
    return (
        max(0.0, times[-1] - times[0]) if len(times) > 1 and all(b >= a for a, b in itertools.pairwise(times)) else 0.0
    )
