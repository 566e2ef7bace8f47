"""`labapex check`: the platform's preflight on one's own machine, before anything is sent or paid."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from labapex import bundle, sandbox
from labapex.cli import spec_file
from labapex.cli.options import JsonOption
from labapex.cli.output import (
    clean,
    counted,
    duration,
    headline,
    one_line,
    plain,
    print_json,
    say,
    size,
    stderr,
    stdout,
)
from labapex.errors import TrainingFailed, UsageError
from labapex.proof import confined
from labapex.proof.folder import Files
from labapex.proof.objections import checkpoints, objection
from labapex.proof.origins import mark
from labapex.proof.sources import Sources
from labapex.protocol.replay import PreflightReport, PreflightRequest
from labapex.protocol.spec import JobSpec

_SHOWN = 4000  # characters of what the script printed, where it failed


def check(
    path: Annotated[Path, typer.Argument(metavar="YAML", help="labapex.yaml, or the folder it lies in.")] = Path(
        "labapex.yaml"
    ),
    epochs: Annotated[int | None, typer.Option(help="Beats the file's.")] = None,
    json: JsonOption = False,
) -> None:
    """Try a job here as the platform would: does it run, does it reproduce itself, what are its iterations."""
    spec, folder = spec_file.load(path, {"epochs": epochs})
    if spec.start_from:
        raise UsageError("start_from: only the platform knows certified models; check the script without it")
    found = bundle.collect(folder, spec)
    if (missing := sandbox.available()) is not None:
        say(f"your script runs without a sandbox: {missing}")
    say(f"Trying {spec.script} from {folder.resolve()} ...")
    report = tried(spec, found)
    problem = objection(spec, report)
    if json:
        print_json({"problem": problem, **plain(report.model_copy(update={"console": ""}))})
    elif problem is None:
        stdout().print(_table(spec, report))
    if problem is not None:
        if report.console and not json:
            stderr().print(Text(clean(report.console[-_SHOWN:])))
        if "\n" in problem:
            say(problem)
        raise TrainingFailed(f"refused by the preflight: {headline(problem)}")
    say("The preflight would accept it. What it costs depends on the platform; `labapex run` says so.")


def tried(spec: JobSpec, found: bundle.LocalBundle) -> PreflightReport:
    """The preflight's report on a job's files."""
    parts = (*found.bundle.code, *found.bundle.data)
    files = Sources(
        script=spec.script,
        files=Files(code=found.bundle.code, data=found.bundle.data),
        contents={part.path: found.files[part.digest] for part in parts},
    )
    request = PreflightRequest(
        script=spec.script,
        args=tuple(spec.arguments()),
        epochs=spec.epochs,
        iterations_per_epoch=spec.iterations_per_epoch,
        checkpoint_every=spec.checkpoint_every,
        threads=min(spec.threads, os.cpu_count() or 1),
        seed=secrets.token_hex(32),
    )
    with confined.scratch() as scratch:
        files.fill(scratch / "work")
        return confined.run(
            "preflight", scratch, request=request, report=PreflightReport, threads=request.threads, own=True
        )


def _table(spec: JobSpec, report: PreflightReport) -> Table:
    facts, environment = report.facts, report.environment
    assert facts is not None
    assert environment is not None
    iterations = spec.epochs * facts.iterations_per_epoch
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, text in (
        ("training loop", facts.loop),
        ("iterations per epoch (I)", str(facts.iterations_per_epoch)),
        ("iterations in all", f"{iterations}, about {duration(iterations * report.iteration_seconds)} on this machine"),
        ("commitments", f"up to {checkpoints(spec, facts.iterations_per_epoch)} of {size(facts.state_bytes)} each"),
        ("parameters", counted(facts.parameters, "number")),
        ("initial weights", mark(report.start) if report.start else "not compared"),
        ("replayed", "reproduced to the last bit"),
        ("class of this host", f"Python {environment.python}, torch {environment.torch}, {environment.device}"),
    ):
        grid.add_row(Text(name), Text(one_line(text)))
    return grid
