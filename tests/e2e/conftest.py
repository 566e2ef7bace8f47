"""Marketplaces for tests of the whole flow. What a failed module's programs logged is kept for whoever looks into it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.e2e.stack import ROOT, Stack

ARTEFACTS = ROOT / "test-artefacts" / "e2e"


@contextmanager
def running(request: pytest.FixtureRequest, folder: Path, stack: Stack) -> Iterator[Stack]:
    """A started stack, ended whatever happens; its logs are kept where a test failed meanwhile."""
    failed = request.session.testsfailed
    try:
        stack.start()
        yield stack
    finally:
        stack.end()
        if request.session.testsfailed > failed:
            kept = ARTEFACTS / folder.name
            shutil.rmtree(kept, ignore_errors=True)
            kept.mkdir(parents=True)
            for log in folder.glob("*.log"):
                shutil.copy(log, kept)
            print(f"the programs' logs are kept in {kept}\n{stack.logs()}")


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A platform with its embedded defaults, shared by the module's tests. Workers are the tests' own."""
    folder = tmp_path_factory.mktemp(request.path.stem)
    with running(request, folder, Stack(folder)) as started:
        yield started
