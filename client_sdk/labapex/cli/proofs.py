"""Proofs without a platform: `record` a run into a folder, `verify` such a folder, `replay` one of its segments."""

from __future__ import annotations

import hashlib
import json as jsonlib
import math
import os
import random
import re
import secrets
import shutil
from pathlib import Path
from typing import Annotated, BinaryIO, NoReturn

import typer
from rich.table import Table
from rich.text import Text

from labapex import sandbox
from labapex.cli import report
from labapex.cli.options import JsonOption
from labapex.cli.output import counted, headline, one_line, plain, print_json, say, size, stdout
from labapex.client import check_verdict
from labapex.errors import MalformedInput, TrainingFailed, UsageError, VerificationRejected
from labapex.proof import confined, folder, sources, verifier
from labapex.proof.confined import RecordReport, RecordRequest
from labapex.proof.folder import Proof
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf, uncolumn
from labapex.protocol.replay import ReplayReport, ReplayRequest

_MAX_POLICY = 1 << 20
_SEED = re.compile(r"[0-9a-f]{64}")
DataOption = Annotated[
    Path | None, typer.Option("--data", help="The folder that the script reads. Default: `data` beside the script.")
]


def record(
    script: Annotated[Path, typer.Argument(help="The script that trains, as it is.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The proof folder to make; it must not exist.")],
    args: Annotated[list[str] | None, typer.Argument(metavar="[-- ARGS]", help="The script's own arguments.")] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="k: commit to the state every k iterations.")] = 10,
    seed: Annotated[str | None, typer.Option("--seed", help="Decides all randomness. Default: drawn.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="E. Default: counted by a first run.")] = None,
    iterations_per_epoch: Annotated[
        int | None, typer.Option("--iterations-per-epoch", min=1, help="I. Default: batches of the loop's loader.")
    ] = None,
    data: DataOption = None,
    threads: Annotated[int, typer.Option("--threads", min=1, max=256, help="CPU threads.")] = 1,
    json: JsonOption = False,
) -> None:
    """Run a script unmodified and write a proof folder: commitments, losses, all states, and the final weights."""
    place = _new_place(out)
    found = sources.collect(script, data)
    if found.files.data:
        say(f"data: {counted(len(found.files.data), 'file')} of '{found.files.data_root}'")
    if (missing := sandbox.available()) is not None:
        say(f"your script runs without a sandbox: {missing}")
    request = RecordRequest(
        script=found.script,
        args=tuple(args or ()),
        epochs=epochs,
        iterations_per_epoch=iterations_per_epoch,
        checkpoint_every=every,
        threads=threads,
        seed=_seed(seed),
        code=folder.parts_digest(found.files.code),
        data=folder.parts_digest(found.files.data),
    )
    with confined.scratch(place.parent) as scratch:
        found.fill(scratch / "work")
        done = confined.run("record", scratch, request=request, report=RecordReport, threads=threads, own=True)
        if done.problem is not None or done.contract is None:
            say(done.problem or "")
            raise TrainingFailed(headline(done.problem or "the script could not be recorded"))
        manifest = _assemble(place, scratch, found, done, done.contract)
    proof = folder.read(place)
    summary = {
        "proof": str(out),
        "proof_root": manifest.proof_root,
        "contract": manifest.contract,
        "seed": done.contract.seed,
        "epochs": done.contract.epochs,
        "iterations_per_epoch": done.contract.facts.iterations_per_epoch,
        "iterations": done.contract.iterations,
        "checkpoint_every": done.contract.checkpoint_every,
        "leaves": len(proof.leaves),
        "final_loss": proof.losses[-1] if math.isfinite(proof.losses[-1]) else None,
        "train_seconds": folder.train_seconds(proof.times),
        "bytes": sum(entry.size for entry in manifest.files),
        "weights": proof.weights,
    }
    if json:
        print_json(summary)
        return
    typer.echo(f"{manifest.proof_root}  {out}")
    say(
        f"{counted(done.contract.iterations, 'iteration')}, {len(proof.leaves)} leaves"
        f", {size(sum(e.size for e in manifest.files))}; check it with `labapex verify {out}`"
    )


def verify_folder(
    root: Path,
    *,
    script: Path | None,
    data: Path | None,
    policy: Path | None,
    audit: int | None,
    key: bytes | None,
    json: bool,
) -> None:
    """Verify a proof folder. Raises `VerificationRejected` where anything in it does not hold.

    `key`: the platform's, for the signature of the verdict that a platform's folder holds."""
    terms = _policy(policy)
    if audit is not None:
        terms = terms.model_copy(update={"audit_segments": audit})
    try:
        proof = folder.read(root)
    except MalformedInput as error:
        _reject(root, "proof-folder", str(error), json)
    try:
        own = sources.match(proof, script, data)
    except MalformedInput as error:
        _reject(root, "sources", str(error), json)
    _signature(proof, key)
    if own.borrowed:
        say(f"taken from the proof, because they do not lie beside your script: {', '.join(own.borrowed)}")
    states = {index: proof.state_path(index) for index in proof.states}
    verdict = verifier.verify(
        proof,
        policy=terms,
        random=random.SystemRandom(),
        replay=lambda request: _replay(request, own, states),
    )
    if json:
        print_json({"proof": str(root), "origin": proof.manifest.origin, **plain(verdict)})
    else:
        out = stdout()
        out.print(_terms(proof))
        out.print(report.verdict_lines(verdict))
        out.print(report.rules_table(verdict.rules))
    if verdict.verdict == "rejected":
        raise VerificationRejected(f"rejected by the rule '{verdict.deciding_rule}': {verdict.reason}")


def replay(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="A proof folder.")],
    start: Annotated[int, typer.Option("--from", min=0, help="The step that the stretch begins with, a leaf's.")],
    steps: Annotated[int, typer.Option("--steps", min=1, help="Iterations; they must end at a leaf.")],
    script: Annotated[Path | None, typer.Option("--script", help="Your own copy of the script.")] = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Replay one stretch of a proof and print how far it ends from what the proof commits to."""
    proof = folder.read(root)
    own = sources.match(proof, script, data)
    stretch = verifier.span(proof, start=start, steps=steps)
    ends = {stretch.leaf: stretch.start.index, stretch.leaf + 1: stretch.stop.index}
    for index in ends.values():
        if index not in proof.states:
            raise UsageError(f"the state of step {proof.leaves[index].step} is not in the folder; it was never opened")
    states = {here: proof.state_path(index) for here, index in ends.items()}
    done = _replay(verifier.span_request(stretch), own, states)
    error = verifier.measure(proof, stretch, done.report)
    if json:
        print_json(error)
        return
    table = Table.grid(padding=(0, 2))
    for name, value in plain(error).items():
        table.add_row(Text(name, style="dim"), Text(one_line(str(value))))
    stdout().print(table)


# -- how ---------------------------------------------------------------------------------------------------------------


def _assemble(
    place: Path, scratch: Path, found: sources.Sources, done: RecordReport, contract: Contract
) -> folder.Manifest:
    """The proof folder out of what the recording left behind."""
    leaves = [Leaf.model_validate_json(line) for line in _left(scratch, "leaves.jsonl").splitlines()]
    states = {leaf.index: scratch / "states" / f"{leaf.index}.safetensors" for leaf in leaves}
    final = {leaves[-1].index: states[leaves[-1].index]}
    request = ReplayRequest(contract=contract, segments=(), digests={leaves[-1].index: leaves[-1].state})
    with confined.scratch(place.parent) as second:
        again = _run_replay(second, request, found, final)
        if again.problem is not None:
            raise TrainingFailed(f"the weights could not be taken from the final state: {headline(again.problem)}")
        weights = second / folder.WEIGHTS
        manifest, contents = folder.build(
            origin="recorded",
            contract=contract,
            leaves=leaves,
            losses=uncolumn(_left(scratch, "losses.f64")),
            times=uncolumn(_left(scratch, "times.f64")),
            files=found.files,
            code=[_bytes(found.contents[part.path]) for part in found.files.code],
            environment=done.environment,
            states=states,
            weights=weights,
        )
        draft = scratch / "proof"
        folder.store(manifest, contents, draft)
    draft.rename(place)
    return manifest


def _replay(request: ReplayRequest, own: sources.Sources, states: dict[int, Path]) -> verifier.Replayed:
    with confined.scratch() as scratch:
        made = _run_replay(scratch, request, own, states)
        try:
            with folder.opened(scratch, folder.WEIGHTS) as file:
                weights = _digest(file)
        except MalformedInput:
            weights = None  # the rule on weights says so
    return verifier.Replayed(made, weights)


def _run_replay(scratch: Path, request: ReplayRequest, own: sources.Sources, states: dict[int, Path]) -> ReplayReport:
    own.fill(scratch / "work")
    for index in request.digests:
        target = scratch / "states" / f"{index}.safetensors"
        with folder.opened(states[index].parent, states[index].name) as file, folder.new_file(target) as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
    return confined.run("replay", scratch, request=request, report=ReplayReport, threads=request.contract.threads)


def _signature(proof: Proof, key: bytes | None) -> None:
    """Say what a platform's own verdict is, and check its signature where that can be done."""
    if proof.verdict is None:
        if key is not None:
            raise UsageError("--key checks the signature of a platform's verdict, and this folder holds none")
        return
    if key is not None:
        check_verdict(proof.verdict, key)
    how = "signed by the key you gave" if key else "its signature is not looked at without --key"
    say(f"The platform's own verdict is '{proof.verdict.verdict.verdict}'; {how}")


def _reject(root: Path, rule: str, reason: str, json: bool) -> NoReturn:
    if json:
        print_json({"proof": str(root), "verdict": "rejected", "deciding_rule": rule, "reason": reason})
    raise VerificationRejected(f"rejected by the rule '{rule}': {reason}")


def _policy(path: Path | None) -> verifier.AuditPolicy:
    if path is None:
        return verifier.AuditPolicy()
    try:
        with path.open("rb") as file:
            return verifier.parse_policy(jsonlib.loads(file.read(_MAX_POLICY)))
    except OSError as error:
        raise UsageError(f"--policy: {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"--policy: {path} is no JSON document") from None


def _terms(proof: Proof) -> Table:
    """What was promised: a verdict speaks of this run and of no other."""
    contract = proof.contract
    grid = Table.grid(padding=(0, 2))
    for name, text in (
        ("script", " ".join((contract.script, *contract.args))),
        ("terms", f"E = {contract.epochs}, I = {contract.facts.iterations_per_epoch}, k = {contract.checkpoint_every}"),
        ("seed", contract.seed),
        ("contract", proof.manifest.contract),
        ("proof root", proof.manifest.proof_root),
    ):
        grid.add_row(Text(name, style="dim"), Text(one_line(text)))
    return grid


def _seed(text: str | None) -> str:
    """64 hexadecimal digits as they are; anything else by its SHA-256."""
    if text is None:
        return secrets.token_hex(32)
    return text if _SEED.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()


def _new_place(out: Path) -> Path:
    place = out.absolute()
    if place.exists():
        raise UsageError(f"{out} exists already; name a folder that does not")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be made: {error.strerror}") from None
    if not os.access(place.parent, os.W_OK):
        raise UsageError(f"{out} cannot be made: {place.parent} cannot be written to")
    return place


def _left(scratch: Path, name: str) -> bytes:
    with folder.opened(scratch, name) as file:
        return file.read()


def _bytes(content: folder.Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _digest(file: BinaryIO) -> str:
    state = hashlib.sha256()
    for chunk in iter(lambda: file.read(1 << 20), b""):
        state.update(chunk)
    return state.hexdigest()
