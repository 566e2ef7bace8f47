"""What a worker opens: whole states and chunks of them, taken in as a stream, and looked at without loading a tensor.

Whether a state hashes to its leaf is found out in the sandbox; here it must be of the committed size and well formed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from django.conf import settings

from labapex.errors import MalformedInput
from labapex.proof import merkle, statefile
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf
from labapex_server.jobs.blobs import Readable
from labapex_server.lib import clock, store
from labapex_server.lib.errors import Refused, TooLarge
from labapex_server.marketplace.models import Lease
from labapex_server.verification.models import Challenge, OpenedState

_CHUNK = 1 << 20


def receive_state(
    lease: Lease, index: int, stream: Readable, *, size: int, check: Callable[[Path], None] | None = None
) -> Path:
    """Store exactly `size` bytes as the lease's state `index`, if they pass the check. Raises `Refused`; then nothing is left
    of them."""
    folder: Path = settings.LABAPEX.private_folder("leases", str(lease.pk), "states")
    return _receive(folder / f"{index}.safetensors", f"state {index}", stream, size, check or check_header)


def keep(lease: Lease, leaf: Leaf, stream: Readable) -> None:
    """Store a state if it is the one that was committed to. Raises `Refused`; what was sent is then forgotten."""

    def check(path: Path) -> None:  # before it takes its place: another upload of it may have been first
        if not is_leafs(path, leaf):
            raise Refused(f"state {leaf.index} is not the one that was committed to")

    receive_state(lease, leaf.index, stream, size=leaf.size, check=check)
    OpenedState.objects.get_or_create(
        lease=lease, index=leaf.index, defaults={"size": leaf.size, "received_at": clock.now()}
    )


def is_leafs(path: Path, leaf: Leaf) -> bool:
    """Whether a state file is the one that was committed to. No tensor is loaded."""
    with path.open("rb") as file:
        try:
            return merkle.root_of_hashes(statefile.tree(file)).hex() == leaf.state
        except MalformedInput:
            return False


def receive_chunks(challenge: Challenge, stream: Readable, *, size: int, held: bytes = b"") -> Path:
    """Store exactly `size` bytes as the answer about the chunk, behind what the platform has `held` of it.

    Whether it is right is found out later. Raises `Refused`."""
    settings.LABAPEX.private_folder("leases", str(challenge.lease_id))
    return _receive(challenge.chunks_path, "the chunks", stream, size, lambda path: None, held)


def states(terms: Contract, indices: Collection[int]) -> dict[int, Path]:
    """The files, on this disk, of those of these states that the platform has, by leaf: of earlier hosts too, as far as they
    were handed over."""
    return {
        state.index: store.fetch(state.path) for state in sorted(opened(terms, indices), key=lambda state: state.index)
    }


def here(terms: Contract, indices: Collection[int]) -> set[int]:
    """Which of these states the platform has, without a look at their files."""
    return {state.index for state in opened(terms, indices)}


def opened(terms: Contract, indices: Collection[int]) -> list[OpenedState]:
    """The same as rows, host by host."""
    found: list[OpenedState] = []
    for lease, held in ((terms.lease, None), *((each.lease, each.held) for each in terms.handovers)):
        wanted = [index for index in indices if (index in held if held is not None else index not in terms.held)]
        found += OpenedState.objects.filter(lease=lease, index__in=wanted)
    return found


def _receive(
    final: Path, name: str, stream: Readable, size: int, check: Callable[[Path], None], held: bytes = b""
) -> Path:
    temporary = final.with_name(f".{final.stem}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(held)
            left = size
            while left and (chunk := stream.read(min(_CHUNK, left))):
                file.write(chunk)
                left -= len(chunk)
            if left:
                raise Refused(f"{name}: the upload ended {left} bytes early; send it again")
            if stream.read(1):
                raise TooLarge(f"{name}: more than the {size} bytes that leaves commit to")
        check(temporary)
        store.keep(temporary, final)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    return final


def check_header(path: Path) -> None:
    """Raise `Refused` unless the file is laid out as safetensors: a header, and tensors that cover the rest exactly."""
    with path.open("rb") as file:
        try:
            statefile.layout(file)
        except MalformedInput as error:
            raise Refused(str(error)) from None
