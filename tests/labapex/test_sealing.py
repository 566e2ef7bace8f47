"""Sealing: what was sealed opens, and nothing else does."""

from __future__ import annotations

import hashlib
import io
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labapex import sealing
from labapex.errors import MalformedInput, Tampered
from labapex.protocol.frames import Data
from labapex.protocol.records import Console, FrameBody, column

KEY = bytes(range(32))
LEASE = UUID(int=7)
SEGMENT, BOX = sealing.SEGMENT_BYTES, sealing.SEGMENT_BYTES + sealing.TAG_BYTES
LONG = bytes(i % 251 for i in range(2 * SEGMENT + 1000))
SEALED_LONG = sealing.seal_bytes(LONG, KEY)
edges = st.sampled_from([0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT])


class Trickle(io.BytesIO):
    """A source that gives less than was asked for, as sockets do."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 0, 70_001) if size and size > 0 else size)


@given(st.one_of(st.integers(0, 3000), edges))
@settings(max_examples=25, deadline=None)
def test_what_was_sealed_opens_with_the_right_digests_and_sizes(size: int) -> None:
    plain, box, back = LONG[:size], io.BytesIO(), io.BytesIO()
    sealed = sealing.seal_stream(io.BytesIO(plain), box, KEY)
    assert sealed.size == size
    assert sealed.sealed_size == len(box.getvalue()) == sealing.sealed_size(size)
    assert sealed.digest_plain == hashlib.sha256(plain).hexdigest()
    assert sealed.sealed_digest == hashlib.sha256(box.getvalue()).hexdigest()
    assert sealing.open_stream(io.BytesIO(box.getvalue()), back, KEY) == sealed
    assert back.getvalue() == plain


def test_a_source_that_trickles_gives_the_same_plaintext() -> None:
    box, back = io.BytesIO(), io.BytesIO()
    sealing.seal_stream(Trickle(LONG), box, KEY)
    sealing.open_stream(Trickle(box.getvalue()), back, KEY)
    assert back.getvalue() == LONG


def test_no_two_sealings_of_one_plaintext_look_alike() -> None:
    assert sealing.seal_bytes(b"same", KEY) != sealing.seal_bytes(b"same", KEY)


@given(st.integers(0, 8 * len(SEALED_LONG) - 1))
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_anywhere_in_a_stream_is_refused(bit: int) -> None:
    bent = bytearray(SEALED_LONG)
    bent[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Tampered):
        sealing.open_bytes(bytes(bent), KEY)


def test_a_flipped_bit_anywhere_in_a_short_stream_is_refused() -> None:
    sealed = sealing.seal_bytes(b"short", KEY)
    for bit in range(8 * len(sealed)):
        bent = bytearray(sealed)
        bent[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Tampered):
            sealing.open_bytes(bytes(bent), KEY)


cuts = [0, 1, 47, 48, 49, 64, 48 + BOX - 1, 48 + BOX, 48 + BOX + 1, 48 + 2 * BOX, len(SEALED_LONG) - 1]


@given(st.one_of(st.integers(0, len(SEALED_LONG) - 1), st.sampled_from(cuts)))
@settings(max_examples=40, deadline=None)
def test_a_truncated_stream_is_refused_also_at_the_edge_of_a_segment(length: int) -> None:
    with pytest.raises(Tampered):
        sealing.open_bytes(SEALED_LONG[:length], KEY)


@given(st.binary(min_size=1, max_size=40))
@settings(deadline=None)
def test_a_stream_with_something_behind_it_is_refused(extra: bytes) -> None:
    with pytest.raises(Tampered):
        sealing.open_bytes(sealing.seal_bytes(b"short", KEY) + extra, KEY)
    with pytest.raises(Tampered):
        sealing.open_bytes(sealing.seal_bytes(bytes(SEGMENT), KEY) + extra, KEY)


def test_segments_in_another_order_or_from_another_stream_are_refused() -> None:
    head, first, second, last = SEALED_LONG[:48], *(SEALED_LONG[48 + i * BOX : 48 + (i + 1) * BOX] for i in range(3))
    other = sealing.seal_bytes(LONG, KEY)
    for bent in (
        head + second + first + last,
        head + first + first + last,
        head + first + last,
        head + first + other[48 + BOX : 48 + 2 * BOX] + last,
        other[:48] + first + second + last,
    ):
        with pytest.raises(Tampered):
            sealing.open_bytes(bent, KEY)


def test_another_key_opens_nothing() -> None:
    with pytest.raises(Tampered):
        sealing.open_bytes(SEALED_LONG, bytes(32))


def test_hpke_opens_for_the_holder_of_the_key_and_the_same_purpose_only() -> None:
    private, public = sealing.new_hpke_keys()
    sealed = sealing.hpke_seal(public, b"purpose", b"secret")
    assert sealing.hpke_open(private, b"purpose", sealed) == b"secret"
    for key, info, box in (
        (sealing.new_hpke_keys()[0], b"purpose", sealed),
        (private, b"another", sealed),
        (private, b"purpose", sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (private, b"purpose", b""),
    ):
        with pytest.raises(Tampered):
            sealing.hpke_open(key, info, box)


def test_a_public_key_of_small_order_is_refused() -> None:
    with pytest.raises(MalformedInput):
        sealing.hpke_seal(bytes(32), b"purpose", b"secret")


def test_a_signature_holds_for_its_document_and_key_only() -> None:
    private, public = sealing.new_signing_keys()
    document = Console(stream="stdout", text="hello")
    signature = sealing.sign(private, document)
    sealing.verify(public, document, signature)
    assert sealing.public_signing_key(private) == public
    for key, what, sig in (
        (public, Console(stream="stderr", text="hello"), signature),
        (sealing.new_signing_keys()[1], document, signature),
        (public, document, signature[:-1] + bytes([signature[-1] ^ 1])),
        (public, document, b""),
        (b"short", document, signature),
    ):
        with pytest.raises(Tampered):
            sealing.verify(key, what, sig)


BODY = FrameBody(losses=column([0.5, float("nan")]), times=column([1.0, 2.0]))


def frame() -> Data:
    return sealing.seal_frame(KEY, lease=LEASE, seq=3, first=10, prev=bytes(32), body=BODY)


def test_a_frame_opens_to_its_body() -> None:
    assert sealing.open_frame(KEY, frame()) == BODY
    assert frame().n == 2


@pytest.mark.parametrize(
    "change", [{"lease": UUID(int=8)}, {"seq": 4}, {"first": 11}, {"n": 1}, {"prev": bytes(31) + b"\1"}]
)
def test_a_frame_under_another_header_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(Tampered):
        sealing.open_frame(KEY, frame().model_copy(update=change))


def test_a_frame_of_another_run_is_refused() -> None:
    with pytest.raises(Tampered):
        sealing.open_frame(bytes(32), frame())


def test_a_frame_too_large_for_the_wire_is_not_made() -> None:
    body = FrameBody(console=tuple(Console(stream="stdout", text="x" * 65_536) for _ in range(17)))
    with pytest.raises(MalformedInput):
        sealing.seal_frame(KEY, lease=LEASE, seq=0, first=0, prev=bytes(32), body=body)
