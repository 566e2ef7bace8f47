"""A short play of `make chaos`, from the first fault to the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.chaos.play import chaos

pytestmark = pytest.mark.e2e


def test_twenty_seconds_of_faults_lose_nothing_and_every_job_comes_to_its_end(tmp_path: Path) -> None:
    result = chaos(3, 20, tmp_path)
    assert not any(result["wrong"].values()), result
    assert result["faults"] > 0
    assert result["frames"] > 0
