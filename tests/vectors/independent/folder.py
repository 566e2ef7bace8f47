"""A folder on disk: sizes, names, canonical JSON, fields, digests, the proof root, and what has to be there."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from tests.vectors.independent import chunks
from tests.vectors.independent.canonical import canonical, digest, sha256
from tests.vectors.independent.forms import (
    CHALLENGE,
    CONTRACT,
    ENVIRONMENT,
    FILES,
    LEAF,
    MANIFEST,
    NO_PACKAGES,
    REQUIREMENTS,
    SIGNED,
    Document,
    Form,
)
from tests.vectors.independent.refused import Refused
from tests.vectors.independent.trees import entry_hash, root


class Folder:
    """A folder whose `form` holds. Raises `Refused`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.manifest = self._document("manifest.json", self._bytes("manifest.json", 64 << 20), MANIFEST)
        paths = [entry["path"] for entry in self.manifest["files"]]
        _form(paths == sorted(set(paths)), "the manifest's files are not in order")
        self.entries = {entry["path"]: entry for entry in self.manifest["files"]}
        self.contract = self._listed("contract.json", CONTRACT)
        _form(digest(self.contract) == self.manifest["contract"], "another contract")
        asked = self.contract["epochs"] * self.contract["facts"]["iterations_per_epoch"]
        many = self.contract["epochs"] + asked // self.contract["checkpoint_every"]
        _form(asked <= 1 << 24 and many < 100_000, "the contract is too long")
        counted = self.contract["epochs"] if self.contract["stopped"] is None else self.contract["stopped"]
        _form(counted <= self.contract["epochs"], "more epochs count than there are")
        self.iterations = counted * self.contract["facts"]["iterations_per_epoch"]
        self.held: set[int] = set()  # states of hosts that were lost
        for each in self.contract["handovers"]:
            gone = self.contract["handovers"][-1]["lease"] == self.contract["lease"]  # the last host, too
            steps = due_steps(self)[: None if gone else -1]
            _form(_follows(each, max(self.held, default=-1), steps), "the run was handed over as none can be")
            self.held |= set(each["held"])
        lines = self.content("leaves.jsonl").split(b"\n")
        _form(lines.pop() == b"" and len(lines) <= 100_000, "leaves.jsonl is not of lines")
        self.leaves = [self._document("leaves.jsonl", line, LEAF) for line in lines]
        top = root([entry_hash(bytes.fromhex(digest(leaf))) for leaf in self.leaves])
        _form(top.hex() == self.manifest["proof_root"], "another proof root")
        files = self._listed("files.json", FILES)
        _form(digest(files["code"]) == self.contract["code"], "other code")
        _form(digest(files["data"]) == self.contract["data"], "other data")
        named = "requirements.json" in self.entries
        packages = self._listed("requirements.json", REQUIREMENTS) if named else NO_PACKAGES
        _form(digest(packages) == self.contract["requirements"], "other packages")
        for names in ([each["name"] for each in packages[kind]] for kind in ("given", "wheels")):
            _form(names == sorted(set(names)), "packages are not in order")
        self.losses = self.content("losses.f64")
        _form(not len(self.losses) % 8 and not len(self.content("times.f64")) % 8, "no column")
        if "environment.json" in self.entries:
            self._listed("environment.json", ENVIRONMENT)
        self.challenge = self._listed("challenge.json", CHALLENGE) if "challenge.json" in self.entries else None
        if "verdict.json" in self.entries:
            stated = self._listed("verdict.json", SIGNED)["verdict"]
            named = (stated.get("contract"), stated.get("proof_root"))
            _form(named == (self.manifest["contract"], self.manifest["proof_root"]), "the verdict is on another run")
        for path in self.entries:
            self.content(path)
        self._contents(files)

    @property
    def states(self) -> list[int]:
        return sorted(int(path[7:-12]) for path in self.entries if path.startswith("states/"))

    def kept(self, last: int) -> set[int]:
        own = {*range(0, last, self.contract["keep_every"]), last}
        return {n for n in own if n > max(self.held, default=-1)} | self.held

    def content(self, path: str) -> bytes:
        """The bytes of a listed file, if they are the manifest's."""
        _form(path in self.entries, f"{path} is missing")
        entry = self.entries[path]
        data = self._bytes(path, entry["size"])
        _form(len(data) == entry["size"] and sha256(data) == entry["digest"], f"{path} is another one")
        return data

    def _contents(self, files: Document) -> None:
        for index in self.states:
            size = self.entries[f"states/{index}.safetensors"]["size"]
            _form(index < len(self.leaves) and size == self.leaves[index]["size"], f"the size of state {index}")
        if "chunks.bin" in self.entries:
            number = self.challenge["chunk"] if self.challenge else None
            if number is None:
                raise Refused("form", "chunks that nobody asked for")
            sizes = [size for leaf in chunks.asked(self) for size in chunks.lengths(self, leaf, number, "form")]
            _form(self.entries["chunks.bin"]["size"] == sum(sizes), "the size of chunks.bin")
        known = {part["digest"]: part["size"] for part in files["code"]}
        code = {path[5:]: entry for path, entry in self.entries.items() if path.startswith("code/")}
        _form(
            all(name == entry["digest"] and known.get(name) == entry["size"] for name, entry in code.items()),
            "code/ holds what is not the run's",
        )
        if self.manifest["origin"] == "recorded":
            _form("weights.safetensors" in self.entries, "no weights")
            due = self.kept(len(due_steps(self)) - 1) & set(range(len(self.leaves)))
            _form(due <= set(self.states), "a state is missing")

    def _listed(self, path: str, form: Form) -> Document:
        return self._document(path, self.content(path), form)

    def _document(self, path: str, data: bytes, form: Form) -> Document:
        try:
            document = json.loads(data)
            plain = canonical(document)
        except (ValueError, RecursionError):
            raise Refused("form", f"{path} is no JSON") from None
        _form(plain == data, f"{path} is not canonical")
        _form(form(document), f"{path} has another form")
        found: Document = document
        return found

    def _bytes(self, path: str, limit: int) -> bytes:
        place = self.place / path
        try:
            real = stat.S_ISREG(place.lstat().st_mode) and (place.parent == self.place or not place.parent.is_symlink())
            _form(real and place.stat().st_size <= limit, f"{path} is no file of that size")
            return place.read_bytes()
        except OSError as error:
            raise Refused("form", f"{path}: {os.strerror(error.errno or 0)}") from None


def _form(holds: bool, why: str) -> None:
    if not holds:
        raise Refused("form", why)


def due_steps(folder: Folder) -> list[int]:
    ends = range(folder.contract["facts"]["iterations_per_epoch"], folder.iterations + 1)
    ends = ends[:: folder.contract["facts"]["iterations_per_epoch"]]
    return sorted({*range(0, folder.iterations, folder.contract["checkpoint_every"]), *ends})


def _follows(handover: Document, before: int, steps: list[int]) -> bool:
    """Whether a handover lies behind the one before it, with the leaves that are held of its stint; the first with leaf 0."""
    held, leaf = handover["held"], handover["leaf"]
    ascends = held == sorted(set(held)) and before < held[0] and (before >= 0 or held[0] == 0)
    return ascends and held[-1] == leaf["index"] < len(steps) and leaf["step"] == steps[leaf["index"]]
