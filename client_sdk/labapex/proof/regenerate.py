"""Makes states anew that a host did not keep: runs there again from the kept ones, on the host that trained."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labapex import durable
from labapex.errors import LabApexError, MalformedInput, TrainingFailed
from labapex.proof import recording
from labapex.proof.isolate import isolated
from labapex.proof.replay import Item, Replayer
from labapex.proof.runs import Run, runs
from labapex.proof.runtime import Engine
from labapex.proof.state import State
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf
from labapex.protocol.replay import RegenerateReport, RegenerateRequest


def regenerate(*, request: RegenerateRequest, job: Path, folder: Path) -> RegenerateReport:
    """Make the request's states, as `folder`/states/<leaf>.safetensors; those that are there already stay.

    `job` is the folder that the run left behind: `pristine/` (the script as it came), `states/` and the log. What cannot be
    done stands in the report."""
    try:
        _regenerate(request, job, folder)
    except (LabApexError, OSError) as error:
        return RegenerateReport(problem=str(error)[-2000:])
    return RegenerateReport(made=request.states)


def _regenerate(request: RegenerateRequest, job: Path, folder: Path) -> None:
    contract = request.contract
    leaves = {leaf.index: leaf for leaf in recording.leaves(job)}
    if contract.after is not None:  # its state came with the job, and its leaf with the contract
        leaves[contract.after.index] = contract.after
    begin = 0 if contract.after is None else contract.after.index
    if leaves.keys() != set(range(begin, begin + len(leaves))):  # not all that are due, where the run was stopped
        raise MalformedInput(f"the log of this run has {len(leaves)} leaves, and some between them are missing")
    (folder / "states").mkdir(mode=0o700, exist_ok=True)
    files = {n: folder / "states" / f"{n}.safetensors" for n in request.states}
    if not files.keys() <= leaves.keys():
        raise MalformedInput(f"leaf {min(files.keys() - leaves.keys())} is none of this host's")
    here = contract.kept_leaves() & leaves.keys()
    items = runs([n - 1 for n, file in files.items() if not _holds(file, leaves[n])], here)
    for run in items:
        if not _holds(job / "states" / f"{run.leaf}.safetensors", leaves[run.leaf]):
            raise MalformedInput(f"the kept state of leaf {run.leaf} is not the committed one any more")
    while items:
        found = _round(contract, job, folder, items, files)
        for segment in found["segments"]:
            leaf = leaves[segment["leaf"] + 1]
            if leaf.index in files and segment["state"] != leaf.state:
                raise TrainingFailed(f"the state of leaf {leaf.index} came out as another one than was committed")
        if not found["done"]:
            raise TrainingFailed(f"the run cannot be brought to leaf {items[0].stop} from leaf {items[0].leaf}")
        items = items[found["done"] :]
    durable.sync_all(files.values())


def _round(contract: Contract, job: Path, folder: Path, todo: list[Run], files: Mapping[int, Path]) -> dict[str, Any]:
    """One process with the script, as far as it gets. It sees its files as they came, whatever it wrote while it trained."""
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(job / "pristine", place / "work")
    (place / "states").symlink_to(job / "states")

    def run() -> dict[str, Any]:
        items: list[Item] = list(todo)
        replayer = Replayer(contract, place, items, keep=files)
        Engine.under(contract, place / "work", replayer).run(contract.threads)
        return replayer.result

    return isolated(run, folder / "console.log", writes=(place, folder / "states"))


def _holds(file: Path, leaf: Leaf) -> bool:
    try:
        return file.exists() and State.load(file).digest() == leaf.state
    except MalformedInput:
        return False
