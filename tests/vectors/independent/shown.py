"""States hash to their leaves, and the chunk that was asked for is in all that were kept."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

from tests.vectors.independent import chunks
from tests.vectors.independent.folder import Folder
from tests.vectors.independent.forms import Document
from tests.vectors.independent.refused import Refused
from tests.vectors.independent.states import tree
from tests.vectors.independent.trees import climbed, entry_hash, root


def check_shown(folder: Folder) -> None:
    """States hash to their leaves, and the chunk that was asked for is in all that were kept. Raises `Refused`."""
    for index in folder.states:
        leaf = folder.leaves[index]
        try:
            hashes, layout = tree(folder.content(f"states/{index}.safetensors"))
        except (ValueError, LookupError, TypeError, struct.error, RecursionError):
            raise Refused("shown", f"the state of leaf {index} is none") from None
        if (root(hashes).hex(), len(hashes)) != (leaf["state"], leaf["chunks"]):
            raise Refused("shown", f"the state of leaf {index} is another one")
        if index == 0 and layout != folder.contract["facts"]["layout"]:
            raise Refused("shown", "the contract describes other parameters")
    if folder.manifest["origin"] == "platform":
        if folder.challenge is None:
            raise Refused("shown", "nobody says what was asked for")
        _check_chunks(folder, folder.challenge)
        if absent := {*folder.challenge["indices"], *folder.challenge["further"]} - set(folder.states):
            raise Refused("shown", f"the state of leaf {min(absent)} was asked for and is not there")


def _check_chunks(folder: Folder, challenge: Document) -> None:
    count = chunks.count(folder)
    if challenge["chunk"] != (random.Random(challenge["chunk_nonce"]).randrange(count) if count else None):
        raise Refused("shown", "the nonce gives another chunk")
    if challenge["chunk"] is not None:
        if "chunks.bin" not in folder.entries:
            raise Refused("shown", "the chunk was never shown")
        data, at, place = folder.content("chunks.bin"), 0, 1 + challenge["chunk"]
        for leaf in chunks.asked(folder):
            size, rest = chunks.lengths(folder, leaf, challenge["chunk"], "shown")
            chunk, path = data[at : at + size], list(_hashes(data[at + size : at + size + rest]))
            if climbed(entry_hash(chunk), place, leaf["chunks"], path).hex() != leaf["state"]:
                raise Refused("shown", f"the chunk of leaf {leaf['index']} is another one")
            at += size + rest
    if challenge["nonce"] is None:
        raise Refused("shown", "nothing was drawn")


def _hashes(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 32] for at in range(0, len(data), 32))
