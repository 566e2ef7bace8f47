"""Wheels are written by strangers: what is not the lock's is not read, and nothing of them leads out or stands in for ours."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests import wheels

from labapex.environments import MAX_DIRECTORY, NoRoom, Store, unpack
from labapex.errors import LabApexError, MalformedInput, Tampered
from labapex.protocol.canonical import digest
from labapex.protocol.requirements import Lock, Package

LIMIT = 1 << 20


def unpacked(folder: Path, *paths: Path, given: tuple[Package, ...] = (), limit: int = LIMIT) -> list[str]:
    """The files that come of some wheels, below a fresh folder."""
    lock, found = wheels.locked(paths, given)
    folder.mkdir()
    size = unpack(lock, found, folder, limit=limit)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert size == sum(path.stat().st_size for path in files)
    return [str(path.relative_to(folder)) for path in files if ".dist-info" not in str(path)]


def test_modules_of_all_wheels_lie_in_one_folder_that_others_may_read(tmp_path: Path) -> None:
    parts = {
        "pure/__init__.py": "",
        "pure/deep/data.bin": b"\0",
        "pure-1.0.data/platlib/fast.so": b"elf",
        "pure-1.0.data/scripts/run": "#!",
        "pure-1.0.data/data/share/doc": "",
        "pure-nspkg.pth": "import os",
    }
    first, second = wheels.make(tmp_path, "pure", files=parts), wheels.make(tmp_path, "other")
    assert unpacked(tmp_path / "out", first, second) == [
        "fast.so",
        "other.py",
        "pure/__init__.py",
        "pure/deep/data.bin",
    ]
    assert stat.S_IMODE((tmp_path / "out" / "pure" / "deep").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "out" / "pure" / "__init__.py").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "name",
    ["/etc/cron.d/x", "../x.py", "a/../../x.py", "..\\x.py", "C:x.py", "a/\nb.py", "w-1.0.data/purelib/../../x.py"],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MalformedInput, match="lead out"):
        unpacked(tmp_path / "out", wheels.make(tmp_path, "w", files={name: "x"}))
    assert not list((tmp_path / "out").iterdir())
    assert not (tmp_path / "x.py").exists()


@pytest.mark.parametrize(
    "name", ["torch/__init__.py", "labapex/errors.py", "numpy/a.py", "torch.py", "torch.cpython-311.so"]
)
@pytest.mark.parametrize("where", ["", "w-1.0.data/purelib/"], ids=["root", "data"])
def test_a_wheel_cannot_bring_what_the_hosts_bring(tmp_path: Path, name: str, where: str) -> None:
    numpy = Package(name="numpy", version="2.0")
    with pytest.raises(MalformedInput, match=r"w-1\.0.* holds the module '(torch|labapex|numpy)'"):
        unpacked(tmp_path / "out", wheels.make(tmp_path, "w", files={where + name: "x"}), given=(numpy,))


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = wheels.make(tmp_path, "w")
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("secret.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(MalformedInput, match="a link or a device"):
        unpacked(tmp_path / "out", path)


def test_a_file_where_another_wheel_has_a_folder_is_refused(tmp_path: Path) -> None:
    first = wheels.make(tmp_path, "a", files={"x": "file"})
    second = wheels.make(tmp_path, "b", files={"x/y.py": "folder"})
    with pytest.raises(MalformedInput, match=r"b-1\.0.* holds a file where there is a folder"):
        unpacked(tmp_path / "out", first, second)


def test_a_bomb_stops_at_the_limit_whatever_it_says_of_its_size(tmp_path: Path) -> None:
    path = wheels.make(tmp_path, "w", files={"bomb.bin": bytes(10 * LIMIT)})
    with pytest.raises(MalformedInput, match=r"larger than they may be \('bomb.bin'\)"):
        unpacked(tmp_path / "out", path)
    assert (tmp_path / "out" / "bomb.bin").stat().st_size <= LIMIT


def test_a_directory_of_endless_names_is_not_read(tmp_path: Path) -> None:
    path = wheels.make(tmp_path, "w")
    end = bytearray(path.read_bytes())
    end[-10:-6] = (MAX_DIRECTORY + 1).to_bytes(4, "little")
    path.write_bytes(end)
    with pytest.raises(MalformedInput, match="no plain directory"):
        unpacked(tmp_path / "out", path)


@pytest.mark.parametrize("how", ["changed", "longer", "link"])
def test_a_file_that_is_not_the_locks_is_not_opened(tmp_path: Path, how: str) -> None:
    path = wheels.make(tmp_path, "w")
    lock, found = wheels.locked([path])
    content = path.read_bytes()
    if how == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_bytes(content + b"x" if how == "longer" else content.replace(b"PK\x01\x02", b"PK\x01\x03", 1))
    (tmp_path / "out").mkdir()
    with pytest.raises((Tampered, OSError)):
        unpack(lock, found, tmp_path / "out", limit=LIMIT)
    assert not list((tmp_path / "out").iterdir())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_bytes_a_wheel_has_it_is_unpacked_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = wheels.make(tmp_path, "w", files={"w/__init__.py": "x = 1\n" * 50, "w/b.py": ""})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, len(content) // 2]))])
    lock, found = wheels.locked([path])
    folder = tmp_path / os.urandom(8).hex()
    folder.mkdir()
    with suppress(LabApexError):
        unpack(lock, found, folder, limit=LIMIT)


# -- the store ---------------------------------------------------------------------------------------------------------


def made(store: Store, folder: Path, name: str, size: int = 1000, **how: set[str]) -> tuple[Lock, Path]:
    path = wheels.make(folder, name, files={f"{name}.bin": bytes(size)})
    lock, found = wheels.locked([path])
    return lock, store.make(lock, found, **how)


def test_an_environment_is_made_once_and_found_by_its_lock(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", LIMIT)
    lock, packages = made(store, tmp_path, "a")
    assert store.find(digest(lock)) == packages
    (packages / "a.bin").write_bytes(b"still here")
    assert made(store, tmp_path, "a")[1] == packages
    assert (packages / "a.bin").read_bytes() == b"still here"
    assert store.find("00" * 32) is None


def test_torch_for_hosts_without_comes_compiled_and_no_job_brings_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", LIMIT)
    torch = wheels.a_torch(tmp_path)
    packages = store.make(*wheels.locked([torch]))
    compiled = list(packages.rglob("*.pyc"))
    assert {path.name.partition(".")[0] for path in compiled} == {"__init__", "version"}
    used = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file())
    assert int((packages.parent / "used").read_text()) == used
    with pytest.raises(ValidationError, match="both given and locked"):
        wheels.locked([torch], given=[Package(name="torch", version="1.0")])


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", 3000)
    (first, one), (second, two) = made(store, tmp_path, "a"), made(store, tmp_path, "b")
    os.utime(two.parent / "used", (1, 1))
    third, _ = made(store, tmp_path, "c")
    assert [store.find(digest(lock)) is not None for lock in (first, second, third)] == [True, False, True]
    assert one.is_dir()


def test_what_a_lease_needs_or_a_child_holds_never_makes_room(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", 3000)
    first, _ = made(store, tmp_path, "a")
    held, found = wheels.locked([wheels.make(tmp_path, "b", files={"b.bin": bytes(1000)})])
    with store.held(held, found) as packages:
        with pytest.raises(NoRoom, match=r"packages take \d+ bytes unpacked; 3000 bytes .* in use"):
            made(store, tmp_path, "c", keep={digest(first)})
        assert packages.is_dir()
        assert store.find(digest(first)) is not None
    _, third = made(store, tmp_path, "c", keep={digest(first)})  # it is held no more
    assert third.is_dir()
    assert not packages.exists()
    assert not list((tmp_path / "store").glob("draft-*"))


def test_what_cannot_be_unpacked_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", LIMIT)
    lock, found = wheels.locked([wheels.make(tmp_path, "a"), wheels.make(tmp_path, "w", files={"torch.py": ""})])
    with pytest.raises(MalformedInput):
        store.make(lock, found)
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["lock"]


KILLED = """
import os, signal, sys
from pathlib import Path
from tests import wheels
from labapex import environments
folder = Path(sys.argv[1])
lock, found = wheels.locked(sorted(folder.glob("*.whl")))
extract, left = environments._extract, 2
def some(*arguments):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return extract(*arguments)
environments._extract = some
environments.Store(folder / "store", 1 << 20).make(lock, found)
"""


def test_a_maker_that_is_killed_leaves_no_environment_and_the_next_one_clears_up(tmp_path: Path) -> None:
    path = wheels.make(tmp_path, "a", files={"a/__init__.py": "", "a/b.py": ""})
    line = [sys.executable, "-c", KILLED, str(tmp_path)]
    ended = subprocess.run(line, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    assert ended.returncode == -9
    store = Store(tmp_path / "store", LIMIT)
    lock, found = wheels.locked([path])
    assert store.find(digest(lock)) is None
    (draft,) = (tmp_path / "store").glob("draft-*")
    assert list(draft.rglob("*.py"))
    store.sweep()
    assert not draft.exists()
    packages = store.make(lock, found)
    assert (packages / "a" / "b.py").exists()


def test_a_draft_that_is_being_made_is_not_swept(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", LIMIT)
    lock, found = wheels.locked([wheels.make(tmp_path, "a")])
    with store._draft(lock, found, ()) as draft:
        Store(tmp_path / "store", LIMIT).sweep()
        assert draft.is_dir()
    assert not draft.exists()


def test_two_makers_of_one_lock_end_with_one_folder(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", LIMIT)
    lock, found = wheels.locked([wheels.make(tmp_path, "a")])
    with store._draft(lock, found, ()):  # the other one has begun
        first = store.make(lock, found)
    assert store.make(lock, found) == first
