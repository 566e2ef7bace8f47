"""Heads of the log and proofs under them, by the definition, by the note's specification, and bent in every place."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.labapex.certified import KEYS, LOG_KEY, MemoryLog

from labapex.errors import Tampered
from labapex.proof import merkle
from labapex.sealing import new_signing_keys, public_signing_key, sign
from labapex.transparency import (
    Checkpoint,
    Consistency,
    Inclusion,
    check_growth,
    check_inclusion,
    key_hash,
    open_checkpoint,
    origin,
    sign_checkpoint,
    verifier_key,
)

sizes = st.integers(1, 70)


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word."""
    if len(leaves) < 2:
        return hashlib.sha256(b"\x00" + leaves[0] if leaves else b"").digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def a_log(size: int) -> MemoryLog:
    log = MemoryLog()
    log.fill(size)
    return log


def head(log: MemoryLog, size: int | None = None) -> Checkpoint:
    return open_checkpoint(log.head(size), KEYS.log)


@given(st.integers(0, 70))
def test_a_head_states_the_logs_size_and_root(size: int) -> None:
    log = a_log(size)
    assert head(log) == Checkpoint(origin(KEYS.log), size, naive_root(log.leaves))


@given(sizes, st.data())
@settings(deadline=None)
def test_every_entry_is_included_and_nothing_else_is(size: int, data: st.DataObject) -> None:
    log, index = a_log(size), data.draw(st.integers(0, size - 1))
    proof = log.inclusion(index)
    check_inclusion(log.leaves[index], proof, head(log))
    bent = data.draw(st.sampled_from(["leaf", "index", "size", "hash", "short", "long"]))
    leaf, hashes = log.leaves[index], list(proof.hashes)
    fields = {"index": index, "size": size}
    match bent:
        case "leaf":
            leaf += b"!"
        case "index":
            fields["index"] = data.draw(st.integers(0, 2 * size).filter(lambda other: other != index))
        case "size":
            fields["size"] = data.draw(st.integers(1, 2 * size).filter(lambda other: other != size))
        case "hash" if hashes:
            hashes[data.draw(st.integers(0, len(hashes) - 1))] = "0" * 64
        case "short" if hashes:
            hashes.pop()
        case _:
            hashes.append("0" * 64)
    with pytest.raises(Tampered):
        check_inclusion(leaf, Inclusion(**fields, hashes=tuple(hashes)), head(log))


@given(sizes, st.data())
@settings(deadline=None)
def test_a_log_that_grew_proves_it_and_one_that_was_changed_cannot(size: int, data: st.DataObject) -> None:
    log, first = a_log(size), data.draw(st.integers(1, size))
    old = head(log, first)
    check_growth(old, head(log), log.consistency(first, size))
    changed = a_log(size)
    changed.leaves[data.draw(st.integers(0, first - 1))] = b"rewritten"
    with pytest.raises(Tampered):
        check_growth(old, head(changed), changed.consistency(first, size))
    with pytest.raises(Tampered):
        check_growth(old, head(changed), log.consistency(first, size))
    proof = log.consistency(first, size)
    for bent in (
        Consistency(first=first, second=size + 1, hashes=proof.hashes),
        Consistency(first=first + 1, second=size, hashes=proof.hashes),
        Consistency(first=first, second=size, hashes=(*proof.hashes, "0" * 64)),
    ):
        with pytest.raises(Tampered):
            check_growth(old, head(log), bent)


@given(st.integers(0, 10**6), st.binary(min_size=32, max_size=32), st.data())
@settings(max_examples=300, deadline=None)
def test_a_flipped_bit_anywhere_in_a_head_is_refused(size: int, root: bytes, data: st.DataObject) -> None:
    note = sign_checkpoint(size=size, root=root, private_key=LOG_KEY).encode()
    assert open_checkpoint(note.decode(), KEYS.log) == Checkpoint(origin(KEYS.log), size, root)
    bent = bytearray(note)
    bit = data.draw(st.integers(0, 8 * len(note) - 1))
    bent[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Tampered):
        open_checkpoint(bytes(bent).decode("utf-8", "replace"), KEYS.log)


def test_a_head_is_laid_out_as_the_notes_specification_has_it() -> None:
    note = sign_checkpoint(size=7, root=b"r" * 32, private_key=LOG_KEY)
    name = f"labapex/log/{hashlib.sha256(KEYS.log).hexdigest()[:16]}"
    text = f"{name}\n7\n{base64.b64encode(b'r' * 32).decode()}\n"
    hashed = hashlib.sha256(name.encode() + b"\n\x01" + KEYS.log).digest()[:4]
    signature = base64.b64encode(hashed + sign(LOG_KEY, text.encode())).decode()
    assert note == f"{text}\n— {name} {signature}\n"
    key = base64.b64encode(b"\x01" + KEYS.log).decode()
    assert verifier_key(KEYS.log) == f"{name}+{hashed.hex()}+{key}"


def test_the_key_of_a_note_is_named_as_in_the_specifications_example() -> None:
    """The example key of Go's sumdb/note: PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW."""
    public = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:]
    assert key_hash("PeterNeumann", public).hex() == "c74f20a3"


def test_witnesses_may_sign_beside_the_log() -> None:
    log = a_log(3)
    note = log.head()
    private, public = new_signing_keys()
    body = note.partition("\n\n")[0] + "\n"
    line = base64.b64encode(key_hash("witness", public) + sign(private, body.encode())).decode()
    assert open_checkpoint(f"{body}\n— witness {line}\n{note.partition(chr(10) * 2)[2]}", KEYS.log) == head(log)
    with pytest.raises(Tampered, match="not signed by the log"):
        open_checkpoint(f"{body}\n— witness {line}\n", KEYS.log)


NOTE = a_log(3).head()
BODY, SIGNATURES = NOTE.split("\n\n")


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n\n",
        NOTE[:-1],
        NOTE + "\n",
        NOTE + "x" * 5000,
        BODY,
        f"{BODY}\n\n",
        f"{BODY}\nextension\n\n{SIGNATURES}",
        NOTE.replace("\n3\n", "\n03\n"),
        NOTE.replace("\n3\n", "\n+3\n"),
        NOTE.replace("\n3\n", "\n٣\n"),
        NOTE.replace("— ", "- "),
        NOTE.replace("labapex/log", "labapex/other"),
    ],
)
def test_a_malformed_head_is_refused(note: str) -> None:
    with pytest.raises(Tampered):
        open_checkpoint(note, KEYS.log)


def test_a_head_of_another_log_under_its_own_key_is_refused() -> None:
    other = new_signing_keys()[0]
    note = sign_checkpoint(size=3, root=merkle.root([]), private_key=other)
    open_checkpoint(note, public_signing_key(other))
    with pytest.raises(Tampered, match="another log"):
        open_checkpoint(note, KEYS.log)
