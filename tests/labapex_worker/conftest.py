from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.labapex_worker.cast import Cast
from tests.labapex_worker.platform_double import Gateway

from labapex_worker import journal
from labapex_worker.config import Home
from labapex_worker.session import Session


@pytest.fixture
def home() -> Iterator[Home]:
    folder = Path(tempfile.mkdtemp(prefix="lw-"))
    made = Home(folder / ("a path that is too long for a socket " * 3))
    yield made
    for lease in (made.path / "jobs").glob("*"):
        journal.kill(lease)
    shutil.rmtree(folder)


@pytest.fixture
async def cast(home: Home, tmp_path: Path) -> AsyncIterator[Cast]:
    async with Gateway().serving() as gateway:
        made = Cast(gateway, home, tmp_path)
        try:
            yield made
        finally:
            for process in made.processes:
                if process.returncode is None:
                    process.kill()
                    await process.communicate()


@pytest.fixture
def session() -> Session:
    return Session()
