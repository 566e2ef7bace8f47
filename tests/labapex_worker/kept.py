"""States as an executable leaves them in its folder."""

from __future__ import annotations

import json
import struct

from labapex.proof import statefile
from labapex_worker.supervisor import Folder


def keep(folder: Folder, index: int) -> None:
    """A state after so many iterations, its tree beside it."""
    weights = struct.pack("<9000f", *(index + n for n in range(9000)))
    metadata = {"structure": json.dumps({"step": index}), "parameters": json.dumps(["w"])}
    entry = {"dtype": "F32", "shape": [9000], "data_offsets": [0, len(weights)]}
    header = json.dumps({"__metadata__": metadata, "w": entry}).encode()
    path = folder.job / "states" / f"{index}.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + weights)
    with path.open("rb") as file:
        path.with_suffix(".tree").write_bytes(b"".join(statefile.tree(file)))
