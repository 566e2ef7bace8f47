"""All cryptography of the project in one place, so that a reviewer reads it once.

* Files: AES-256-GCM in STREAM form (Hoang, Reyhanitabar, Rogaway, Vizár 2015): 1 MiB segments, each authenticated with
  its position and whether it is the last, under a key derived by HKDF-SHA256 (RFC 5869) for this one stream. A stream
  that was cut, reordered, extended or altered is refused, and memory does not grow with the file.
* Keys in transit: HPKE (RFC 9180; X25519, HKDF-SHA256, AES-256-GCM), single shot, base mode.
* Signatures: Ed25519 (RFC 8032) over canonical JSON, or over bytes that `labapex.protocol` lays out.
* Log frames: AES-256-GCM under the run key, with the frame's number as nonce and its header as associated data.

Keys are raw 32 bytes. Whatever does not open raises `Tampered`, and the message never says which check failed first.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, Self
from uuid import UUID

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import TypeAdapter

from labapex.errors import MalformedInput, Tampered
from labapex.protocol.canonical import Message, canonical, digest
from labapex.protocol.frames import MAX_PAYLOAD, Data, frame_hash, frame_header
from labapex.protocol.manifest import Manifest, ReleasedKeys
from labapex.protocol.packing import pack, unpack
from labapex.protocol.records import FrameBody

KEY_BYTES = 32
TAG_BYTES = 16
SEGMENT_BYTES = 1 << 20
_MAGIC = b"labapex-seal--01"
_SALT_BYTES = 32
HEADER_BYTES = len(_MAGIC) + _SALT_BYTES


def new_key() -> bytes:
    """A random symmetric key, 32 bytes."""
    return secrets.token_bytes(KEY_BYTES)


# -- files -------------------------------------------------------------------------------------------------------------


class Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True)
class Sealed:
    """A sealed stream: SHA-256 (hexadecimal) and bytes of the plaintext and of what is stored."""

    digest_plain: str
    size: int
    sealed_digest: str
    sealed_size: int


def sealed_size(size: int) -> int:
    """The bytes that a plaintext of `size` bytes takes once sealed."""
    segments = max(1, -(-size // SEGMENT_BYTES))
    return HEADER_BYTES + size + segments * TAG_BYTES


def seal_stream(src: Reader, dst: Writer, key: bytes) -> Sealed:
    """Seal everything that `src` gives into `dst` under `key`; memory stays at a few segments."""
    header = _MAGIC + secrets.token_bytes(_SALT_BYTES)
    dst.write(header)
    with _Digests(header) as digests:
        return _seal(src, dst, _stream_cipher(key, header), digests, 0)


def sealed_so_far(size: int) -> int:
    """The bytes of plaintext in the whole segments of an unfinished sealed stream of `size` bytes."""
    return max(0, size - HEADER_BYTES) // (SEGMENT_BYTES + TAG_BYTES) * SEGMENT_BYTES


def seal_on(src: Reader, begun: BinaryIO, key: bytes) -> Sealed:
    """Go on with what an interrupted `seal_stream` left in `begun`; `src` begins at `sealed_so_far` of its size.

    What is there is opened and digested again, so that the result speaks of the whole stream. Raises `Tampered` where it
    does not open. A torn segment at the end is sealed anew under the same nonce: it is the same plaintext unless whoever
    sends it lies to himself, and then the digest of the whole will not be the announced one.
    """
    whole = sealed_so_far(begun.seek(0, io.SEEK_END)) // SEGMENT_BYTES
    begun.seek(0)
    header = _header(begun)
    cipher = _stream_cipher(key, header)
    with _Digests(header) as digests:
        for counter in range(whole):
            box = _read_up_to(begun, SEGMENT_BYTES + TAG_BYTES)
            digests.update(_decrypted(cipher, counter, box, last=False), box)
        begun.truncate()
        return _seal(src, begun, cipher, digests, whole)


def _seal(src: Reader, dst: Writer, cipher: AESGCM, digests: _Digests, counter: int) -> Sealed:
    segment = _read_up_to(src, SEGMENT_BYTES)
    while True:
        following = _read_up_to(src, SEGMENT_BYTES) if len(segment) == SEGMENT_BYTES else b""
        box = cipher.encrypt(_nonce(counter, last=not following), segment, None)
        digests.update(segment, box)
        dst.write(box)
        counter += 1
        if not following:
            return digests.result()
        segment = following


def open_stream(src: Reader, dst: Writer, key: bytes) -> Sealed:
    """Open what `seal_stream` wrote. Raises `Tampered`; what `dst` got by then is authentic but incomplete."""
    header = _header(src)
    cipher = _stream_cipher(key, header)
    box_bytes = SEGMENT_BYTES + TAG_BYTES
    counter = 0
    with _Digests(header) as digests:
        box = _read_up_to(src, box_bytes)
        while True:
            following = _read_up_to(src, box_bytes) if len(box) == box_bytes else b""
            if counter and len(box) <= TAG_BYTES:
                raise Tampered("a sealed stream ends with an empty segment; fetch the file again")
            segment = _decrypted(cipher, counter, box, last=not following)
            digests.update(segment, box)
            dst.write(segment)
            counter += 1
            if not following:
                return digests.result()
            box = following


def _header(src: Reader) -> bytes:
    header = _read_up_to(src, HEADER_BYTES)
    if len(header) != HEADER_BYTES or not header.startswith(_MAGIC):
        raise Tampered("not a sealed stream; fetch the file again")
    return header


def _decrypted(cipher: AESGCM, counter: int, box: bytes, *, last: bool) -> bytes:
    try:
        return cipher.decrypt(_nonce(counter, last=last), box, None)
    except InvalidTag:
        raise Tampered("a sealed stream does not open: altered, cut, or sealed under another key") from None


class _Digests:
    """SHA-256 of both sides of a stream. It is five times as dear as the encryption, so the two run side by side."""

    def __init__(self, header: bytes) -> None:
        self._plain, self._sealed = hashlib.sha256(), hashlib.sha256(header)
        self._size, self._sealed_size = 0, len(header)
        self._pool = ThreadPoolExecutor(max_workers=1)  # its thread starts with the first long segment

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def update(self, segment: bytes, box: bytes) -> None:
        self._size += len(segment)
        self._sealed_size += len(box)
        if len(segment) < SEGMENT_BYTES:
            self._plain.update(segment)
            self._sealed.update(box)
        else:
            plain = self._pool.submit(self._plain.update, segment)
            self._sealed.update(box)
            plain.result()

    def result(self) -> Sealed:
        return Sealed(self._plain.hexdigest(), self._size, self._sealed.hexdigest(), self._sealed_size)


def seal_bytes(plaintext: bytes, key: bytes) -> bytes:
    """A small plaintext as a sealed stream."""
    out = io.BytesIO()
    seal_stream(io.BytesIO(plaintext), out, key)
    return out.getvalue()


def open_bytes(sealed: bytes, key: bytes) -> bytes:
    """The plaintext of a small sealed stream; raises `Tampered`."""
    out = io.BytesIO()
    open_stream(io.BytesIO(sealed), out, key)
    return out.getvalue()


def _stream_cipher(key: bytes, header: bytes) -> AESGCM:
    """The cipher of one stream. Its key depends on the random header, so nonces may begin at zero in every stream."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes")
    return AESGCM(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=header, info=b"labapex-seal-key").derive(key))


def _nonce(counter: int, *, last: bool) -> bytes:
    return struct.pack(">xxxQB", counter, last)


def _read_up_to(src: Reader, size: int) -> bytes:
    """`size` bytes, fewer only at the end: raw files and sockets may give less than was asked for."""
    data = src.read(size)
    if len(data) == size or not data:
        return data
    pieces, missing = [data], size - len(data)
    while missing and (piece := src.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


# -- keys in transit ---------------------------------------------------------------------------------------------------

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def new_hpke_keys() -> tuple[bytes, bytes]:
    """(private, public): an X25519 pair for `hpke_open` and `hpke_seal`."""
    private = X25519PrivateKey.generate()
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


def hpke_seal(public_key: bytes, info: bytes, plaintext: bytes) -> bytes:
    """Seal to the holder of a public key; `info` says what for, and only opens with the same `info`."""
    try:
        return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(public_key), info=info)
    except ValueError as error:  # a public key of small order
        raise MalformedInput(f"not a usable X25519 key: {error}") from None


def hpke_open(private_key: bytes, info: bytes, sealed: bytes) -> bytes:
    """Open what `hpke_seal` made; raises `Tampered`."""
    try:
        return _SUITE.decrypt(sealed, X25519PrivateKey.from_private_bytes(private_key), info=info)
    except (InvalidTag, ValueError):
        raise Tampered("sealed keys do not open: they were altered or meant for someone else") from None


_RELEASED: TypeAdapter[ReleasedKeys] = TypeAdapter(ReleasedKeys)


def release_info(lease: UUID, manifest: Manifest) -> bytes:
    """What a key release is bound to: this lease and this very manifest (and with it contract, runner and sections).

    The digest stands in `info`, not in the AAD: RFC 9180's single shot binds both alike, and the library offers `info`.
    """
    return b"labapex-key-release-01" + lease.bytes + bytes.fromhex(digest(manifest))


def seal_release(hpke_key: bytes, *, manifest: Manifest, keys: ReleasedKeys) -> bytes:
    """`KeyRelease.sealed`: content key and run key for the executable that made `hpke_key`."""
    return hpke_seal(hpke_key, release_info(manifest.contract.lease, manifest), pack(keys))


def open_release(private_key: bytes, *, manifest: Manifest, sealed: bytes) -> ReleasedKeys:
    """The keys of a `KeyRelease`; raises `Tampered` where they were not sealed for this executable's manifest."""
    plain = hpke_open(private_key, release_info(manifest.contract.lease, manifest), sealed)
    return unpack(_RELEASED, plain, limit=4096)


# -- signatures --------------------------------------------------------------------------------------------------------


def new_signing_keys() -> tuple[bytes, bytes]:
    """(private, public): an Ed25519 pair for `sign` and `verify`."""
    private = Ed25519PrivateKey.generate()
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


def public_signing_key(private_key: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def sign(private_key: bytes, document: Message | dict[str, Any] | bytes) -> bytes:
    """The 64 bytes of an Ed25519 signature over a document's canonical JSON, or over bytes as they are."""
    return Ed25519PrivateKey.from_private_bytes(private_key).sign(_signed_bytes(document))


def verify(public_key: bytes, document: Message | dict[str, Any] | bytes, signature: bytes) -> None:
    """Return if the signature is that key's over the document; else raise `Tampered`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _signed_bytes(document))
    except (InvalidSignature, ValueError):
        raise Tampered("the signature does not match: the document was altered or signed by another key") from None


def _signed_bytes(document: Message | dict[str, Any] | bytes) -> bytes:
    return document if isinstance(document, bytes) else canonical(document)


# -- log frames --------------------------------------------------------------------------------------------------------

_BODY: TypeAdapter[FrameBody] = TypeAdapter(FrameBody)


def seal_frame(run_key: bytes, *, lease: UUID, seq: int, first: int, prev: bytes, body: FrameBody) -> Data:
    """Encrypt and chain one frame. A (run key, seq) pair must never be used twice; the log numbers frames by itself."""
    n = body.count()
    header = frame_header(lease=lease, seq=seq, first=first, n=n, prev=prev)
    payload = AESGCM(run_key).encrypt(_frame_nonce(seq), pack(body), header)
    if len(payload) > MAX_PAYLOAD:
        raise MalformedInput(f"a frame of {len(payload)} bytes; at most {MAX_PAYLOAD} fit")
    hashed = frame_hash(lease=lease, seq=seq, first=first, n=n, prev=prev, payload=payload)
    return Data(lease=lease, seq=seq, first=first, n=n, prev=prev, payload=payload, hash=hashed)


def open_frame(run_key: bytes, frame: Data) -> FrameBody:
    """The body of a frame; raises `Tampered` where it is not the executable's, `MalformedInput` where it is no body."""
    header = frame_header(lease=frame.lease, seq=frame.seq, first=frame.first, n=frame.n, prev=frame.prev)
    try:
        plain = AESGCM(run_key).decrypt(_frame_nonce(frame.seq), frame.payload, header)
    except InvalidTag:
        raise Tampered(f"frame {frame.seq} was not made by this lease's executable, or was altered") from None
    body = unpack(_BODY, plain, limit=MAX_PAYLOAD)
    if body.count() != frame.n:
        raise MalformedInput(f"frame {frame.seq} announces {frame.n} records and holds {body.count()}")
    return body


def _frame_nonce(seq: int) -> bytes:
    return struct.pack(">xxxxQ", seq)
