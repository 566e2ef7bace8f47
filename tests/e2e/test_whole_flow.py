"""The promise itself: an example goes in by the command line, a verified and paid model comes out, and nobody saw it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from PyInstaller.archive.readers import PKG_ITEM_PYZ, CArchiveReader
from tests.e2e import scripts
from tests.e2e.stack import ROOT, Said, Stack

from labapex import executable
from labapex.certificate import certificate_digest
from labapex.client import Client
from labapex.errors import LabApexError
from labapex.protocol.verdict import SignedVerdict
from labapex.trust import Trust
from labapex_worker import trust
from labapex_worker.config import Config, Home

pytestmark = pytest.mark.e2e

RULES = {
    "log-count", "gpu-utilisation", "gpu-memory", "log-chain", "pev", "point-loss", "initialisation", "batch-order",
    "replay-top-q", "vmo", "replay",
}  # fmt: skip
BUDGET = 10_000_000


@dataclass(frozen=True)
class Run:
    """One job of the digits example, seen by everyone who took part in it."""

    stack: Stack
    said: Said
    executable: Path  # as the worker downloaded it
    worker: Config
    trust: Trust  # what the worker believes
    folder: Path  # of the example

    @property
    def job(self) -> str:
        job: str = self.said.summary["job"]
        return job

    @property
    def certificate(self) -> bytes:
        """The signed bytes of its certificate."""
        return self.stack.client.certificate(UUID(self.job)).envelope.body()


def example(name: str, into: Path) -> Path:
    """A copy of an example with its data prepared."""
    folder = into / name
    shutil.copytree(ROOT / "examples" / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
    if not (folder / "data").exists():
        subprocess.run([sys.executable, "prepare.py"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def digits(stack: Stack) -> Run:
    folder = example("digits", stack.folder)
    with stack.worker("honest") as worker:
        command = stack.begin("run", folder, "--yes", "--json")

        def fetched() -> Path | None:
            """The executable, when it is there as a whole."""
            found = [worker.executable(lease) for lease in worker.leases()]
            return next((path for path in found if path.exists()), None)

        kept = stack.folder / "executable"
        shutil.copy(stack.until("the worker has the executable", fetched), kept)
        said = command.wait()
    home = Home(worker.home)
    config = home.load()
    believed = trust.load(home, config)
    assert believed is not None
    return Run(stack, said, kept, config, believed, folder)


def test_the_digits_are_verified_and_every_figure_is_told(digits: Run) -> None:
    assert digits.said.code == 0, digits.said.err
    summary = digits.said.summary
    assert (summary["verdict"], summary["state"], summary["deciding_rule"]) == ("verified", "verified", None)
    assert summary["epochs"] == 3
    assert summary["iterations_per_epoch"] > 1
    assert summary["loss_logs"] == 3 * summary["iterations_per_epoch"]
    assert set(summary["rules"]) >= RULES
    assert all(set(rule) == {"value", "limit", "result"} for rule in summary["rules"].values())
    assert summary["replay_max_error"] == 0.0
    assert 0 < summary["opened_bytes"] < summary["all_checkpoint_bytes"]
    for figure in ("verify_seconds", "train_seconds", "package_ms", "first_loss_seconds", "paid"):
        assert summary[figure] > 0, figure
    assert summary["paid"] + summary["refunded"] == BUDGET
    assert f"Live page: {digits.stack.url}/jobs/{digits.job}/" in digits.said.err


def test_the_model_that_is_pulled_is_the_one_that_the_signed_verdict_names(digits: Run, tmp_path: Path) -> None:
    said = digits.stack.cli("pull", digits.job, "-o", tmp_path, "--json")
    assert said.code == 0, said
    signed = SignedVerdict.model_validate_json((tmp_path / "verdict.json").read_bytes())
    assert signed.verdict.weights == said.summary["digest"]
    from safetensors.numpy import load_file

    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["fc2.weight"].shape == (10, 128)
    key = tmp_path / "verdict.key"
    key.write_text(digits.stack.client.verdict_key().model_dump_json())
    check = ("verify", tmp_path / "verdict.json", "--key", key, "--weights", tmp_path / "model.safetensors")
    assert digits.stack.cli(*check, LABAPEX_URL="http://127.0.0.1:1").code == 0  # nobody is asked
    assert digits.stack.cli("verify", digits.job).code == 0


def test_whoever_ordered_a_run_replays_its_proof_by_one_command(digits: Run) -> None:
    said = digits.stack.cli("verify", digits.job, "--replay", "--data", digits.folder / "data", "--json")
    assert said.code == 0, said
    assert (said.summary["verdict"], said.summary["replay_max_error"]) == ("verified", 0.0)
    assert said.summary["cost"]["segments_replayed"] > 1


def test_the_certificate_that_is_pulled_holds_for_whoever_keeps_two_keys(digits: Run, tmp_path: Path) -> None:
    assert digits.stack.cli("pull", digits.job, "-o", tmp_path).code == 0
    keys = tmp_path / "keys.json"
    keys.write_text(digits.stack.client.platform_keys().model_dump_json())
    check = ("verify", tmp_path / "certificate.json", "--weights", tmp_path / "model.safetensors")
    assert digits.stack.cli(*check, "--key", keys, LABAPEX_URL="http://127.0.0.1:1").code == 0  # nobody is asked
    assert digits.stack.cli(*check).code == 0  # and the log of today still holds it
    (tmp_path / "model.safetensors").write_bytes(b"another")
    assert digits.stack.cli(*check, "--key", keys).code == 104


def test_a_verdict_in_which_a_byte_was_changed_is_refused(digits: Run, tmp_path: Path) -> None:
    assert digits.stack.cli("pull", digits.job, "-o", tmp_path).code == 0
    verdict = tmp_path / "verdict.json"
    document = json.loads(verdict.read_text())
    for path in (["verdict", "loss_logs"], ["verdict", "weights"], ["verdict", "rules", 0, "result"], ["signature"]):
        changed = json.loads(verdict.read_text())
        place: Any = changed
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = _another(place[path[-1]])
        assert changed != document
        (tmp_path / "changed.json").write_text(json.dumps(changed))
        said = digits.stack.cli("verify", tmp_path / "changed.json")
        assert said.code == 1, said
        assert "signature" in said.error
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    said = digits.stack.cli("verify", verdict, "--weights", weights)
    assert (said.code, "is not the file that the verdict names" in said.error) == (1, True)


def _another(value: Any) -> Any:
    """A well formed value of the same kind."""
    if isinstance(value, int):
        return value + 1
    if value in ("pass", "fail", "not-applicable"):
        return "fail" if value == "pass" else "pass"
    return (
        "B" if value[0] == "A" else "A" if value[0] not in "0123456789abcdef" else "0" if value[0] != "0" else "1"
    ) + value[1:]


def test_a_loop_without_a_loader_is_verified(stack: Stack) -> None:
    with stack.worker("patient"):
        said = stack.cli("run", example("chargpt", stack.folder), "--yes", "--json")
    assert said.code == 0, said.err
    summary = said.summary
    assert summary["verdict"] == "verified"
    assert summary["loss_logs"] == summary["epochs"] * summary["iterations_per_epoch"] == 60
    assert summary["replay_max_error"] == 0.0
    assert summary["paid"] + summary["refunded"] == BUDGET


WARM = scripts.LOADER.replace(
    "    scheduler.step()\n", '    scheduler.step()\n    board.add_scalar("done", epoch + 1)\n'
).replace(
    "loader = ",
    """from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter

board = SummaryWriter()
model = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 10))
digits = load_file("parents/0.safetensors")
model[2].load_state_dict({"weight": digits["fc2.weight"], "bias": digits["fc2.bias"]})
loader = """,
)


def test_a_job_that_starts_from_a_verified_one_is_certified_as_its_child(digits: Run, tmp_path: Path) -> None:
    stack, pulled = digits.stack, tmp_path / "pulled"
    folder = scripts.job(tmp_path / "warm", WARM, start_from=digits.job, require_proven_start=True)
    with stack.worker("warm"):
        said = stack.cli("run", folder, "--yes", "--json")
    assert said.code == 0, said.err
    told = stack.cli("metrics", said.summary["job"], "--json").summary["series"]
    assert told == {"done": [[10, 1.0], [20, 2.0], [30, 3.0]]}  # by a logger that is not installed
    assert said.summary["rules"]["provenance"] == {"value": 0.0, "limit": 0.0, "result": "pass"}
    assert stack.cli("pull", said.summary["job"], "-o", pulled).code == 0
    checked = stack.cli("verify", pulled / "certificate.json", "--json").summary["statement"]["predicate"]
    assert checked["parents"] == [certificate_digest(digits.certificate)]
    assert (checked["origin"]["tensors"], checked["origin"]["unproven"]) == (4, 0)
    parent = json.loads(digits.certificate)["predicate"]["origin"]["success"]
    assert checked["origin"]["success"] == parent < 1  # all six segments of the child were replayed


# -- nobody sees what is in it -----------------------------------------------------------------------------------------


def secrets_of(folder: Path) -> list[bytes]:
    """What nobody may find: the script's own lines, and windows from all over the data, packed and unpacked."""
    lines = [line.strip() for line in (folder / "train.py").read_text().splitlines()]
    found = [line.encode() for line in lines if len(line) > 25 and not line.startswith(("import", "from"))]
    data = [path.read_bytes() for path in (folder / "data").iterdir()]
    for path in (folder / "data").glob("*.npz"):
        with zipfile.ZipFile(path) as archive:
            data += [archive.read(name) for name in archive.namelist()]
    for content in data:
        windows = [content[at : at + 64] for at in range(0, len(content) - 64, max(1, len(content) // 30))]
        found += [window for window in windows if len(set(window)) > 4]  # not a run of zeros, which is everywhere
    return found


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Everything that PyInstaller's own reader gets out of an executable, its archive of modules included."""
    archive = CArchiveReader(str(path))
    for name, (*_, kind) in archive.toc.items():
        yield name, archive.extract(name)
        if kind == PKG_ITEM_PYZ:
            modules = archive.open_embedded_archive(name)
            for module in modules.toc:
                yield f"{name}:{module}", modules.extract(module, raw=True) or b""


def test_neither_the_bytes_of_an_executable_nor_what_is_extracted_show_script_or_data(digits: Run) -> None:
    # A few lines stand in Python's own library too: what the runner says without any job is no secret of this one.
    known = b"".join(content for _, content in contents(ROOT / "build" / "runner" / "runner"))
    secrets = [secret for secret in secrets_of(digits.folder) if secret not in known]
    script = (digits.folder / "train.py").read_bytes()
    assert len(secrets) > 60
    assert sum(secret in script for secret in secrets) > 40  # the search finds what is there to be found
    whole = digits.executable.read_bytes()
    assert [secret for secret in secrets if secret in whole] == []
    extracted = dict(contents(digits.executable))
    assert any("labapex_runner" in name for name in extracted)  # it did look inside
    shown = {name for name, content in extracted.items() for secret in secrets if secret in content}
    assert shown == set()


def test_a_flipped_bit_anywhere_in_an_executable_is_refused(digits: Run, tmp_path: Path) -> None:
    path, worker = tmp_path / "executable", digits.worker
    shutil.copy(digits.executable, path)
    manifest = executable.verify(path, digits.trust, worker.worker, time.time())
    with path.open("rb") as file:
        start, size, archive = executable.read_trailer(file)
    end = path.stat().st_size
    edges = [0, manifest.bootloader_size]
    for section in manifest.sections:
        edges.append(edges[-1] + section.size)
    edges += [start, start + size, start + size + 64, archive, end]
    assert edges[-6] == start  # the sections end where the manifest begins
    at_edges = {min(end - 1, max(0, edge + side)) for edge in edges for side in (-1, 0)}
    anywhere = {int.from_bytes(os.urandom(8)) % end for _ in range(16)}
    with path.open("r+b") as file:
        for position in sorted(at_edges | anywhere):
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 1 << position % 8]))
            file.flush()
            with pytest.raises(LabApexError):
                executable.verify(path, digits.trust, worker.worker, time.time())
            file.seek(position)
            file.write(bytes([byte]))
    executable.verify(path, digits.trust, worker.worker, time.time())  # and all of it was put back


# -- several at once ---------------------------------------------------------------------------------------------------


def balance(client: Client) -> tuple[int, int]:
    """Micro-credits: what is available, and what is held."""
    me = client.me()
    return me.available, me.held


def test_two_workers_verify_two_jobs_at_once_and_the_money_is_exact(stack: Stack, tmp_path: Path) -> None:
    client, owner = balance(stack.client), balance(stack.owner)
    folders = [scripts.job(tmp_path / name, pause=0.1) for name in ("first", "second")]
    with stack.worker("left"), stack.worker("right"):
        stack.until(
            "both are offered", lambda: {offer.name for offer in stack.client.all_offers()} >= {"left", "right"}
        )
        commands = [stack.begin("run", folder, "--yes", "--json") for folder in folders]
        ended = [command.wait() for command in commands]
    assert [said.code for said in ended] == [0, 0], ended
    jobs = [stack.job(UUID(said.summary["job"])) for said in ended]
    assert {job.worker for job in jobs} == {"left", "right"}
    overlap = min(job.ended_at or 0 for job in jobs) - max(job.started_at or 0 for job in jobs)
    assert overlap > 0
    for said in ended:
        assert said.summary["loss_logs"] == scripts.ITERATIONS
    receipts = {r["job"]: r for r in json.loads(stack.cli("receipts", "--json").out)}
    for said in ended:
        receipt = receipts[said.summary["job"]]
        assert receipt["paid"] == said.summary["paid"] == 3 * receipt["price_per_epoch"] > 0
        assert receipt["held"] == BUDGET == receipt["paid"] + receipt["refunded"]
        assert " offers fit, " in said.err or " offer fits, " in said.err
    statement = json.loads(stack.cli("statement", "--json").out)
    moved = sum(entry["amount"] for entry in statement["results"] if entry["status"] == "posted")
    assert statement["opening"] + moved == statement["closing"] == sum(balance(stack.client))
    paid = sum(said.summary["paid"] for said in ended)
    assert balance(stack.client) == (client[0] - paid, client[1])
    assert balance(stack.owner) == (owner[0] + paid, owner[1])
