"""Proofs without a platform: `record` a run into a folder, `verify` such a folder, `replay` one of its segments."""

from __future__ import annotations

import hashlib
import importlib.metadata
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
from labapex.cli import files, report
from labapex.cli.options import JsonOption
from labapex.cli.output import counted, headline, one_line, plain, print_json, say, size, stdout
from labapex.client import check_verdict
from labapex.errors import MalformedInput, Tampered, TrainingFailed, UsageError, VerificationRejected
from labapex.proof import confined, folder, recording, sources, span, verifier
from labapex.proof.confined import RecordReport, RecordRequest
from labapex.proof.folder import Proof
from labapex.proof.tolerance import MAX_CALIBRATION, Calibration
from labapex.protocol.canonical import parse
from labapex.protocol.contract import Contract
from labapex.protocol.records import uncolumn
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
    every: Annotated[
        int | None, typer.Option("--every", min=1, help="k: commit to the state every k iterations. Default: 10.")
    ] = None,
    keep_every: Annotated[
        int | None,
        typer.Option("--keep-every", min=1, help="m: keep every m-th state committed to. Default: 1, all of them."),
    ] = None,
    seed: Annotated[str | None, typer.Option("--seed", help="Decides all randomness. Default: drawn.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="E. Default: counted by a first run.")] = None,
    iterations_per_epoch: Annotated[
        int | None, typer.Option("--iterations-per-epoch", min=1, help="I. Default: batches of the loop's loader.")
    ] = None,
    data: DataOption = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, max=256, help="CPU threads. Default: 1.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted recording for --out, under its own terms.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Run a script unmodified and write a proof folder: commitments, losses, kept states, and the final weights."""
    place = _new_place(out)
    draft = place.with_name(f"{place.name}.recording")
    terms = (args, every, keep_every, seed, epochs, iterations_per_epoch, threads)
    if resume and any(term is not None for term in terms):
        raise UsageError(
            "--resume goes on under the terms that the recording began with: say nothing but --out and --data"
        )
    if resume != draft.exists():
        raise UsageError(
            f"there is no interrupted recording at {draft}; leave --resume out"
            if resume
            else f"an interrupted recording lies at {draft}: go on with it by --resume, or delete it"
        )
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
        checkpoint_every=every or 10,
        keep_every=keep_every or 1,
        threads=threads or 1,
        seed=_seed(seed),
        code=folder.parts_digest(found.files.code),
        data=folder.parts_digest(found.files.data),
    )
    if resume:
        request = _begun(draft, request)
    try:
        with confined.draft(draft) as scratch:
            found.fill(scratch / "work")
            done = confined.run(
                "record", scratch, request=request, report=RecordReport, threads=request.threads, own=True
            )
            if done.problem is not None or done.contract is None:
                say(done.problem or "")
                raise TrainingFailed(headline(done.problem or "the script could not be recorded"))
            manifest = _assemble(place, scratch, found, done, done.contract)
    except BaseException:
        if draft.exists():
            say(f"what was recorded lies at {draft}: go on with it by --resume, or delete it")
        raise
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
    tolerance: Path | None,
    key: bytes | None,
    json: bool,
) -> None:
    """Verify a proof folder. Raises `VerificationRejected` where anything in it does not hold, `NotJudgeable` without a line.

    `key`: the platform's, for the signature of the verdict that a platform's folder holds."""
    terms = _policy(policy)
    if audit is not None:
        terms = terms.model_copy(update={"audit_segments": audit})
    if tolerance is not None and terms.line is not None:
        raise UsageError("--tolerance and the policy's line both say what may differ between classes; give one")
    calibration = read_calibration(tolerance) if tolerance is not None else None
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
    _tell_packages(proof)
    states = {index: proof.state_path(index) for index in proof.states}
    try:
        verdict = verifier.verify(
            proof,
            policy=terms,
            random=random.SystemRandom(),
            replay=lambda request: replayed(request, own, states),
            calibration=calibration,
        )
    except Tampered as error:  # a platform asked for other things than its nonces give
        _reject(root, "proof-folder", str(error), json)
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
    _tell_packages(proof)
    stretch = span.span(proof, start=start, steps=steps)
    states = {index: proof.state_path(index) for index in proof.states}
    done = replayed(span.request(proof, stretch), own, states)
    error = span.measure(proof, stretch, done.report)
    if json:
        print_json(error)
        return
    table = Table.grid(padding=(0, 2))
    for name, value in plain(error).items():
        table.add_row(Text(name, style="dim"), Text(one_line(str(value))))
    stdout().print(table)


# -- how ---------------------------------------------------------------------------------------------------------------


def _begun(draft: Path, given: RecordRequest) -> RecordRequest:
    """What the interrupted recording in `draft` was asked for. Raises `UsageError` where script or data are others now."""
    with folder.opened(draft, "request.json") as file:
        begun = parse(RecordRequest, file.read(folder.MAX_DOCUMENT + 1), limit=folder.MAX_DOCUMENT)
    if (begun.script, begun.code, begun.data) != (given.script, given.code, given.data):
        raise UsageError(
            f"script or data are not those that the recording at {draft} began with; delete it to begin anew"
        )
    return begun


def _assemble(
    place: Path, scratch: Path, found: sources.Sources, done: RecordReport, contract: Contract
) -> folder.Manifest:
    """The proof folder out of what the recording left behind."""
    leaves = recording.leaves(scratch)
    states = {index: scratch / "states" / f"{index}.safetensors" for index in contract.kept_leaves()}
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
            losses=uncolumn(_left(scratch, recording.LOSSES)),
            times=uncolumn(_left(scratch, recording.TIMES)),
            files=found.files,
            code=[_bytes(found.contents[part.path]) for part in found.files.code],
            environment=done.environment,
            states=states,
            weights=weights,
        )
        whole = scratch / "proof"
        folder.store(manifest, contents, whole)
    whole.rename(place)
    return manifest


def replayed(request: ReplayRequest, own: sources.Sources, states: dict[int, Path]) -> verifier.Replayed:
    """What came of a replay in the confined child, with the states at these paths."""
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
    how = (
        "signed by the key you gave"
        if key
        else (
            "its signature is not looked at without --key, so whoever made this folder may have drawn what was opened"
        )
    )
    say(f"The platform's own verdict is '{proof.verdict.verdict.verdict}'; {how}")


def _tell_packages(proof: Proof) -> None:
    """The script runs with this Python's own packages: say which are not those that it was trained with."""
    here = {wheel: _installed(wheel.name) for wheel in proof.requirements.wheels}
    others = [f"{wheel} (here {version or 'none'})" for wheel, version in here.items() if version != wheel.version]
    if others:
        say(f"trained with other packages than yours, so the replay may differ: {', '.join(others)}")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _reject(root: Path, rule: str, reason: str, json: bool) -> NoReturn:
    if json:
        print_json({"proof": str(root), "verdict": "rejected", "deciding_rule": rule, "reason": reason})
    raise VerificationRejected(f"rejected by the rule '{rule}': {reason}")


def read_calibration(path: Path) -> Calibration:
    """What `labapex calibrate` wrote. Raises `UsageError`."""
    try:
        return files.document(Calibration, path, limit=MAX_CALIBRATION)
    except MalformedInput as error:
        raise UsageError(f"{path} is no calibration: {error}") from None


def _policy(path: Path | None) -> verifier.AuditPolicy:
    if path is None:
        return verifier.AuditPolicy()
    try:
        with files.reading(path) as file:
            return verifier.parse_policy(jsonlib.loads(file.read(_MAX_POLICY)))
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
