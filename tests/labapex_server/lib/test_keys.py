from __future__ import annotations

import threading
from pathlib import Path

import pytest

from labapex.errors import Tampered
from labapex_server.lib import keys
from labapex_server.lib.files import secret_file


def test_keys_are_made_once_and_only_their_owner_can_read_them(home: Path) -> None:
    public = keys.log_public_key()
    keys.wrap(b"", "first")
    keys.make_local_root()
    identity = keys.key_id(keys.new("manifest"))
    assert keys.log_public_key() == public
    assert keys.verdict_public_key() != public
    assert set(keys.held("manifest")) == {identity}
    assert keys.held("release") == {}
    for path in (home / "keys").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert (home / "keys").stat().st_mode & 0o777 == 0o700


def test_a_wrapped_secret_opens_for_its_purpose_only() -> None:
    wrapped = keys.wrap(b"secret", "run:1")
    assert b"secret" not in wrapped
    assert keys.unwrap(wrapped, "run:1") == b"secret"
    for attempt in (lambda: keys.unwrap(wrapped, "run:2"), lambda: keys.unwrap(wrapped[:-1], "run:1")):
        with pytest.raises(Tampered, match="do not belong together"):
            attempt()
    with pytest.raises(Tampered):
        keys.unwrap(b"", "run:1")


def test_of_many_that_make_a_secret_file_all_get_the_same(tmp_path: Path) -> None:
    seen: list[bytes] = []
    barrier = threading.Barrier(8)

    def make(number: int) -> None:
        barrier.wait()
        seen.append(secret_file(tmp_path / "secret", lambda: bytes([number]) * 1000))

    workers = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(set(seen)) == 1
    assert len(seen[0]) == 1000
    assert not list(tmp_path.glob(".secret*"))
