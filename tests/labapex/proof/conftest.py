from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.labapex.proof.lab import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    laboratory = Lab()
    yield laboratory
    laboratory.close()
