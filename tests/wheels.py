"""Wheels made by hand, and locks of them: what an index would have to offer, without one."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from labapex import drivers
from labapex.protocol.contract import TorchBuild
from labapex.protocol.manifest import SuppliedTorch
from labapex.protocol.requirements import Lock, Package, Wheel


def make(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    files: Mapping[str, str | bytes] | None = None,
    requires: Sequence[str] = (),
) -> Path:
    """A wheel of one module of its name, or of `files`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    metadata = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        *(f"Requires-Dist: {r}\n" for r in requires),
    ]
    content = dict(files) if files is not None else {f"{name}.py": f"VERSION = {version!r}\n"}
    content |= {
        f"{about}/METADATA": "".join(metadata),
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content[f"{about}/RECORD"] = "".join(_recorded(place, text) for place, text in content.items())
    with zipfile.ZipFile(path, "w") as archive:
        for place, text in content.items():
            archive.writestr(zipfile.ZipInfo(place), text, zipfile.ZIP_DEFLATED)  # made twice it is the same
    return path


def a_torch(folder: Path, version: str = "2.13.0+tests", text: str = "", *, requires: Sequence[str] = ()) -> Path:
    """What is installed and found as torch, and computes nothing; built for the CUDA that its version names."""
    cuda = drivers.cuda(version)
    says = f"__version__ = '{version}'\ncuda = {'{}.{}'.format(*cuda)!r}\n" if cuda else f"__version__ = '{version}'\n"
    return make(
        folder, "torch", version, files={"torch/__init__.py": text, "torch/version.py": says}, requires=requires
    )


def supplied(torch: Path) -> tuple[SuppliedTorch, dict[Wheel, Path]]:
    """A platform's torch, of this wheel alone."""
    lock, found = locked([torch])
    build = TorchBuild(torch=lock.wheels[0].version, files=2, digest="0" * 64)
    return SuppliedTorch(build=build, packages=lock), found


def _recorded(place: str, text: str | bytes) -> str:
    content = text.encode() if isinstance(text, str) else text
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{place},sha256={digest},{len(content)}\n"


def entry(path: Path) -> Wheel:
    """A lock's line for a wheel as it is."""
    name, version, _ = path.name.split("-", 2)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return Wheel(name=name, version=version, file=path.name, sha256=digest, size=len(content))


def locked(paths: Iterable[Path], given: Iterable[Package] = ()) -> tuple[Lock, dict[Wheel, Path]]:
    """A lock of these wheels, and where they lie."""
    found = {entry(path): path for path in paths}
    wheels = tuple(sorted(found, key=lambda wheel: wheel.name))
    return Lock(python="3.11", given=tuple(given), wheels=wheels), found
