from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.labapex.proof.lab import Lab
from tests.vectors import make


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    laboratory = Lab()
    yield laboratory
    laboratory.close()


@pytest.fixture(scope="session")
def fresh(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good folders, made on this host: what follows from arithmetic holds on its own class alone."""
    root = tmp_path_factory.mktemp("vectors")
    make.make(root, lab)
    return root
