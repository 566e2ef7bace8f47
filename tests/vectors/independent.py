"""A reader of proof folders that shares no line with Lab Apex: written after docs/proof-folder.md, standard library alone.

    python tests/vectors/independent.py DIR

It goes as far as one gets without running the script: `form`, `log` and `shown`. Which states a nonce gives is not drawn again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

Document = dict[str, Any]
NAMES = re.compile(
    r"(contract|environment|files|requirements|challenge|verdict)\.json|leaves\.jsonl|(losses|times)\.f64|chunks\.bin"
    r"|weights\.safetensors|states/(0|[1-9][0-9]{0,5})\.safetensors|code/[0-9a-f]{64}"
)
CHUNK = 16 * 1024
WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
TYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1),
    "U64": ("uint64", 8), "U32": ("uint32", 4), "U16": ("uint16", 2), "U8": ("uint8", 1),
    "BOOL": ("bool", 1), "C64": ("complex64", 8), "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
}  # fmt: skip


class Refused(Exception):
    """`stage`: how far the folder holds: `form`, `log` or `shown`."""

    def __init__(self, stage: str, why: str) -> None:
        super().__init__(f"{stage}: {why}")
        self.stage = stage


# -- canonical JSON and trees ------------------------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    """RFC 8785. Raises `ValueError` for what it cannot spell."""
    return _spelled(value).encode()


def _spelled(value: Any) -> str:
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return "{" + ",".join(f"{_spelled(key)}:{_spelled(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_spelled, value)) + "]"
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int) and abs(value) <= 2**53 - 1:
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return _number(value)
    raise ValueError("no canonical JSON")


def _number(value: float) -> str:
    """As ECMAScript spells it."""
    if value == 0:
        return "0"
    if 1e-6 <= abs(value) < 1e21:
        text = format(Decimal(repr(value)), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    digits, _, exponent = format(Decimal(repr(value)).normalize(), "e").partition("e")
    return f"{digits}e{int(exponent):+d}"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    return sha256(canonical(value))


def entry_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def root(hashes: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, over entries that are hashed already."""
    if len(hashes) < 2:
        return hashes[0] if hashes else hashlib.sha256().digest()
    split = _split(len(hashes))
    return hashlib.sha256(b"\1" + root(hashes[:split]) + root(hashes[split:])).digest()


def climbed(node: bytes, place: int, size: int, path: list[bytes]) -> bytes:
    """The root that an audit path gives for entry `place` of `size`. The path is as long as `height` says."""
    if size == 1:
        return node
    split, *below = _split(size), *path[:-1]
    if place < split:
        return hashlib.sha256(b"\1" + climbed(node, place, split, below) + path[-1]).digest()
    return hashlib.sha256(b"\1" + path[-1] + climbed(node, place - split, size - split, below)).digest()


def height(place: int, size: int) -> int:
    if size == 1:
        return 0
    split = _split(size)
    return 1 + (height(place, split) if place < split else height(place - split, size - split))


def _split(size: int) -> int:
    return 1 << (size - 1).bit_length() - 1


# -- forms -------------------------------------------------------------------------------------------------------------

Form = Callable[[Any], bool]


def whole(least: int = 0, most: int = 2**53 - 1) -> Form:
    return lambda value: type(value) is int and least <= value <= most


def text(pattern: str = r"[\s\S]*", most: int = 1 << 20) -> Form:
    return lambda value: isinstance(value, str) and len(value) <= most and re.fullmatch(pattern, value) is not None


def number(least: float = 0, most: float = math.inf) -> Form:
    return lambda value: type(value) in (int, float) and least <= value <= most


def listed(form: Form, least: int = 0, most: int = 200_000) -> Form:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(form, value))


def fields(**forms: Form) -> Form:
    return lambda value: (
        isinstance(value, dict) and value.keys() == forms.keys() and all(forms[key](value[key]) for key in forms)
    )


def one_of(*values: Any) -> Form:
    return lambda value: any(type(value) is type(each) and value == each for each in values)


def either(*forms: Form) -> Form:
    return lambda value: any(form(value) for form in forms)


def relative(value: Any) -> bool:
    if not isinstance(value, str) or not value or "\0" in value or "\\" in value:
        return False
    path = PurePosixPath(value)
    return str(path) == value and not path.is_absolute() and value != "." and ".." not in path.parts


NONE, FLAG, SHA = one_of(None), one_of(True, False), text(r"[0-9a-f]{64}")
UUID = text(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PART = fields(digest=SHA, path=relative, size=whole(0, 2**40))
ENVIRONMENT = fields(
    capability=text(most=40), device=text(most=200), python=text(most=40), threads=whole(1, 256), torch=text(most=80)
)
MANIFEST = fields(
    contract=SHA,
    files=listed(fields(digest=SHA, path=text(NAMES.pattern), size=whole(0, 2**40))),
    format=one_of(1),
    origin=one_of("recorded", "platform"),
    proof_root=SHA,
)
LEAF = fields(
    batches=SHA,
    chunks=whole(1, 2**40 - 1),
    index=whole(),
    losses=SHA,
    prev=SHA,
    settings=SHA,
    size=whole(),
    state=SHA,
    step=whole(),
    update_norm=either(NONE, number()),
)
HANDOVER = fields(held=listed(whole(), least=1, most=100_000), leaf=LEAF, lease=UUID)
CONTRACT = fields(
    args=listed(text()),
    checkpoint_every=whole(1),
    code=SHA,
    data=SHA,
    epochs=whole(1),
    facts=fields(
        gradients_are_state=FLAG,
        has_loader=FLAG,
        iterations_per_epoch=whole(1),
        layout=listed(fields(size=whole(1), type=text(most=20)), most=4096),
        loop=text(most=500),
        parameters=whole(),
        state_bytes=whole(),
    ),
    format=one_of(1),
    handovers=listed(HANDOVER, most=64),
    job=UUID,
    keep_every=whole(1),
    lease=UUID,
    parents=listed(fields(certificate=SHA, path=relative, success=number(0, 1), weights=SHA)),
    requirements=SHA,
    script=relative,
    seed=SHA,
    threads=whole(1),
    upload_every=whole(),
)
PACKAGE = {"name": text(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", 200), "version": text(most=100)}
NO_PACKAGES: Document = {"format": 1, "given": [], "python": "", "wheels": []}
REQUIREMENTS = fields(
    format=one_of(1),
    given=listed(fields(**PACKAGE), most=1000),
    python=text(r"(3\.[0-9]{1,2})?"),
    wheels=listed(
        fields(file=text(r"[A-Za-z0-9_.+!-]+\.whl", 300), sha256=SHA, size=whole(1, 4 << 30), **PACKAGE), most=200
    ),
)
FILES = fields(code=listed(PART, least=1, most=4096), data=listed(PART, most=4096), data_root=either(NONE, relative))
CHALLENGE = fields(
    audit_segments=whole(0, 100_000),
    chunk=either(NONE, whole()),
    chunk_nonce=SHA,
    ends=FLAG,
    evaluations=listed(fields(epoch=whole(1), iterations=listed(whole(-(2**53))), leaf=whole())),
    further=listed(whole(-(2**53))),
    further_segments=listed(whole(-(2**53))),
    indices=listed(whole(-(2**53))),
    nonce=either(NONE, SHA),
    pev_percent=lambda value: number(0, 100)(value) and value > 0,
    segments=listed(whole(-(2**53))),
    top_q=whole(0, 100_000),
)
SIGNED = fields(key_id=text(), signature=text(r"[A-Za-z0-9_-]{86}=="), verdict=lambda value: isinstance(value, dict))


# -- the folder --------------------------------------------------------------------------------------------------------


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
        self.iterations = self.contract["epochs"] * self.contract["facts"]["iterations_per_epoch"]
        many = self.contract["epochs"] + self.iterations // self.contract["checkpoint_every"]
        _form(self.iterations <= 1 << 24 and many < 100_000, "the contract is too long")
        self.held: set[int] = set()  # states of hosts that were lost
        for each in self.contract["handovers"]:
            _form(_follows(each, max(self.held, default=-1), _steps(self)), "the run was handed over as none can be")
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
            sizes = [size for leaf in _asked(self) for size in _lengths(self, leaf, number, "form")]
            _form(self.entries["chunks.bin"]["size"] == sum(sizes), "the size of chunks.bin")
        known = {part["digest"]: part["size"] for part in files["code"]}
        code = {path[5:]: entry for path, entry in self.entries.items() if path.startswith("code/")}
        _form(
            all(name == entry["digest"] and known.get(name) == entry["size"] for name, entry in code.items()),
            "code/ holds what is not the run's",
        )
        if self.manifest["origin"] == "recorded":
            _form("weights.safetensors" in self.entries, "no weights")
            due = self.kept(len(_steps(self)) - 1) & set(range(len(self.leaves)))
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


def _steps(folder: Folder) -> list[int]:
    ends = range(folder.contract["facts"]["iterations_per_epoch"], folder.iterations + 1)
    ends = ends[:: folder.contract["facts"]["iterations_per_epoch"]]
    return sorted({*range(0, folder.iterations, folder.contract["checkpoint_every"]), *ends})


def _follows(handover: Document, before: int, steps: list[int]) -> bool:
    """Whether a handover lies behind the one before it, with the leaves that are held of its stint; the first with leaf 0."""
    held, leaf = handover["held"], handover["leaf"]
    ascends = held == sorted(set(held)) and before < held[0] and (before >= 0 or held[0] == 0)
    return ascends and held[-1] == leaf["index"] < len(steps) - 1 and leaf["step"] == steps[leaf["index"]]


# -- the log -----------------------------------------------------------------------------------------------------------


def check_log(folder: Folder) -> None:
    """The leaves that are due follow one another from the contract on, and commit to the losses. Raises `Refused`."""
    if [leaf["step"] for leaf in folder.leaves] != _steps(folder):
        raise Refused("log", "other leaves are due")
    if len(folder.losses) != 8 * folder.iterations:
        raise Refused("log", "other losses are due")
    begun = folder.contract
    for each in begun["handovers"]:
        if each["leaf"] != folder.leaves[each["leaf"]["index"]]:
            raise Refused("log", "the run was handed over behind another leaf")
    if begun["handovers"]:  # the chain begins with the terms of the first host, which are the same but for who has them
        begun = begun | {"lease": begun["handovers"][0]["lease"], "handovers": []}
    before, at = digest(begun), 0
    for index, leaf in enumerate(folder.leaves):
        if (leaf["index"], leaf["prev"]) != (index, before):
            raise Refused("log", f"leaf {index} does not follow")
        if leaf["losses"] != sha256(folder.losses[8 * at : 8 * leaf["step"]]):
            raise Refused("log", f"leaf {index} commits to other losses")
        before, at = digest(leaf), leaf["step"]


# -- states and chunks -------------------------------------------------------------------------------------------------


def tree(data: bytes) -> tuple[list[bytes], list[Document]]:
    """A state file's entries, hashed, and the layout of its parameters. Raises `ValueError` and the like."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    said, body = header.pop("__metadata__"), data[8 + length :]
    parameters, structure = json.loads(said["parameters"]), json.loads(said["structure"])
    end = 0
    for each in sorted(header.values(), key=lambda each: each["data_offsets"]):
        start, stop = each["data_offsets"]
        if start != end or stop - start != TYPES[each["dtype"]][1] * math.prod(each["shape"]):
            raise ValueError("tensors that do not cover the file")
        end = stop
    if end != len(body) or not set(parameters) <= header.keys() or not isinstance(structure, dict):
        raise ValueError("no state file")
    shapes = [[name, f"torch.{TYPES[header[name]['dtype']][0]}", header[name]["shape"]] for name in sorted(header)]
    entries = [canonical({"parameters": sorted(parameters), "structure": structure, "tensors": shapes})]
    for names in (set(parameters), header.keys() - set(parameters)):
        order = sorted(names, key=lambda name: (-TYPES[header[name]["dtype"]][1], name))
        stream = b"".join(body[slice(*header[name]["data_offsets"])] for name in order)
        entries += [stream[at : at + CHUNK] for at in range(0, len(stream), CHUNK)]
    return [entry_hash(entry) for entry in entries], _layout(header, set(parameters))


def _layout(header: Document, names: set[str]) -> list[Document]:
    found: list[Document] = []
    for name in sorted(names, key=lambda name: (-TYPES[header[name]["dtype"]][1], name)):
        kind, (start, stop) = TYPES[header[name]["dtype"]][0], header[name]["data_offsets"]
        if found and found[-1]["type"] == kind:
            found[-1]["size"] += stop - start
        elif stop > start:
            found.append({"size": stop - start, "type": kind})
    return found


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
    count = _count(folder)
    if challenge["chunk"] != (random.Random(challenge["chunk_nonce"]).randrange(count) if count else None):
        raise Refused("shown", "the nonce gives another chunk")
    if challenge["chunk"] is not None:
        if "chunks.bin" not in folder.entries:
            raise Refused("shown", "the chunk was never shown")
        data, at, place = folder.content("chunks.bin"), 0, 1 + challenge["chunk"]
        for leaf in _asked(folder):
            size, rest = _lengths(folder, leaf, challenge["chunk"], "shown")
            chunk, path = data[at : at + size], list(_hashes(data[at + size : at + size + rest]))
            if climbed(entry_hash(chunk), place, leaf["chunks"], path).hex() != leaf["state"]:
                raise Refused("shown", f"the chunk of leaf {leaf['index']} is another one")
            at += size + rest
    if challenge["nonce"] is None:
        raise Refused("shown", "nothing was drawn")


def _asked(folder: Folder) -> list[Document]:
    """The leaves of which the chunk is asked: those whose states the host kept, until a norm is null."""
    kept = folder.kept(len(folder.leaves) - 1)
    ends = [n for n, leaf in enumerate(folder.leaves) if n and leaf["update_norm"] is None]
    return [leaf for n, leaf in enumerate(folder.leaves) if n in kept and n < min(ends, default=n + 1)]


def _lengths(folder: Folder, leaf: Document, number: int, stage: str) -> tuple[int, int]:
    """Bytes of a leaf's chunk and of its path."""
    if leaf["chunks"] < 1 + _chunks(folder) or number >= _chunks(folder):
        raise Refused(stage, f"leaf {leaf['index']} has no such chunk")
    return min(CHUNK, _total(folder) - number * CHUNK), 32 * height(1 + number, leaf["chunks"])


def _hashes(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 32] for at in range(0, len(data), 32))


def _total(folder: Folder) -> int:
    return sum(stretch["size"] for stretch in folder.contract["facts"]["layout"])


def _chunks(folder: Folder) -> int:
    return -(-_total(folder) // CHUNK)


def _count(folder: Folder) -> int:
    """Chunks to draw from: none where no type of the parameters can be measured."""
    known = any(stretch["type"] in WIDTHS for stretch in folder.contract["facts"]["layout"])
    return _chunks(folder) if known else 0


def read(place: Path) -> Folder:
    """All that can be known without the script. Raises `Refused`."""
    folder = Folder(place)
    check_log(folder)
    check_shown(folder)
    return folder


if __name__ == "__main__":
    try:
        read(Path(sys.argv[1]))
    except Refused as refused:
        sys.exit(str(refused))
