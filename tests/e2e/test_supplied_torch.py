"""A host that has no torch at all trains with the platform's. Real wheels of torch are unpacked: `make test-torch`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import scripts
from tests.e2e.conftest import running
from tests.e2e.stack import Stack, program

SETTING = "LABAPEX_TEST_SUPPLIED_TORCH"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(SETTING not in os.environ, reason=f"loads and unpacks all of torch: {SETTING}=1"),
]


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("supplied")
    with running(request, folder, Stack(folder)) as started:
        yield started


def test_a_job_on_a_host_without_torch_is_verified_bit_for_bit(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    worker = stack.enrol("bare", site_packages=tmp_path / "nothing")
    worker.start()
    job = scripts.job(tmp_path / "job")
    waiting = stack.submit(job)
    stack.until_state(waiting, "queued")  # nothing is supplied yet, so it waits
    assert "wheels" in stack.manage("torch")
    view = stack.until_state(waiting, "verified")
    assert view.verdict is not None
    assert stack.cli("run", job, "--yes", "--json").summary["replay_max_error"] == 0.0
    (kept,) = [path for path in (worker.home / "environments").iterdir() if path.is_dir()]
    assert list(kept.glob("packages/torch/__pycache__/*.pyc"))
    check = [program("labapex-worker"), "check", "--json", "--home", str(worker.home)]
    found = json.loads(subprocess.run(check, check=False, stdout=subprocess.PIPE).stdout)
    (torch,) = [finding for finding in found if finding["what"] == "torch"]
    assert torch["detail"].endswith("supplied by the platform")
