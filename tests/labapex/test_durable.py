from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from labapex import durable


def test_a_file_takes_the_place_of_another_one_and_of_what_an_interrupted_try_left(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"old")
    (tmp_path / "config.json.part").write_bytes(b"a try that was interrupted, longer than the file")
    (tmp_path / "config.json.part").chmod(0o644)
    durable.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"the host's")
    (tmp_path / "key").symlink_to(tmp_path / "other")
    (tmp_path / "key.part").symlink_to(tmp_path / "other")
    durable.write(tmp_path / "key", b"new")
    assert (tmp_path / "other").read_bytes() == b"the host's"
    assert not (tmp_path / "key").is_symlink()


def test_what_a_script_left_in_its_folder_is_neither_followed_nor_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="Invalid argument"):  # pipes have no disk; nobody waits for the other end
        durable.sync(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="Too many levels"):
        durable.sync_all([tmp_path / "link"])


def test_files_of_several_folders_are_synced_with_their_folders(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    durable.sync_all([tmp_path / "a" / "1", tmp_path / "a" / "2", tmp_path / "b" / "1"])
    with pytest.raises(FileNotFoundError):
        durable.sync_all([tmp_path / "a" / "3"])
