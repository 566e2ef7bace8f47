"""Every parser of what strangers send, as a function of bytes; docs/threat-model.md says who they are.

A target may raise what it names, and nothing else: any other error is a crash, and so is an input that takes very long."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import UUID

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from labapex import certificate, environments, executable, installed, sealing, transparency, watch
from labapex.cli import spec_file
from labapex.errors import MalformedInput, Tampered, UsageError
from labapex.proof import chunks, folder, statefile
from labapex.protocol import frames
from labapex.protocol.api import JobRequest
from labapex.protocol.canonical import canonical, digest, parse
from labapex.protocol.manifest import MAX_MANIFEST, Manifest
from labapex.protocol.records import uncolumn
from labapex.protocol.requirements import Lock, Wheel, requirement
from labapex_runner.events import EventReader

CORPUS = Path(__file__).with_name("corpus")
VECTOR = Path(__file__).parents[1] / "vectors" / "platform"
RUN_KEY = bytes(range(32))
SIGNING_KEY = hashlib.sha256(b"a key for fuzzing; it signs nothing else").digest()
LEASE = UUID(int=7)
PROOF_FILES = (
    "manifest.json", "contract.json", "files.json", "leaves.jsonl", "losses.f64", "times.f64", "environment.json",
    "challenge.json", "verdict.json",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """`refuses`: how it says that the bytes are none of its kind."""

    name: str
    take: Callable[[bytes], None]
    refuses: tuple[type[Exception], ...] = (MalformedInput,)

    def __call__(self, data: bytes) -> bool:
        """Whether it takes these bytes."""
        try:
            self.take(data)
        except self.refuses:
            return False
        return True

    @property
    def corpus(self) -> Path:
        return CORPUS / self.name


@cache
def _scratch() -> Path:
    """A folder in memory where there is one, for parsers that read files. It goes with the process."""
    memory = Path("/dev/shm")
    place = tempfile.TemporaryDirectory(prefix="labapex-fuzz-", dir=memory if memory.is_dir() else None)
    _KEPT.append(place)
    return Path(place.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _file(data: bytes, name: str = "input") -> Path:
    path = _scratch() / name
    path.write_bytes(data)
    return path


# -- between executable, agent and platform ----------------------------------------------------------------------------


def _messages(data: bytes) -> None:
    """One message, to each of the four who hear some."""
    taken = 0
    for hears in (frames.from_executable, frames.to_executable, frames.from_agent, frames.to_agent):
        try:
            hears(data)
            taken += 1
        except MalformedInput:
            continue
    if not taken:
        raise MalformedInput("nobody takes it")


def _frame(data: bytes) -> None:
    """What an executable sealed, who may be anybody's."""
    header = frames.frame_header(lease=LEASE, seq=0, first=0, n=len(data) % 3, prev=bytes(32))
    payload = AESGCM(RUN_KEY).encrypt(bytes(12), data, header)
    sent = frames.Data(
        lease=LEASE, seq=0, first=0, n=len(data) % 3, prev=bytes(32), payload=payload, hash=hashlib.sha256(payload).digest()
    )  # fmt: skip
    body = sealing.open_frame(RUN_KEY, sent)
    for column in (body.losses, body.times, *(series.values for series in body.series)):
        uncolumn(column)
    for leaf in body.leaves:
        leaf.digest()


def _events(data: bytes) -> None:
    """What a trainer writes, in pieces."""
    reader = EventReader()
    for start in range(0, len(data), 7):
        list(reader.feed(data[start : start + 7]))


# -- what a worker starts ----------------------------------------------------------------------------------------------


def _manifest(data: bytes) -> None:
    manifest = parse(Manifest, data, limit=MAX_MANIFEST)
    canonical(manifest)
    digest(manifest.requirements)
    folder.check_bounds(manifest.contract)
    manifest.contract.leaf_steps()
    manifest.contract.stints()


def _executable(data: bytes) -> None:
    executable.inspect(_file(data))


def _wheel(data: bytes) -> None:
    """A wheel that is the locked one, whatever it holds."""
    if not data:
        raise MalformedInput("a lock names no empty file")
    name, sha256 = "alpha-1.0-py3-none-any.whl", hashlib.sha256(data).hexdigest()
    wheel = Wheel(name="alpha", version="1.0", file=name, sha256=sha256, size=len(data))
    target = _scratch() / "unpacked"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    environments.unpack(Lock(python="3.11", wheels=(wheel,)), {wheel: _file(data)}, target, limit=1 << 20)


def _record(data: bytes) -> None:
    """The list of torch's files."""
    there = _scratch() / "site-packages"
    for place in ("torch", "torch-1.dist-info"):
        (there / place).mkdir(parents=True, exist_ok=True)
    (there / "torch" / "version.py").write_text("__version__ = '2.13.0+cpu'\n")
    (there / "torch-1.dist-info" / "RECORD").write_bytes(data)
    found = installed.find([there])
    assert found is not None
    found.altered(found.sample("seed"))


def _events_of_memory(data: bytes) -> None:
    watch.ran_out(_file(data))


# -- what a client sends -----------------------------------------------------------------------------------------------


def _job(data: bytes) -> None:
    request = parse(JobRequest, data, limit=1 << 20)
    canonical(request)
    request.spec.arguments()


def _yaml(data: bytes) -> None:
    spec_file.load(_file(data, "labapex.yaml"), {})


def _requirement(data: bytes) -> None:
    requirement(data.decode(errors="replace"))


# -- what a worker hands in, and a stranger hands on -------------------------------------------------------------------


def _state(data: bytes) -> None:
    with _file(data).open("rb") as file:
        found = statefile.layout(file)
        found.stretches()
        statefile.tree(file)
        statefile.part(file, found.stream(found.tensors), 3, 1000)


@cache
def _proof() -> Path:
    root = _scratch() / "proof"
    shutil.copytree(VECTOR, root)
    return root


@cache
def _read_proof() -> folder.Proof:
    return folder.read(VECTOR)


def _chunks(data: bytes) -> None:
    """An answer to the challenge's first round."""
    read = _read_proof()
    assert read.asked is not None
    assert read.asked.chunk is not None
    chunks.check(read.contract, read.leaves, read.asked.chunk, io.BytesIO(data))


def _folder(data: bytes) -> None:
    """A proof folder in which one file, named by the first byte, is another one, and the manifest knows."""
    root = _proof()
    name, content = PROOF_FILES[data[0] % len(PROOF_FILES) if data else 0], data[1:]
    try:
        (root / name).write_bytes(content)
        if name != folder.MANIFEST:
            manifest = json.loads((VECTOR / folder.MANIFEST).read_bytes())
            for entry in manifest["files"]:
                if entry["path"] == name:
                    entry |= {"digest": hashlib.sha256(content).hexdigest(), "size": len(content)}
            if name == "contract.json":
                manifest["contract"] = hashlib.sha256(content).hexdigest()
            (root / folder.MANIFEST).write_bytes(canonical(manifest))
        folder.read(root)
    finally:
        for each in (name, folder.MANIFEST):
            shutil.copyfile(VECTOR / each, root / each)


def _certificate(data: bytes) -> None:
    bundle = parse(certificate.CertificateBundle, data, limit=certificate.MAX_BUNDLE)
    public = sealing.public_signing_key(SIGNING_KEY)
    certificate.check(bundle, certificate.PlatformKeys(verdict=public, log=public))


def _statement(data: bytes) -> None:
    """What a platform signed: its key is trusted, and its bytes are parsed."""
    public = sealing.public_signing_key(SIGNING_KEY)
    signature = certificate.Signature(
        keyid=certificate.key_id(public),
        sig=base64.b64encode(sealing.sign(SIGNING_KEY, certificate.pae(data))).decode(),
    )
    if len(data) > certificate.MAX_STATEMENT:
        raise MalformedInput("an envelope does not hold it")
    envelope = certificate.Envelope(payload=base64.b64encode(data).decode(), signatures=(signature,))
    certificate.open_envelope(envelope, public)


def _checkpoint(data: bytes) -> None:
    transparency.open_checkpoint(data.decode(errors="replace"), sealing.public_signing_key(SIGNING_KEY))


TARGETS = {
    target.name: target
    for target in (
        Target("message", _messages),
        Target("frame", _frame),
        Target("events", _events),
        Target("manifest", _manifest),
        Target("executable", _executable),
        Target("wheel", _wheel, (MalformedInput,)),
        Target("record", _record),
        Target("memory-events", _events_of_memory, ()),
        Target("job", _job),
        Target("yaml", _yaml, (UsageError,)),
        Target("requirement", _requirement, (ValueError,)),
        Target("state", _state),
        Target("chunks", _chunks),
        Target("folder", _folder, (MalformedInput, UsageError)),
        Target("certificate", _certificate),
        Target("statement", _statement),
        Target("checkpoint", _checkpoint, (Tampered,)),
    )
}
