"""The public log of certificates, as its readers see it: a signed tree head and two kinds of proof. Pure, no I/O.

A tree head is a checkpoint (C2SP tlog-checkpoint) in a signed note (C2SP signed-note): origin, size and Merkle root as
text, then a line for each signature. An inclusion proof shows that an entry is under a head; a consistency proof shows
that the log of a later head begins with the log of an earlier one, so that nothing was changed or taken out since.
Hashing is RFC 6962's (`labapex.proof.merkle`). What does not hold raises `Tampered`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from pydantic import Field

from labapex.errors import Tampered
from labapex.proof import merkle
from labapex.protocol.canonical import Digest, Message
from labapex.sealing import public_signing_key, sign, verify

MAX_CHECKPOINT = 4096
"""Characters of a signed tree head."""

MAX_SIZE = 2**48
_MAX_PATH = 64  # an inclusion proof of a log of 2^48 entries has 48 hashes at most, a consistency proof 49
_ED25519 = b"\x01"  # the signature type of signed notes
_SIGNATURE = re.compile(r"— ([^ +\n]+) ([A-Za-z0-9+/=]+)")
_SIZE = re.compile(r"0|[1-9][0-9]{0,14}")


@dataclass(frozen=True)
class Checkpoint:
    """A tree head: the log of `origin` held `size` entries under `root` (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def body(self) -> str:
        """The signed text: three lines, each with its newline."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


class Inclusion(Message):
    """That an entry is number `index`, from 0, of the first `size` entries. Hashes run from the leaf to the root."""

    index: int = Field(ge=0, lt=MAX_SIZE)
    size: int = Field(ge=1, le=MAX_SIZE)
    hashes: tuple[Digest, ...] = Field(max_length=_MAX_PATH)


class Consistency(Message):
    """That the log of `second` entries begins with the log of `first` entries."""

    first: int = Field(ge=1, le=MAX_SIZE)
    second: int = Field(ge=1, le=MAX_SIZE)
    hashes: tuple[Digest, ...] = Field(max_length=_MAX_PATH)


class Head(Message):
    """What the log answers when it is asked for its present head: a signed note, see `open_checkpoint`."""

    checkpoint: str = Field(max_length=MAX_CHECKPOINT)


class Entries(Message):
    """Entries of the log in order: number `first`, and those after it. Each is standard base64 of its bytes."""

    first: int = Field(ge=0)
    entries: tuple[str, ...] = Field(max_length=1000)


def origin(public_key: bytes) -> str:
    """The log's name. It follows from its key, so that whoever has pinned the key has pinned the log."""
    return f"labapex/log/{hashlib.sha256(public_key).hexdigest()[:16]}"


def key_hash(name: str, public_key: bytes) -> bytes:
    """The four bytes by which a signed note names its key: SHA-256(name | newline | 0x01 | key), cut."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:4]


def verifier_key(public_key: bytes) -> str:
    """The log's key as tools for signed notes take it: name+hash+base64(0x01 | key)."""
    name = origin(public_key)
    return f"{name}+{key_hash(name, public_key).hex()}+{base64.b64encode(_ED25519 + public_key).decode()}"


def sign_checkpoint(*, size: int, root: bytes, private_key: bytes) -> str:
    """The signed note of a tree head. Equal heads give equal notes."""
    public = public_signing_key(private_key)
    head = Checkpoint(origin(public), size, root)
    signature = key_hash(head.origin, public) + sign(private_key, head.body().encode())
    return f"{head.body()}\n— {head.origin} {base64.b64encode(signature).decode()}\n"


def open_checkpoint(note: str, public_key: bytes) -> Checkpoint:
    """The tree head of a note, if this log signed it; raises `Tampered`. Others' signatures beside it are passed over.

    A note is `body, empty line, signature lines`. The body has exactly three lines: what this log never writes, as
    extension lines, is refused."""
    if len(note) > MAX_CHECKPOINT:
        raise Tampered("the tree head is longer than any that this log signs")
    body, found, signatures = note.partition("\n\n")
    lines = body.split("\n")
    name = origin(public_key)
    if not found or len(lines) != 3 or not signatures.endswith("\n"):
        raise Tampered("the tree head is no checkpoint: it must be three lines, an empty line, and signatures")
    if lines[0] != name:
        raise Tampered("the tree head is of another log than the one whose key you trust")
    if not _SIZE.fullmatch(lines[1]):
        raise Tampered("the tree head's size is no number")
    head = Checkpoint(name, int(lines[1]), decode(lines[2]))
    if len(head.root) != merkle.HASH_BYTES:
        raise Tampered("the tree head's root is no SHA-256 digest")
    signed = [_SIGNATURE.fullmatch(line) for line in signatures[:-1].split("\n")]
    if None in signed:
        raise Tampered("the tree head's signature lines are malformed")
    for match in signed:
        blob = decode(match[2]) if match and match[1] == name else b""
        if blob[:4] == key_hash(name, public_key):
            verify(public_key, head.body().encode(), blob[4:])
            return head
    raise Tampered("the tree head is not signed by the log whose key you trust")


def check_inclusion(entry: bytes, proof: Inclusion, head: Checkpoint) -> None:
    """Return if the log of this head holds the entry where the proof says; raises `Tampered`."""
    if proof.size != head.size:
        raise Tampered(f"the inclusion proof is for {proof.size} entries, the tree head for {head.size}")
    path = [bytes.fromhex(each) for each in proof.hashes]
    merkle.verify_inclusion(entry, index=proof.index, size=proof.size, proof=path, root=head.root)


def check_growth(old: Checkpoint, new: Checkpoint, proof: Consistency) -> None:
    """Return if the log only grew from one head to the other; raises `Tampered`."""
    if (proof.first, proof.second) != (old.size, new.size) or old.origin != new.origin:
        raise Tampered("the consistency proof is for other tree heads")
    merkle.verify_consistency(
        old_size=old.size,
        new_size=new.size,
        proof=[bytes.fromhex(each) for each in proof.hashes],
        old_root=old.root,
        new_root=new.root,
    )


def decode(text: str) -> bytes:
    """The bytes of standard base64 in its one canonical spelling; raises `Tampered`."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = None
    if data is None or base64.b64encode(data).decode() != text:
        raise Tampered("a field is not base64 in its canonical spelling (RFC 4648, section 4)")
    return data
