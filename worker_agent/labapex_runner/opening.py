"""A job's files, from its executable into its folder, once there is a key to them."""

from __future__ import annotations

from pathlib import Path

from labapex import executable
from labapex.errors import MalformedInput, Tampered
from labapex.proof import merkle, statefile
from labapex.protocol.manifest import Manifest
from labapex.protocol.records import Leaf


def open_job(job: Path, manifest: Manifest, content_key: bytes, folder: Path) -> None:
    """Unpack code and data into `folder`/work. Raises `LabApexError` where they, or the state with which a run goes on, are not
    what they should be."""
    executable.unpack(job, manifest, content_key, folder / "work")
    if (after := manifest.contract.after) is not None:
        _check_state(folder / "states" / f"{after.index}.safetensors", after)
    if manifest.contract.keep_every > 1:  # states are made anew from these: the script may write into its own
        executable.unpack(job, manifest, content_key, folder / "pristine")


def _check_state(path: Path, after: Leaf) -> None:
    """Raise `Tampered` where the state with which a run goes on is not the one that another host had committed to."""
    try:
        with path.open("rb") as file:
            found = merkle.root_of_hashes(statefile.tree(file)).hex()
    except (OSError, MalformedInput) as error:
        raise Tampered(f"the state of leaf {after.index}, to go on from, cannot be read: {error}") from None
    if found != after.state:
        raise Tampered(f"the state of leaf {after.index}, to go on from, is not the one that was committed to")
