"""Where the script and the data of a run lie on this machine, and whether they are those of the contract."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labapex import bundle
from labapex.errors import MalformedInput, Tampered, UsageError
from labapex.proof.folder import Content, Files, Proof, code_text, new_file
from labapex.protocol.spec import JobSpec, Part

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Sources:
    """A run's files: `contents` by their path in the run's folder. `borrowed`: code that came from the proof itself."""

    script: str
    files: Files
    contents: Mapping[str, Content]
    borrowed: tuple[str, ...] = ()

    def fill(self, work: Path) -> None:
        """Write them below an empty folder. Raises `Tampered` where one is not what it was a moment ago."""
        for part in (*self.files.code, *self.files.data):
            target = work / part.path
            try:
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _copy(part, self.contents[part.path], target)
            except (FileExistsError, NotADirectoryError):
                raise MalformedInput(f"files.json: {part.path} stands in the way of another file") from None


def collect(script: Path, data: Path | None) -> Sources:
    """The files of a run that is to be recorded: as `bundle` chooses them, from the script's folder, and those of `data`.

    Without `data` the folder `data` beside the script is taken, if there is one. Raises `UsageError`.
    """
    if script.suffix != ".py" or not script.is_file():
        raise UsageError(f"{script} is no Python file; name the script that trains")
    root = script.resolve().parent
    if data is None and (root / "data").is_dir():
        data = root / "data"
    place = data.resolve() if data is not None else None
    if place is not None and not place.is_dir():
        raise UsageError(f"--data: there is no folder {data}")
    if place == root or (place is not None and root.is_relative_to(place)):
        raise UsageError("--data must be a folder that does not hold the script")
    inside = place.relative_to(root).as_posix() if place is not None and place.is_relative_to(root) else None
    spec = JobSpec.model_validate({"script": script.resolve().name, "data": inside, "epochs": 1, "budget": 1})
    found = bundle.collect(root, spec)
    parts, contents = found.bundle.data, {p.path: found.files[p.digest] for p in found.bundle.data}
    prefix = inside
    if place is not None and inside is None:
        prefix = place.name
        parts, contents = bundle.below(place, prefix)
    contents |= {p.path: found.files[p.digest] for p in found.bundle.code}
    files = Files(code=found.bundle.code, data=parts, data_root=prefix)
    return Sources(spec.script, files, contents)


def match(proof: Proof, script: Path | None, data: Path | None) -> Sources:
    """The files of a recorded run, from the proof and from what the verifier has; the verifier's win.

    Raises `Tampered` where the verifier's are others than the contract's, `UsageError` where some are lacking.
    """
    root = _root(proof, script) if script is not None else None
    contents: dict[str, Content] = {}
    borrowed = []
    for part in proof.files.code:
        own = script if part.path == proof.contract.script else root / part.path if root is not None else None
        if own is not None and own.is_file():
            contents[part.path] = _same(own, part, "the run was made with another")
        elif (text := code_text(proof, part)) is not None:
            contents[part.path] = text
            borrowed.append(part.path)
        else:
            raise UsageError(f"the proof does not hold {part.path}: name the run's script with --script")
    parents = {parent.path: parent.weights for parent in proof.contract.parents}
    listed = {part.path: part.digest for part in proof.files.data}
    if not parents.items() <= listed.items():
        raise MalformedInput("files.json: a model that the contract starts from is not among the data")
    parts = [part for part in proof.files.data if part.path not in parents]
    if parts:
        contents |= _data(proof, parts, root, data)
    elif data is not None:
        raise Tampered("the run was made without data, and --data names some")
    contents |= {part.path: _parent(proof, part, root) for part in proof.files.data if part.path in parents}
    return Sources(proof.contract.script, proof.files, contents, tuple(borrowed) if script is not None else ())


def _root(proof: Proof, script: Path) -> Path:
    """The folder that the contract's paths count from."""
    if not script.is_file():
        raise UsageError(f"--script: there is no file {script}")
    return script.resolve().parents[proof.contract.script.count("/")]


def _data(proof: Proof, listed: Sequence[Part], root: Path | None, data: Path | None) -> dict[str, Content]:
    prefix = proof.files.data_root
    if prefix is None or not all(part.path.startswith(f"{prefix}/") for part in listed):
        raise MalformedInput("files.json: all data must lie below data_root")
    if data is None:
        data = _nearby(proof, listed, root, prefix)
    if not data.is_dir():
        raise UsageError(f"--data: there is no folder {data}")
    parts, contents = bundle.below(data.resolve(), prefix)
    ours, theirs = ({part.path: part.digest for part in each} for each in (parts, listed))
    for path in sorted(ours.keys() | theirs.keys()):
        if ours.get(path) != theirs.get(path):
            how = "is not in the run's data" if path not in theirs else "is missing" if path not in ours else "differs"
            raise Tampered(f"the run was made with other data than {data}: {path} {how}")
    return dict(contents)


def _places(proof: Proof, root: Path | None) -> list[Path]:
    """Where the run's files are looked for when nobody says where they are: beside the script, here, beside the proof."""
    return [place for place in (root, Path.cwd(), proof.root.absolute().parent) if place is not None]


def _nearby(proof: Proof, listed: Sequence[Part], root: Path | None, prefix: str) -> Path:
    """The data's folder in one of the usual places. Its digests are still checked."""
    for place in _places(proof, root):
        if not (place / prefix).is_dir():
            continue
        found = [place / part.path for part in listed]
        if place == root or all(p.is_file() and p.stat().st_size == s.size for p, s in zip(found, listed, strict=True)):
            return place / prefix
    many = len(listed)
    read = f"{many} files" if many > 1 else "a file"
    raise UsageError(f"the run read {read} of '{prefix}': name that folder with --data")


def _parent(proof: Proof, part: Part, root: Path | None) -> Path:
    """The file of a model that the run started from; it is digested when it is copied."""
    for place in _places(proof, root):
        if (place / part.path).is_file() and (place / part.path).stat().st_size == part.size:
            return place / part.path
    raise UsageError(
        f"the run started from a certified model: put its file, with SHA-256 {part.digest}, at {part.path} beside the script"
    )


def _same(path: Path, part: Part, otherwise: str) -> bytes:
    try:
        text = path.read_bytes() if path.stat().st_size == part.size else b""
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(text).hexdigest() != part.digest:
        raise Tampered(f"{path} is not {part.path} of the contract: {otherwise}")
    return text


def _copy(part: Part, content: Content, target: Path) -> None:
    state = hashlib.sha256()
    with new_file(target) as file:
        if isinstance(content, bytes):
            state.update(content)
            file.write(content)
        else:
            with content.open("rb") as source:
                for chunk in iter(lambda: source.read(_CHUNK), b""):
                    state.update(chunk)
                    file.write(chunk)
    if state.hexdigest() != part.digest:
        raise Tampered(f"{part.path} was changed while it was being read; run the command again")
