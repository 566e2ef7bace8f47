"""`labapex calibrate`: what honest work differs by between two classes of hosts, measured on the one that is to judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from labapex.cli.options import JsonOption
from labapex.cli.output import counted, headline, plain, print_json, say, stdout
from labapex.cli.proofs import DataOption, read_calibration, replayed
from labapex.errors import LabApexError, Tampered, UsageError
from labapex.proof import folder, sources
from labapex.proof.folder import Proof
from labapex.proof.tolerance import NEEDED, Calibration, Line, described, measure, start_error
from labapex.protocol.canonical import canonical
from labapex.protocol.replay import ReplayReport, ReplayRequest


def calibrate(
    proofs: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Proof folders of honest runs on hosts of another class.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The calibration; one that is there is added to.")],
    script: Annotated[Path | None, typer.Option("--script", help="Your own copy of the script.")] = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Replay all of these honest runs on this host, and write down what they differ by: lines to judge others by.

    A dishonest run among them makes the lines too wide: use runs of your own."""
    found = read_calibration(out) if out.exists() else None
    for root in proofs:
        proof = folder.read(root)
        if found is not None and proof.manifest.proof_root in found.runs:
            say(f"{root} is part of {out} already")
            continue
        report = _replay_all(root, proof, script, data)
        found = _added(found, root, proof, report)
    if found is None:
        raise UsageError("there is nothing to calibrate from")
    draft = out.with_name(f".{out.name}.part")
    draft.write_bytes(canonical(found))
    draft.replace(out)
    if json:
        print_json({**plain(found), "lines": [plain(x) if isinstance(x, Line) else x for x in _lines(found)]})
        return
    stdout().print(_table(found))
    say(
        f"{counted(len(found.runs), 'honest run')} of {described(found.worker)}, replayed on {described(found.verifier)}"
    )


def _replay_all(root: Path, proof: Proof, script: Path | None, data: Path | None) -> ReplayReport:
    """Every segment of a run. Raises `UsageError`, `LabApexError` where it says nothing of honest work."""
    if proof.manifest.origin != "recorded" or proof.environment is None:
        raise UsageError(f"{root} does not hold a whole run and its class; record one with `labapex record`")
    segments = tuple(range(len(proof.leaves) - 1))
    request = ReplayRequest(
        contract=proof.contract,
        segments=segments,
        compare=segments,
        digests={leaf.index: leaf.state for leaf in proof.leaves},
    )
    states = {index: proof.state_path(index) for index in proof.states}
    report = replayed(request, sources.match(proof, script, data), states).report
    if report.mismatched:
        raise Tampered(f"{root}: the state of leaf {report.mismatched[0]} is not the committed one")
    if report.problem is not None or {s.leaf for s in report.segments} != set(segments):
        raise LabApexError(f"{root} could not be replayed: {headline(report.problem or 'no reason was given')}")
    return report


def _added(found: Calibration | None, root: Path, proof: Proof, report: ReplayReport) -> Calibration:
    worker, verifier, every = proof.environment, report.environment, proof.contract.checkpoint_every
    assert worker is not None
    if verifier is None or worker == verifier:
        raise UsageError(
            f"{root} was recorded on this host's class: there every bit must be equal, nothing is calibrated"
        )
    if found is None:
        found = Calibration(worker=worker, verifier=verifier, checkpoint_every=every)
    if (worker, verifier, every) != (found.worker, found.verifier, found.checkpoint_every):
        raise UsageError(
            f"{root} is of {described(worker)} at k = {every}, replayed on {described(verifier)}; this calibration is of"
            f" {described(found.worker)} at k = {found.checkpoint_every}, replayed on {described(found.verifier)}:"
            " each needs a file of its own"
        )
    measured = measure(proof.leaves, proof.losses, report)
    start = start_error(proof.leaves[0], report)
    return found.with_run(proof.manifest.proof_root, start, measured, proof.contract.iterations)


def _lines(found: Calibration) -> list[Line | str]:
    return [found.line(phase) for phase in found.phases]


def _table(found: Calibration) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("until", "segments", "error", "1 - cos", "loss", "line: error", "loss"):
        table.add_column(column, no_wrap=True)
    for phase, line in zip(found.phases, _lines(found), strict=True):
        cells = [
            f"{phase.until:.0%}",
            f"{phase.segments} of {NEEDED}" if phase.segments < NEEDED else f"{phase.segments}",
        ]
        cells += ["not finite" if x is None else f"{x:.2g}" for x in (phase.error, phase.cos, phase.loss)]
        cells += [f"{line.error:.2g}", f"{line.loss:.2g}"] if isinstance(line, Line) else [f"none: {line}", ""]
        table.add_row(*cells)
    return table
