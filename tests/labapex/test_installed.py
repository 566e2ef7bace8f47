"""Builds of torch: named by what was written down when they were installed, and looked at without being imported."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapex import installed
from labapex.errors import MalformedInput

FILES = {
    "torch/__init__.py": b"from torch import version\n",
    "torch/version.py": b"__version__ = '2.13.0+test'\n",
    "torch/lib/libtorch.so": b"\x7fELF torch",
    "torch/lib/libgomp.so.1.0": b"\x7fELF gomp",
    "torch/data.json": b"{}",
    "torch/__pycache__/version.cpython-311.pyc": b"compiled",
}


def line(path: str, content: bytes) -> str:
    said = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{path},sha256={said},{len(content)}"


def install(root: Path, files: dict[str, bytes] = FILES) -> Path:
    """As pip leaves it."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    (root / "torch-2.13.0.dist-info").mkdir()
    lines = [line(path, content) for path, content in files.items()]
    (root / "torch-2.13.0.dist-info" / "RECORD").write_text("\n".join([*lines, "torch-2.13.0.dist-info/RECORD,,"]))
    return root


def found(root: Path) -> installed.Build:
    build = installed.find([root])
    assert build is not None
    return build


def test_a_build_is_named_by_its_python_and_its_libraries_alone(tmp_path: Path) -> None:
    build = found(install(tmp_path / "a"))
    assert build.version == "2.13.0+test"
    assert list(build.files) == [
        "torch/__init__.py", "torch/lib/libgomp.so.1.0", "torch/lib/libtorch.so", "torch/version.py",
    ]  # fmt: skip
    same = install(tmp_path / "b", {**dict(reversed(FILES.items())), "torch/data.json": b"other"})
    assert found(same).digest == build.digest
    other = install(tmp_path / "c", {**FILES, "torch/lib/libtorch.so": b"\x7fELF another"})
    assert found(other).digest != build.digest
    assert build.altered() is None


@pytest.mark.parametrize("path", [path for path in FILES if path.endswith(".py") or ".so" in path])
def test_a_file_that_was_changed_or_is_gone_is_named_whether_all_are_looked_at_or_a_sample(
    tmp_path: Path, path: str
) -> None:
    build = found(install(tmp_path))
    (tmp_path / path).write_bytes(b"__version__ = '2.13.0+test' \n")
    assert build.altered() == build.altered(build.sample("5e" * 32)) == path
    (tmp_path / path).unlink()
    assert build.altered() == build.altered(build.sample("5e" * 32)) == path


@given(seed=st.text(max_size=20))
def test_a_sample_is_of_the_builds_own_files_and_another_for_another_seed(
    tmp_path_factory: pytest.TempPathFactory, seed: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "many"
    if not root.exists():
        install(root, {**FILES, **{f"torch/{n}.py": b"x" * n for n in range(200)}})
    build = found(root)
    drawn = build.sample(seed)
    assert len(set(drawn)) == installed.SAMPLE_FILES
    assert set(drawn) <= set(build.files)
    assert build.sample(seed) == drawn != build.sample(seed + "x")


def test_a_large_file_is_left_to_the_full_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "SAMPLE_BYTES", 20)
    build = found(install(tmp_path, {**FILES, "torch/large.py": b"x" * 21}))
    assert "torch/large.py" not in build.sample("a")
    (tmp_path / "torch/large.py").write_bytes(b"y" * 21)
    assert build.altered(build.sample("a")) is None
    assert build.altered() == "torch/large.py"


def test_torch_without_a_record_is_none_and_one_that_was_spoilt_says_so(tmp_path: Path) -> None:
    assert installed.find([tmp_path]) is None
    record = install(tmp_path / "a") / "torch-2.13.0.dist-info" / "RECORD"
    good = record.read_text()
    for bad in ("torch/x.py", "torch/x.py,md5=abc,1", "../../x.py,sha256=" + "A" * 43 + ",1", "torch/x.py,sha256=A,1"):
        record.write_text(f"{good}\n{bad}")
        with pytest.raises(MalformedInput, match="install torch anew"):
            installed.find([tmp_path / "a"])
    record.write_text(good)
    (tmp_path / "a" / "torch" / "version.py").write_text("")
    with pytest.raises(MalformedInput, match="does not say its version"):
        installed.find([tmp_path / "a"])


def test_the_torch_of_these_tests_is_as_it_was_installed() -> None:
    import sysconfig

    build = found(Path(sysconfig.get_path("purelib")))
    assert len(build.files) > 1000
    assert build.altered(build.sample("5e" * 32)) is None
