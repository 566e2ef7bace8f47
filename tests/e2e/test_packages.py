"""A script that needs packages: locked by the platform, unpacked by a host that has no index, and part of the proof."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import wheels
from tests.e2e import scripts
from tests.e2e.conftest import running
from tests.e2e.stack import Stack

from labapex.proof import folder
from labapex.protocol.canonical import digest

pytestmark = pytest.mark.e2e

HEAD = """
import importlib.metadata
import json
import sys

import alpha
import beta

assert importlib.metadata.version("alpha") == "1.2", "the locked version, not what the host happens to have"
assert json.dumps([1]) == "[1]"
assert not hasattr(sys, "pth_was_run")
print(f"packages from {alpha.__file__}")
"""


def make_index(folder: Path) -> Path:
    """A folder of wheels in place of an index."""
    half = {"alpha.py": "import beta\n\n\ndef rate():\n    return beta.TWO / 20\n"}
    wheels.make(folder, "alpha", "1.2", files=half, requires=["beta>=2", "torch>=2"])
    wheels.make(folder, "alpha", "2.0", files={"alpha.py": "raise ImportError('not asked for')\n"})
    whole = {
        "beta/__init__.py": "TWO = 2.0\n",
        "json.py": "raise ImportError('this is not the standard library')\n",
        "run.pth": "import sys; sys.pth_was_run = True\n",
    }
    wheels.make(folder, "beta", "2.1", files=whole, requires=["numpy"])
    return folder


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("packages")
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(make_index(folder / "index"))}
    with running(request, folder, Stack(folder, settings=settings)) as started:
        yield started


def test_a_job_with_requirements_is_verified_and_its_proof_names_them(stack: Stack, tmp_path: Path) -> None:
    script = HEAD + scripts.LOADER.replace("lr=0.1", "lr=alpha.rate()")
    job = scripts.job(tmp_path / "job", script, requirements=["alpha<2"])
    with stack.worker("host") as worker:
        said = stack.cli("run", job, "--yes", "--json")
        assert said.code == 0, said.err + stack.logs()
        assert said.summary["replay_max_error"] == 0.0
        assert "alpha<2" in said.err  # the plan
        assert "alpha 1.2, beta 2.1" in said.err
        (kept,) = [path for path in (worker.home / "environments").iterdir() if path.is_dir()]
    assert stack.cli("pull", said.summary["job"], "--proof", tmp_path / "proof").code == 0
    proof = folder.read(tmp_path / "proof")
    assert [str(wheel) for wheel in proof.requirements.wheels] == ["alpha 1.2", "beta 2.1"]
    assert "torch" in {package.name for package in proof.requirements.given}
    assert proof.contract.requirements == digest(proof.requirements) == kept.name
    shown = json.loads(stack.cli("show", said.summary["job"], "--json").out)
    assert shown["job"]["packages"] == ["alpha 1.2", "beta 2.1"]


def test_requirements_that_do_not_go_with_the_hosts_torch_are_refused_before_money_is_held(
    stack: Stack, tmp_path: Path
) -> None:
    said = stack.cli("run", scripts.job(tmp_path / "job", requirements=["alpha<2", "torch<2"]), "--yes", "--json")
    assert said.code != 0
    assert "the hosts have torch" in said.err
    assert "No money was held" in said.err
