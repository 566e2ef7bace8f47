"""Which files of a folder belong to a job. Decided before a byte is sent, so that nothing private travels by accident.

Code is the script and every other Python file of the folder, except in hidden folders, virtual environments,
`__pycache__` and the data folder; data is every file of the folder named by the spec's `data`. Nothing else is taken.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from labapex.errors import UsageError
from labapex.protocol.spec import MAX_CODE_BYTES, MAX_DATA_BYTES, MAX_FILES, Bundle, JobSpec, Part, relative_path

_CHUNK = 1 << 20


@dataclass(frozen=True)
class LocalBundle:
    """A job's files: the list that is submitted, and where each content lies on this machine."""

    bundle: Bundle
    files: dict[str, Path]  # digest -> one file with this content
    models: dict[str, Path] = field(default_factory=dict)  # the same of the models that it starts from

    @property
    def code_bytes(self) -> int:
        return sum(part.size for part in self.bundle.code)

    @property
    def data_bytes(self) -> int:
        return sum(part.size for part in self.bundle.data)


def collect(folder: Path, spec: JobSpec, *, max_data_bytes: int = MAX_DATA_BYTES) -> LocalBundle:
    """Find and digest the files of a job. Raises `UsageError` that names the file which cannot be taken, and why."""
    root = folder.resolve()
    if not root.is_dir():
        raise UsageError(f"{folder} is not a folder")
    data_folder = _data_folder(root, spec)
    code_paths = {*_code_paths(root, data_folder), _script(root, spec, data_folder)}
    data_paths = set(_walk(root, data_folder)) if data_folder else set()
    if data_folder and not data_paths:
        raise UsageError(f"data: the folder '{spec.data}' holds no file{_hint(root)}")
    for what, paths, limit in (("code", code_paths, MAX_CODE_BYTES), ("data", data_paths, max_data_bytes)):
        _check_amount(what, paths, limit)
    files: dict[str, Path] = {}
    code, data = (_parts(root, paths, files) for paths in (code_paths, data_paths))
    return LocalBundle(Bundle(code=code, data=data), files)


def below(folder: Path, prefix: str) -> tuple[tuple[Part, ...], dict[str, Path]]:
    """Every file below `folder` as a part whose path begins with `prefix`, and where it lies. Raises `UsageError`."""
    paths = set(_walk(folder, folder))
    if not paths:
        raise UsageError(f"data: the folder '{folder}' holds no file")
    _check_amount("data", paths, MAX_DATA_BYTES)
    parts = _parts(folder, paths, {})
    return (
        tuple(part.model_copy(update={"path": f"{prefix}/{part.path}"}) for part in parts),
        {f"{prefix}/{part.path}": folder / part.path for part in parts},
    )


def _data_folder(root: Path, spec: JobSpec) -> Path | None:
    if spec.data is None:
        return None
    path = root / spec.data
    if path == root:
        raise UsageError("data: must be a folder inside the job's folder, not the job's folder itself")
    if not path.is_dir():
        raise UsageError(f"data: there is no folder '{spec.data}' in {root}{_hint(root)}")
    if path.resolve() != path:
        raise UsageError(f"data: '{spec.data}' is a symbolic link; name the folder itself")
    return path


def _hint(root: Path) -> str:
    return "; run `python prepare.py` there first" if (root / "prepare.py").is_file() else ""


def _script(root: Path, spec: JobSpec, data_folder: Path | None) -> Path:
    path = root / spec.script
    if not path.is_file():
        raise UsageError(f"script: there is no file '{spec.script}' in {root}")
    if data_folder and data_folder in path.parents:
        raise UsageError(f"script: '{spec.script}' lies in the data folder; move it out")
    _check_kind(root, path)
    return path


def _code_paths(root: Path, data_folder: Path | None) -> Iterator[Path]:
    def skipped(path: Path) -> bool:
        hidden = path.name.startswith(".") or path.name == "__pycache__"
        return hidden or path == data_folder or (path / "pyvenv.cfg").exists()

    for path in _walk(root, root, skipped):
        if path.suffix == ".py" and not path.name.startswith("."):
            yield path


def _walk(root: Path, top: Path, skipped: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Regular files under `top`. Links to files inside `root` count as files; what leads elsewhere is refused."""
    stack = [top]
    while stack:
        for entry in sorted(os.scandir(stack.pop()), key=lambda e: e.name):
            path = Path(entry.path)
            if entry.is_dir():
                if skipped and skipped(path):
                    continue
                if entry.is_symlink():
                    raise UsageError(f"'{path.relative_to(root)}' is a symbolic link to a folder; put the folder there")
                stack.append(path)
            elif skipped is None or path.suffix == ".py":
                _check_kind(root, path)
                yield path


def _check_kind(root: Path, path: Path) -> None:
    name = path.relative_to(root)
    try:
        target = path.resolve(strict=True)
        kind = target.stat().st_mode
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise UsageError(f"'{name}' cannot be read: {error}") from None
    if root not in target.parents:
        raise UsageError(f"'{name}' is a symbolic link that leaves the job's folder; copy the file into it")
    if not stat.S_ISREG(kind):
        raise UsageError(f"'{name}' is not a regular file")


def _check_amount(what: str, paths: set[Path], limit: int) -> None:
    if len(paths) > MAX_FILES:
        raise UsageError(
            f"{what}: {len(paths)} files, at most {MAX_FILES} are accepted; pack small files into larger ones"
        )
    total = sum(path.stat().st_size for path in paths)
    if total > limit:
        raise UsageError(f"{what}: {total:,} bytes, at most {limit:,} are accepted")


def _parts(root: Path, paths: set[Path], files: dict[str, Path]) -> tuple[Part, ...]:
    parts = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        try:
            name.encode()
            relative_path(name)
        except ValueError as error:
            raise UsageError(f"the file name {name!r} cannot be used: {error}") from None
        digest, size = _digest(path)
        files.setdefault(digest, path)
        parts.append(Part(path=name, digest=digest, size=size))
    return tuple(sorted(parts, key=lambda part: part.path))


def _digest(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file, read in a stream."""
    state, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                state.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}") from None
    return state.hexdigest(), size
