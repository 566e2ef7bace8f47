"""Which build of torch a host has, by what was written down when it was installed, and whether its files are still those.

A wheel's RECORD (<https://packaging.python.org/en/latest/specifications/recording-installed-packages/>) names every file
with its SHA-256. The digest over that list names the build, and costs milliseconds; whether the files are what the list says is
looked up in full (a second or two), or for a few that somebody else chooses. Compiled Python files are not in it.

Whoever has root on the host can answer all of this as he likes: it finds what was mended, mixed or damaged, and the liar who
did not take the trouble. What was computed is the matter of replay.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from labapex.errors import MalformedInput
from labapex.protocol.canonical import digest

MAX_RECORD = 64 << 20
SAMPLE_FILES = 64
SAMPLE_BYTES = 8 << 20  # larger files are looked at in full checks alone: a sample has a fifth of a second
_CODE = re.compile(r".*\.(py|so|so\.[0-9.]+)")
_VERSION = re.compile(r"""^__version__ = ['"]([^'"]{1,80})['"]$""", re.MULTILINE)


@dataclass(frozen=True)
class Build:
    """An installed torch. `files`: path below `root` -> SHA-256, of Python and shared libraries, ascending."""

    root: Path
    version: str  # as torch says it of itself: "2.13.0+cu130"
    files: dict[str, str]

    @cached_property
    def digest(self) -> str:
        """The name of this build: SHA-256 of the canonical list of its files."""
        return digest([[path, sha256] for path, sha256 in self.files.items()])

    def altered(self, paths: Iterable[str] | None = None) -> str | None:
        """The first of these files (of all) that is not what was installed, None where there is none."""
        for path in self.files if paths is None else paths:
            try:
                with (self.root / path).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                return path
            if found != self.files[path]:
                return path
        return None

    def sample(self, seed: str) -> Sequence[str]:
        """Up to `SAMPLE_FILES` files that are looked at where the seed is this one: nobody knows them who does not know it."""
        drawn = sorted(self.files, key=lambda path: hashlib.sha256(f"{seed}/{path}".encode()).digest())
        return [path for path in drawn if self._size(path) <= SAMPLE_BYTES][:SAMPLE_FILES]

    def _size(self, path: str) -> int:
        try:
            return (self.root / path).stat().st_size
        except OSError:
            return 0  # missing, and therefore worth a look


def find(site_packages: Iterable[Path]) -> Build | None:
    """The torch that is imported from these folders, the first that holds one; None where none was installed with a RECORD.

    Raises `MalformedInput` for a RECORD that is none."""
    for root in site_packages:
        for record in sorted(root.glob("torch-*.dist-info/RECORD")):
            return Build(root, _version(root), dict(sorted(_read(record).items())))
    return None


def _read(record: Path) -> dict[str, str]:
    if record.stat().st_size > MAX_RECORD:
        raise MalformedInput(f"{record} has more than {MAX_RECORD} bytes; install torch anew")
    files = {}
    try:
        for path, said, _ in csv.reader(record.read_text().splitlines()):
            if not _CODE.fullmatch(path):
                continue
            kind, _, value = said.partition("=")
            raw = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
            if (
                kind != "sha256"
                or len(raw) != 32
                or not path.isprintable()
                or path.startswith("/")
                or ".." in PurePosixPath(path).parts
            ):
                raise ValueError(path)
            files[path] = raw.hex()
    except (ValueError, csv.Error, binascii.Error) as error:
        raise MalformedInput(f"{record} is no list of installed files ({error}); install torch anew") from None
    return files


def _version(root: Path) -> str:
    try:
        with (root / "torch" / "version.py").open() as file:
            found = _VERSION.search(file.read(1 << 16))
    except (OSError, UnicodeDecodeError):
        found = None
    if found is None:
        raise MalformedInput(f"{root}/torch does not say its version; install torch anew")
    return found[1]
