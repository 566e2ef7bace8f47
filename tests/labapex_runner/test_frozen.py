"""The frozen runner with the real engine: preflight, then a job's executable from key request to signed end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PyInstaller.archive.readers import CArchiveReader
from tests.labapex_runner.jobs import Agent, Made, Received, make

from labapex import executable
from labapex.protocol.canonical import canonical
from labapex.protocol.contract import Contract, ScriptFacts
from labapex.protocol.limits import Limits
from labapex.protocol.replay import PreflightReport, PreflightRequest, RegenerateReport, RegenerateRequest
from labapex_runner.build import build
from labapex_runner.supervisor import SUCCEEDED, TRAINING_FAILED

ROOT = Path(__file__).parents[2]
SECRET = b"the data that nobody else may see "
SCRIPT = b"""\
import inspect, random
import torch
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __init__(self):
        self.text = open("data/secret.txt").read()
    def __len__(self):
        return 64
    def __getitem__(self, i):
        return torch.randn(10, generator=torch.Generator().manual_seed(i)), i % 3

net = torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.Dropout(), torch.nn.Linear(8, 3))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
for epoch in range(2):
    for x, y in DataLoader(Numbers(), batch_size=16, shuffle=True, num_workers=2):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
    print("epoch", epoch, "seen")
print(hash("a"), "def __init__" in inspect.getsource(torch.nn.Linear))
import os
print([name for name in os.environ if name.startswith("LABAPEX_") and name != "LABAPEX_SITE_PACKAGES"])
"""
BY_HAND = b"""\
import torch
from labapex.session import Session
run = Session()
w = run.prepare(torch.zeros(3, requires_grad=True))
for epoch in run.epochs(2):
    for i in run.steps(4):
        loss = (w - torch.randn(3)).square().sum()
        w.data -= 0.1 * torch.autograd.grad(loss, w)[0]
        run.step(loss)
"""
FILES = {"train.py": SCRIPT, "data/secret.txt": SECRET * 2000}


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the built runner, so that a rebuild next to the tests does not change it under a running process."""
    built, folder = ROOT / "build" / "runner", tmp_path_factory.mktemp("frozen")
    build(built)
    for name in ("bootloader", "runner.pkg", "runner", "digest"):
        shutil.copy(built / name, folder / name)
    return folder


def environment(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LABAPEX_SITE_PACKAGES": sysconfig.get_path("purelib"), **more}


@pytest.fixture(scope="module")
def facts(frozen: Path, tmp_path_factory: pytest.TempPathFactory) -> ScriptFacts:
    """What the preflight in the frozen runner finds out about the script."""
    # A run that stops in mid-epoch waits five seconds for each worker of its loader; the facts are the same without.
    files = {name: data.replace(b"num_workers=2", b"num_workers=0") for name, data in FILES.items()}
    report = tried(frozen, tmp_path_factory.mktemp("preflight"), files)
    assert report.problem is None
    assert report.replay_max_error == 0.0
    assert report.facts is not None
    return report.facts


def tried(frozen: Path, folder: Path, files: dict[str, bytes]) -> PreflightReport:
    """A preflight in the frozen runner."""
    for name, data in files.items():
        (folder / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "work" / name).write_bytes(data)
    request = PreflightRequest(
        script="train.py", args=(), epochs=2, iterations_per_epoch=None, checkpoint_every=3, threads=1, seed="5e" * 32
    )
    (folder / "request.json").write_bytes(canonical(request))
    done = subprocess.run(
        [frozen / "runner", "preflight", folder], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return PreflightReport.model_validate_json((folder / "report.json").read_bytes())


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short path: below it loader workers have their sockets, and without a sandbox there is no other place for them."""
    with tempfile.TemporaryDirectory(prefix="job-") as name:
        yield Path(name).resolve()


def job(
    frozen: Path,
    folder: Path,
    facts: ScriptFacts,
    files: dict[str, bytes],
    *,
    keep: int = 1,
    limits: Limits | None = None,
) -> Made:
    terms = Contract(
        job="00000000-0000-4000-8000-000000000001",  # type: ignore[arg-type]
        lease="00000000-0000-4000-8000-000000000002",  # type: ignore[arg-type]
        seed="5e" * 32, code="c0" * 32, data="da" * 32, script="train.py", args=(),
        epochs=2, checkpoint_every=3, keep_every=keep, threads=1, limits=limits, facts=facts,
    )  # fmt: skip
    return make(folder, files, runner=executable.load_runner(frozen), terms=terms)


def run(made: Made, folder: Path) -> tuple[int, Received, str]:
    agent = Agent(folder / "agent.sock", made)
    agent.start()
    variables = environment(LABAPEX_AGENT_SOCKET=str(folder / "agent.sock"), LABAPEX_JOB_FOLDER=str(folder))
    done = subprocess.run([made.path], env=variables, capture_output=True, text=True, timeout=120, check=False)
    agent.close()
    if agent.error is not None:
        raise agent.error
    return done.returncode, agent.received, done.stderr


def test_an_executable_trains_with_worker_processes_and_leaves_a_complete_log(
    frozen: Path, facts: ScriptFacts, tmp_path: Path
) -> None:
    made = job(frozen, tmp_path, facts, FILES)
    assert executable.verify(made.path, made.trust, made.worker, 0.0) == made.manifest
    status, got, stderr = run(made, tmp_path)
    assert status == SUCCEEDED, stderr + got.console("stderr")
    terms = made.manifest.contract
    assert len(got.losses) == terms.iterations == 8
    leaves = [leaf for body in got.bodies for leaf in body.leaves]
    assert [leaf.step for leaf in leaves] == terms.leaf_steps()
    for leaf in leaves:
        assert (tmp_path / "states" / f"{leaf.index}.safetensors").stat().st_size == leaf.size
    said = got.console("stdout").splitlines()
    assert said[:2] == ["epoch 0 seen", "epoch 1 seen"]
    assert said[2] == "4644417185603328019 True"  # PYTHONHASHSEED=0, and the sources of torch can be read
    assert said[3] == "[]"  # nothing that a replay would not have
    assert stderr == ""


def test_an_executable_makes_states_anew_from_the_files_that_came_with_it(
    frozen: Path, facts: ScriptFacts, tmp_path: Path
) -> None:
    spoiling = SCRIPT + b"open('data/secret.txt', 'w').write('spoiled')\nopen('train.py', 'w').write('spoiled')\n"
    made = job(frozen, tmp_path, facts, {**FILES, "train.py": spoiling}, keep=2)
    status, got, stderr = run(made, tmp_path)
    assert status == SUCCEEDED, stderr + got.console("stderr")
    leaves = [leaf for body in got.bodies for leaf in body.leaves]
    missing = [leaf.index for leaf in leaves if not (tmp_path / "states" / f"{leaf.index}.safetensors").exists()]
    assert missing == [1, 3]

    again = tmp_path / "again"
    again.mkdir()
    request = RegenerateRequest(contract=made.manifest.contract, states=tuple(missing))
    (again / "request.json").write_bytes(canonical(request))
    line = [made.path, "regenerate", again, tmp_path]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = RegenerateReport.model_validate_json((again / "report.json").read_bytes())
    assert (report.problem, report.made) == (None, (1, 3))
    for index in missing:
        assert (again / "states" / f"{index}.safetensors").stat().st_size == leaves[index].size


def test_a_script_that_raises_in_an_executable_says_so_to_its_client_only(
    frozen: Path, facts: ScriptFacts, tmp_path: Path
) -> None:
    script = SCRIPT.replace(b"loss.backward()", b"raise KeyError('a mistake of mine')")
    status, got, stderr = run(job(frozen, tmp_path, facts, {**FILES, "train.py": script}), tmp_path)
    assert status == TRAINING_FAILED
    assert got.fin is None
    assert "a mistake of mine" in got.console("stderr")
    assert "a mistake of mine" not in stderr


def test_a_script_that_writes_more_than_its_contract_allows_ends_with_the_limit_named(
    frozen: Path, facts: ScriptFacts, tmp_path: Path
) -> None:
    writing = b"import os, signal; os.posix_fallocate(os.open('hoard', 66, 384), 0, 300 << 20); signal.pause()"
    script = SCRIPT.replace(b"num_workers=2", b"num_workers=0").replace(b"loss.backward()", writing)
    limits = Limits(memory=4 << 30, disk=256 << 20, processes=512)
    status, got, _ = run(job(frozen, tmp_path, facts, {**FILES, "train.py": script}, limits=limits), tmp_path)
    assert status == TRAINING_FAILED
    assert got.failure is not None
    assert "256 MiB are its limit: ask for more in labapex.yaml (limits.disk)" in got.failure


def test_a_script_may_say_its_loop_by_the_session_that_is_frozen_too(frozen: Path, tmp_path: Path) -> None:
    report = tried(frozen, tmp_path, {"train.py": BY_HAND})
    assert report.problem is None
    assert report.replay_max_error == 0.0
    assert report.facts is not None
    assert (report.facts.loop, report.facts.iterations_per_epoch, report.facts.parameters) == ("train.py:6", 4, 3)


def test_neither_strings_nor_an_extraction_show_script_or_data_or_what_files_are_called(
    frozen: Path, facts: ScriptFacts, tmp_path: Path
) -> None:
    made = job(frozen, tmp_path, facts, FILES)
    lines = [line for line in SCRIPT.splitlines() if len(line) > 25]
    whole = made.path.read_bytes()
    hidden = [*lines, SECRET.strip(), b"secret.txt", *(made.keys.model_dump().values())]
    assert not [line for line in hidden if line in whole]
    archive = CArchiveReader(str(made.path))
    names = set(archive.toc)
    names |= set(archive.open_embedded_archive("PYZ.pyz").toc)
    assert "labapex_runner.supervisor" in names
    for name in archive.toc:
        if archive.toc[name][-1] not in ("d", "o"):  # a reference or an option: no bytes of its own
            data = archive.extract(name)
            assert not [line for line in hidden if line in data]


def test_nothing_of_the_platform_and_no_torch_is_frozen(frozen: Path) -> None:
    archive = CArchiveReader(str(frozen / "runner"))
    modules = set(archive.open_embedded_archive("PYZ.pyz").toc)
    tops = {name.split(".")[0] for name in modules}
    assert not tops & {"django", "celery", "torch", "numpy", "safetensors", "labapex_server", "labapex_worker", "test"}
    assert {"cryptography.hazmat.primitives.hpke", "pynvml", "sqlite3", "labapex.proof.engine"} <= modules


def test_a_second_build_has_nothing_to_do(frozen: Path) -> None:
    assert (frozen / "digest").is_file()
    assert build(ROOT / "build" / "runner") is False


@pytest.mark.parametrize("arguments", [[], ["dance"], ["replay"]])
def test_a_runner_without_a_job_says_what_it_can_do(frozen: Path, arguments: list[str]) -> None:
    done = subprocess.run([frozen / "runner", *arguments], env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_request_that_is_missing_or_malformed_is_refused(frozen: Path, tmp_path: Path) -> None:
    for content, status in ((None, 2), (json.dumps({"script": "../x.py"}), 1)):
        if content is not None:
            (tmp_path / "request.json").write_text(content)
        done = subprocess.run(
            [frozen / "runner", "preflight", tmp_path], env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == status
        assert done.stderr.startswith("error: ")
        assert not (tmp_path / "report.json").exists()
