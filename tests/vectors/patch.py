"""Applies the edits of `vectors.json` to a copy of a good folder. No line of Lab Apex here; the README says what each means."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vectors.independent.canonical import canonical, digest, sha256
from tests.vectors.independent.log import first_terms
from tests.vectors.independent.states import tree
from tests.vectors.independent.trees import entry_hash, root

Edit = dict[str, Any]
_MANIFEST, _CONTRACT, _LEAVES, _LOSSES = "manifest.json", "contract.json", "leaves.jsonl", "losses.f64"


def apply(folder: Path, edits: list[Edit]) -> None:
    for edit in edits:
        if "fit" in edit:
            for what in edit["fit"]:
                _FITS[what](folder)
        elif edit["op"] in _FILES:
            _FILES[edit["op"]](folder / edit["path"], edit)
        else:
            content = load(folder, edit["path"])
            *way, last = edit["at"]
            place = content
            for step in way:
                place = place[step]
            _FIELDS[edit["op"]](place, last, edit)
            save(folder, edit["path"], content)


# -- what a file says --------------------------------------------------------------------------------------------------


def load(folder: Path, path: str) -> Any:
    """A JSON document, the leaves as a list of documents, or a column as a list of numbers."""
    data = (folder / path).read_bytes()
    if path == _LEAVES:
        return [json.loads(line) for line in data.splitlines()]
    if path.endswith(".f64"):
        return list(struct.unpack(f"<{len(data) // 8}d", data[: len(data) // 8 * 8]))
    return json.loads(data)


def save(folder: Path, path: str, content: Any) -> None:
    if path == _LEAVES:
        data = b"".join(canonical(leaf) + b"\n" for leaf in content)
    elif path.endswith(".f64"):
        data = struct.pack(f"<{len(content)}d", *map(float, content))
    else:
        data = canonical(content)
    (folder / path).write_bytes(data)


def _set(place: Any, at: Any, edit: Edit) -> None:
    place[at] = edit["value"]


def _scale(place: Any, at: Any, edit: Edit) -> None:
    place[at] *= edit["by"]


def _remove(place: Any, at: Any, edit: Edit) -> None:
    del place[at]


def _double(place: Any, at: Any, edit: Edit) -> None:
    place.insert(at, place[at])


def _swap(place: Any, at: Any, edit: Edit) -> None:
    place[at], place[edit["with"]] = place[edit["with"]], place[at]


_FIELDS: dict[str, Callable[[Any, Any, Edit], None]] = {
    "set": _set,
    "scale": _scale,
    "remove": _remove,
    "double": _double,
    "swap": _swap,
}


# -- files -------------------------------------------------------------------------------------------------------------


def _flip(path: Path, edit: Edit) -> None:
    data, at = bytearray(path.read_bytes()), edit["at"]
    if edit.get("of") == "tensors":
        at += 8 + struct.unpack("<Q", data[:8])[0]
    data[at] ^= edit["mask"]
    path.write_bytes(data)


def _cut(path: Path, edit: Edit) -> None:
    path.write_bytes(path.read_bytes()[: -edit["by"]])


def _append(path: Path, edit: Edit) -> None:
    with path.open("ab") as file:
        file.write(bytes.fromhex(edit["hex"]))


def _copy(path: Path, edit: Edit) -> None:
    path.write_bytes((path.parent / edit["from"]).read_bytes())


def _drop(path: Path, edit: Edit) -> None:
    path.unlink()


def _link(path: Path, edit: Edit) -> None:
    path.rename(path.with_name("aside"))
    path.symlink_to("aside")


def _space(path: Path, edit: Edit) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()), sort_keys=True))


_FILES: dict[str, Callable[[Path, Edit], None]] = {
    "flip": _flip,
    "cut": _cut,
    "append": _append,
    "copy": _copy,
    "drop": _drop,
    "link": _link,
    "space": _space,
}


# -- what an owner of all keys does ------------------------------------------------------------------------------------


def fit_files(folder: Path) -> None:
    """The contract's `code` and `data` are those of `files.json`."""
    contract, files = load(folder, _CONTRACT), load(folder, "files.json")
    save(folder, _CONTRACT, {**contract, "code": digest(files["code"]), "data": digest(files["data"])})


def fit_states(folder: Path) -> None:
    """Each leaf whose state is there commits to it."""
    leaves = load(folder, _LEAVES)
    for index, leaf in enumerate(leaves):
        path = folder / "states" / f"{index}.safetensors"
        if path.exists():
            hashes, _ = tree(path.read_bytes())
            leaf |= {"state": root(hashes).hex(), "chunks": len(hashes), "size": path.stat().st_size}
    save(folder, _LEAVES, leaves)


def fit_chain(folder: Path) -> None:
    """The leaves commit to the losses as they are, and follow one another from the first contract on; handovers name them."""
    contract, leaves, losses = load(folder, _CONTRACT), load(folder, _LEAVES), (folder / _LOSSES).read_bytes()
    before, at = digest(first_terms(contract)), 0
    for leaf in leaves:
        leaf |= {"prev": before, "losses": sha256(losses[8 * at : 8 * leaf["step"]])}
        before, at = digest(leaf), leaf["step"]
    save(folder, _LEAVES, leaves)
    if handovers := contract.get("handovers"):
        for each in handovers:
            each["leaf"] = leaves[each["leaf"]["index"]]
        save(folder, _CONTRACT, contract)


def fit_manifest(folder: Path) -> None:
    """The manifest lists all files that are there, and names their contract and proof root."""
    paths = [Path(at, name).relative_to(folder).as_posix() for at, _, names in os.walk(folder) for name in names]
    contents = {path: (folder / path).read_bytes() for path in sorted(paths) if path != _MANIFEST}
    listed = [{"digest": sha256(data), "path": path, "size": len(data)} for path, data in contents.items()]
    top = root([entry_hash(bytes.fromhex(digest(leaf))) for leaf in load(folder, _LEAVES)])
    named = {"contract": digest(load(folder, _CONTRACT)), "proof_root": top.hex(), "files": listed}
    save(folder, _MANIFEST, {**load(folder, _MANIFEST), **named})


def fit_verdict(folder: Path) -> None:
    """The verdict names the contract and the proof root; its signature is none any more."""
    manifest_before = (folder / _MANIFEST).read_bytes()
    fit_manifest(folder)
    manifest, signed = load(folder, _MANIFEST), load(folder, "verdict.json")
    signed["verdict"] |= {name: manifest[name] for name in ("contract", "proof_root")}
    save(folder, "verdict.json", signed)
    (folder / _MANIFEST).write_bytes(manifest_before)


_FITS: dict[str, Callable[[Path], None]] = {
    "files": fit_files,
    "states": fit_states,
    "chain": fit_chain,
    "verdict": fit_verdict,
    "manifest": fit_manifest,
}
