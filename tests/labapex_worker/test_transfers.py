"""One chunk of every kept state, from a folder that a script can write to."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import httpx
import pytest
from tests.labapex_worker.kept import keep

from labapex.proof import merkle, statefile
from labapex.protocol.frames import Grant
from labapex_worker import transfers
from labapex_worker.supervisor import Folder
from labapex_worker.transfers import TransferFailed

GRANT = Grant(lease=uuid.UUID(int=1), job=uuid.UUID(int=2), name="digits", token="t", size=1, threads=1)


class Platform:
    """Takes in what is put, once it has said no as often as it was told to."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.put: list[tuple[str, bytes, str]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        self.put.append((request.url.path, body, request.headers["content-length"]))
        return httpx.Response(self.answers.pop(0) if self.answers else 200)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self), base_url="http://platform")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Of a lease with two kept states, their trees beside them."""
    made = Folder(tmp_path / "lease")
    made.create()
    (made.job / "states").mkdir()
    for index in (0, 2):
        keep(made, index)
    return made


def root(folder: Folder, index: int) -> bytes:
    with folder.open_state(index) as file:
        return merkle.root_of_hashes(statefile.tree(file))


async def test_a_chunk_of_each_state_is_handed_in_as_one_file_with_its_paths(folder: Folder) -> None:
    platform = Platform()
    async with platform.client() as http:
        await transfers.upload_chunks(http, GRANT, folder, 1, (0, 2), time.time() + 60)
    ((path, body, length),) = platform.put
    assert path == f"/gateway/leases/{GRANT.lease}/chunks/1"
    assert int(length) == len(body) == 2 * (statefile.CHUNK + 2 * merkle.HASH_BYTES)
    for index, part in zip((0, 2), (body[: len(body) // 2], body[len(body) // 2 :]), strict=True):
        chunk, hashes = part[: statefile.CHUNK], part[statefile.CHUNK :]
        merkle.verify_inclusion(chunk, index=2, size=4, proof=[hashes[:32], hashes[32:]], root=root(folder, index))


async def test_a_platform_that_refuses_is_not_asked_again(folder: Folder) -> None:
    refusing = Platform(422)
    async with refusing.client() as http:
        with pytest.raises(TransferFailed, match="refuses chunks/1 with status 422"):
            await transfers.upload_chunks(http, GRANT, folder, 1, (0, 2), time.time() + 60)
    assert len(refusing.put) == 1


@pytest.mark.parametrize("name", ["2.safetensors", "2.tree"])
@pytest.mark.parametrize("how", ["missing", "link", "pipe"])
async def test_what_a_script_has_put_in_the_place_of_a_kept_file_is_not_handed_out(
    folder: Folder, tmp_path: Path, name: str, how: str
) -> None:
    secret = folder.job / "states" / name
    plain = secret.read_bytes()
    secret.unlink()
    if how == "link":
        (tmp_path / "elsewhere").write_bytes(plain)
        secret.symlink_to(tmp_path / "elsewhere")
    elif how == "pipe":
        os.mkfifo(secret)
    platform = Platform()
    async with platform.client() as http:
        with pytest.raises(TransferFailed, match="chunk 1 cannot be shown"):
            await transfers.upload_chunks(http, GRANT, folder, 1, (0, 2), time.time() + 60)
    assert platform.put == []


async def test_a_tree_that_is_not_the_states_is_not_handed_in(folder: Folder) -> None:
    tree = folder.job / "states" / "2.tree"
    for false in (bytes(32 * 4), tree.read_bytes()[32:], b""):
        tree.write_bytes(false)
        async with Platform().client() as http:
            with pytest.raises(TransferFailed, match="chunk 1 cannot be shown"):
                await transfers.upload_chunks(http, GRANT, folder, 1, (0, 2), time.time() + 60)
