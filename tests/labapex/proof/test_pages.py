"""Files that go to the disk past the kernel's cache are the files that any other way writes."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labapex.proof import pages
from labapex.proof.block import Buffers
from labapex.proof.pages import PAGE, Pages
from labapex.proof.state import State


@pytest.fixture
def large() -> State:
    """A state of a megabyte and more, in memory of the recorder's kind, with an end in mid-page."""
    torch.manual_seed(3)
    tensors = {
        "w": torch.randn(300_001),
        "m": torch.randn(300_001),
        "n": torch.tensor(7),
        "h": torch.ones(5).bfloat16(),
    }
    return State({"step": 1}, Buffers().copy(tensors, ["w"]), ["w"])


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 3 * PAGE), whole=st.integers(0, 3))
def test_a_file_holds_its_pieces_and_ends_where_the_last_one_does(
    size: int, whole: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("file") / "file"
    head, rest = Pages(whole * PAGE), Pages(size)
    head.bytes[:], rest.bytes[:] = os.urandom(whole * PAGE), os.urandom(size)
    assert rest.tensor.data_ptr() % PAGE == 0 or not size
    path.write_bytes(b"what was there" * PAGE)
    if not pages.write(path, head, rest):
        pytest.skip("the file system of the tests' folder takes no writes past the cache")
    assert path.read_bytes() == bytes(head.bytes) + bytes(rest.bytes)


def test_a_large_state_s_file_is_the_same_past_the_cache_and_through_it(
    large: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past, through = tmp_path / "past.safetensors", tmp_path / "through.safetensors"
    size = large.save(past)
    refusing(monkeypatch, errno.EINVAL)
    assert large.save(through) == size == past.stat().st_size
    assert past.read_bytes() == through.read_bytes()
    assert State.load(past).digest() == large.digest()
    assert sorted(tmp_path.iterdir()) == [past, through]
    assert past.stat().st_mode == through.stat().st_mode


def test_a_full_disk_is_told_and_leaves_the_state_that_was_there(
    large: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "0.safetensors"
    State({"step": 0}).save(path)
    before = path.read_bytes()
    refusing(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        large.save(path)
    assert path.read_bytes() == before


def refusing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """From now on the system refuses writes past the cache."""
    plain = os.write

    def write(file: int, data: memoryview) -> int:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(number, os.strerror(number))
        return plain(file, data)

    monkeypatch.setattr(os, "write", write)
