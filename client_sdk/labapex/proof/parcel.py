"""A proof folder on the wire: an uncompressed tar whose every header is known to the receiver before it comes.

`manifest.json` is first and says path, size and digest of all that follows, in the manifest's order. So the receiver parses
no archive: it compares each header with the one that must be there, counts bytes, and compares digests.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from labapex.errors import MalformedInput, Tampered
from labapex.proof.folder import MANIFEST, MAX_DOCUMENT, Content, Manifest, new_file
from labapex.protocol.canonical import canonical, parse

BLOCK = 512
_CHUNK = 1 << 20
_END = bytes(2 * BLOCK)


def size(manifest: Manifest) -> int:
    """Bytes of the whole parcel."""
    lengths = [len(canonical(manifest)), *(entry.size for entry in manifest.files)]
    return sum(BLOCK + length + _padding(length) for length in lengths) + len(_END)


def pack(manifest: Manifest, contents: Mapping[str, Content]) -> Iterator[bytes]:
    """The parcel's bytes in pieces that are never empty. Raises `Tampered` where a file is no longer of its size."""
    return filter(None, _pieces(manifest, contents))


def _pieces(manifest: Manifest, contents: Mapping[str, Content]) -> Iterator[bytes]:
    plain = canonical(manifest)
    yield header(MANIFEST, len(plain)) + plain + bytes(_padding(len(plain)))
    for entry in manifest.files:
        yield header(entry.path, entry.size)
        content = contents[entry.path]
        if isinstance(content, bytes):
            yield content
        else:
            yield from _file(content, entry.size)
        yield bytes(_padding(entry.size))
    yield _END


def unpack(chunks: Iterator[bytes], root: Path, *, limit: int) -> Manifest:
    """Write the folder `root`, which does not exist yet, from a parcel of at most `limit` bytes.

    Raises `MalformedInput` or `Tampered`; then nothing is left of it.
    """
    stream = _Stream(chunks, limit)
    root.mkdir(mode=0o700)
    try:
        length = _length(stream.exactly(BLOCK))
        plain = stream.exactly(length)
        stream.zeros(_padding(length))
        manifest = parse(Manifest, plain, limit=MAX_DOCUMENT)
        if size(manifest) > limit:
            raise MalformedInput(f"the proof has {size(manifest)} bytes, at most {limit} are accepted")
        for entry in manifest.files:
            if stream.exactly(BLOCK) != header(entry.path, entry.size):
                raise MalformedInput(f"the proof's archive does not go on with {entry.path}")
            (root / entry.path).parent.mkdir(mode=0o700, exist_ok=True)
            with new_file(root / entry.path) as file:
                if stream.into(file, entry.size) != entry.digest:
                    raise Tampered(f"{entry.path} was changed on the way")
            stream.zeros(_padding(entry.size))
        stream.zeros(len(_END))
        with new_file(root / MANIFEST) as file:
            file.write(plain)
    except FileExistsError:  # a manifest that lists a file twice
        shutil.rmtree(root)
        raise MalformedInput("the proof's manifest lists a file twice") from None
    except BaseException:
        shutil.rmtree(root)
        raise
    return manifest


def header(path: str, length: int) -> bytes:
    """The tar header (GNU form) of an ordinary file of mode 0600 that belongs to nobody and has no date."""
    info = tarfile.TarInfo(path)
    info.size, info.mode = length, 0o600
    return info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")


def _length(block: bytes) -> int:
    """The size in the first header, if that is the manifest's."""
    try:
        length = tarfile.TarInfo.frombuf(block, "ascii", "strict").size
    except (tarfile.HeaderError, ValueError):
        raise MalformedInput("this is no archive of a proof") from None
    if not 0 <= length <= MAX_DOCUMENT or block != header(MANIFEST, length):
        raise MalformedInput(f"the archive of a proof begins with {MANIFEST}")
    return length


def _file(path: Path, length: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(min(_CHUNK, length)):
            length -= len(chunk)
            yield chunk
    if length:
        raise Tampered(f"{path.name} became shorter while it was being sent")


def _padding(length: int) -> int:
    return -length % BLOCK


class _Stream:
    def __init__(self, chunks: Iterator[bytes], limit: int) -> None:
        self._chunks = chunks
        self._held = b""
        self._left = limit

    def some(self, most: int) -> bytes:
        """At least one byte, at most `most`."""
        while not self._held:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise MalformedInput("the proof's archive ends early; ask for it again")
            self._left -= len(chunk)
            if self._left < 0:
                raise MalformedInput("the proof's archive is longer than accepted")
            self._held = chunk
        given, self._held = self._held[:most], self._held[most:]
        return given

    def exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            data += self.some(count - len(data))
        return bytes(data)

    def zeros(self, count: int) -> None:
        if any(self.exactly(count)):
            raise MalformedInput("the proof's archive holds more than its manifest lists")

    def into(self, file: BinaryIO, count: int) -> str:
        """Write `count` bytes to a file; their SHA-256."""
        state = hashlib.sha256()
        while count:
            chunk = self.some(min(_CHUNK, count))
            state.update(chunk)
            file.write(chunk)
            count -= len(chunk)
        return state.hexdigest()
