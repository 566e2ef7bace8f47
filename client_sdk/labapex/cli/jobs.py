"""Jobs from submission to their end: `run`, `ps`, `show`, `logs`, `stop`."""

from __future__ import annotations

import itertools
import math
import sys
import time
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from labapex import bundle
from labapex.cli import init, market, report, spec_file, storage
from labapex.cli.options import JobArgument, JsonOption, UrlOption, connect, find, short
from labapex.cli.output import clean, counted, credits, headline, one_line, plain, print_json, say, size, stderr, stdout
from labapex.cli.watch import LineView, LiveView, View, Watch, collect, draw
from labapex.client import Client, is_news, parents
from labapex.errors import PlatformUnreachable, UsageError
from labapex.protocol.api import JobView
from labapex.protocol.spec import JobSpec
from labapex.protocol.states import JobState

_INTERRUPTED = 130


def run(
    path: Annotated[Path, typer.Argument(metavar="YAML", help="labapex.yaml, or the folder it lies in.")] = Path(
        "labapex.yaml"
    ),
    epochs: Annotated[int | None, typer.Option(help="Beats the file's.")] = None,
    budget: Annotated[str | None, typer.Option(help="In credits; beats the file's.")] = None,
    name: Annotated[str | None, typer.Option(help="Beats the file's.")] = None,
    start_from: Annotated[
        list[str] | None,
        typer.Option(help="A verified job of yours, or a folder that `pull` made; may be repeated; beats the file's."),
    ] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Submit without asking.")] = False,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Submit and do not follow.")] = False,
    json: Annotated[bool, typer.Option("--json", help="End stdout with one line of JSON.")] = False,
    url: UrlOption = None,
) -> None:
    """Submit a job, follow it live, and end with the verdict. The exit code says how it ended."""
    flags = {"epochs": epochs, "budget": budget, "name": name, "start_from": start_from or None}
    if not yes and sys.stdin.isatty() and not spec_file.place(path).exists():
        path = _offer_to_write(path)
    spec, folder = spec_file.load(path, flags)
    client = connect(url)
    me = client.me()
    say(f"Reading the files of {folder.resolve()} …")
    spec, files = parents.collect(folder, spec)
    _print_plan(spec, files, client.url, me.available, market.words(client, spec))
    if not yes and sys.stdin.isatty() and not typer.confirm("Submit?", default=True, err=True):
        raise UsageError("nothing was submitted")
    job = _submit(client, spec, files)
    say(f"Live page: {job.url}")
    if not detach:
        _follow_to_the_end(client, job, json)
    elif json:
        print_json(job)
    else:
        stdout().print(str(job.id))
        say(f"Follow it with: labapex logs -f {job.id}")


def ps(
    everything: Annotated[bool, typer.Option("-a", "--all", help="All jobs, not only the latest.")] = False,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Your jobs, the newest first."""
    client = connect(url)
    found = list(client.all_jobs() if everything else itertools.islice(client.all_jobs(), 20))
    if json:
        print_json([plain(job) for job in found])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("job", "name", "state", "progress", "cost", "submitted"):
        table.add_column(column, no_wrap=column == "job")
    for job in found:
        submitted = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.created_at))
        progress = f"{job.progress.iterations}/{'?' if job.progress.total is None else job.progress.total}"
        cells = (short(job.id), job.name, job.state.value, progress, credits(job.cost), submitted)
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    stdout().print(table)
    if not found:
        say("No jobs yet; `labapex run labapex.yaml` submits one.")


def show(job: JobArgument, url: UrlOption = None, json: JsonOption = False) -> None:
    """A job's state, progress and cost, and its verdict and receipt when there are."""
    client = connect(url)
    found = client.job(find(client, job))
    verdict, receipt = report.verdict_of(client, found), report.receipt_of(client, found)
    if json:
        document = {"job": found, "verdict": verdict, "receipt": receipt}
        print_json({name: plain(value) if value else None for name, value in document.items()})
        return
    out = stdout()
    out.print(Text(f"{one_line(found.name)}  {found.id}", style="bold"))
    out.print(one_line(found.url))
    if found.worker:
        out.print(one_line(f"worker {found.worker} on {found.device or 'an unnamed device'}"))
    if found.packages:
        out.print(one_line(f"packages {', '.join(found.packages)}"))
    out.print(draw(Watch(found), out.width))
    if "\n" in found.reason:
        out.print(clean(found.reason))
    if erased := storage.erasure(found):
        out.print(one_line(erased))
    for alert in found.alerts:
        over = "" if alert.recovered_at is None else " (is over)"
        out.print(one_line(f"alert {alert.kind}: {alert.text}{over}"))
    if verdict:
        out.print()
        out.print(report.verdict_lines(verdict.verdict))
        out.print(report.rules_table(verdict.verdict.rules))
    if receipt and receipt.held:
        out.print()
        out.print(report.receipt_lines(receipt))


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Follow the job live to its end.")] = False,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """What the job printed: its stdout on stdout, its stderr on stderr. With -f the live view, as `run` has it."""
    client = connect(url)
    found = find(client, job)
    if follow:
        view = client.job(found)
        say(f"Live page: {one_line(view.url)}")
        _follow_to_the_end(client, view, json)
        return
    cursor = ""
    while True:
        events = client.events(found, cursor)
        for chunk in events.console:
            if json:
                print_json(chunk)
                continue
            stream = sys.stdout if chunk.stream == "stdout" else sys.stderr
            stream.write(clean(chunk.text))
        if events.cursor == cursor or not is_news(events):
            return
        cursor = events.cursor


def stop(job: JobArgument, url: UrlOption = None, json: JsonOption = False) -> None:
    """Stop a job. Epochs that are complete are verified and paid, nothing else; one that has ended stays as it is."""
    client = connect(url)
    stopped = client.stop(find(client, job))
    if json:
        print_json(stopped)
    else:
        say(f"{stopped.id} is {stopped.state.value}: {one_line(stopped.reason)}")
        if not stopped.state.ended:
            say(
                f"This costs {credits(stopped.cost)} credits at most; `labapex logs -f {short(stopped.id)}` waits for it"
            )


def resume(job: JobArgument, url: UrlOption = None, json: JsonOption = False) -> None:
    """Let a stopped job go on behind its last paid epoch. The rest of its budget is held again, and no epoch is paid twice."""
    client = connect(url)
    resumed = client.resume(find(client, job))
    if json:
        print_json(resumed)
    else:
        say(f"{resumed.id} is {resumed.state.value}: {one_line(resumed.reason)}")
        say(f"Follow it with `labapex logs -f {short(resumed.id)}`")


def _offer_to_write(path: Path) -> Path:
    """A labapex.yaml for the script that lies there, if whoever sits here wants one."""
    folder = path if path.is_dir() else path.parent
    script = init.find(folder)
    if not typer.confirm(f"There is no {spec_file.place(path)}. Write one for {script.name}?", default=True, err=True):
        raise UsageError("nothing was submitted; `labapex init` writes a labapex.yaml")
    return init.write(script, ask=True)


def metrics(
    job: JobArgument,
    csv: Annotated[bool, typer.Option("--csv", help="iteration,loss lines on stdout.")] = False,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """A job's loss, its device's readings and the script's own series: a summary, every loss with --csv, all with --json."""
    client = connect(url)
    curve = collect(client, find(client, job))
    if json:
        losses = [loss if loss is None or math.isfinite(loss) else None for loss in curve.losses]
        print_json(
            {
                "job": str(curve.job.id),
                "losses": losses,
                "samples": [plain(each) for each in curve.samples],
                "series": {name: list(points.items()) for name, points in curve.series.items()},
            }
        )
    elif csv:
        for iteration, loss in enumerate(curve.losses):
            typer.echo(f"{iteration},{'' if loss is None else f'{loss:.9g}'}")
    else:
        stdout().print(report.metrics_lines(curve.job, curve.losses, curve.samples, curve.series))


def _print_plan(spec: JobSpec, files: bundle.LocalBundle, url: str, available: int | None, offers: str) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    iterations = "as found by the preflight" if spec.iterations_per_epoch is None else str(spec.iterations_per_epoch)
    for name, text in (
        ("job", spec.name),
        ("script", " ".join([spec.script, *spec.arguments()])),
        ("code", f"{counted(len(files.bundle.code), 'file')}, {size(files.code_bytes)}"),
        ("data", f"{counted(len(files.bundle.data), 'file')}, {size(files.data_bytes)}" if spec.data else "none"),
        ("requirements", ", ".join(spec.requirements) or "none: torch and what it runs with"),
        ("starts from", ", ".join(spec.start_from) or "random weights"),
        ("epochs (E)", str(spec.epochs)),
        ("iterations per epoch (I)", iterations),
        ("checkpoint every (k)", f"{spec.checkpoint_every} iterations"),
        ("hosts", _constraints(spec)),
        ("offers", offers),
        ("budget", _budget(spec, available)),
        ("platform", url),
    ):
        grid.add_row(Text(name), Text(one_line(text)))
    stderr().print(grid)


def _constraints(spec: JobSpec) -> str:
    """Which hosts the job may go to."""
    asked = [f"with a device named '{spec.device}'"] if spec.device else []
    asked += [f"with {spec.min_memory:g} GB"] if spec.min_memory else []
    asked += [f"for {spec.max_price} credits an hour at most"] if spec.max_price is not None else []
    asked += [f"that have shown {spec.min_speed:,.0f} GFLOP/s"] if spec.min_speed else []
    asked += [f"with a deposit of {spec.min_deposit} credits"] if spec.min_deposit is not None else []
    return ", ".join(asked) or "any"


def _budget(spec: JobSpec, available: int | None) -> str:
    known = "" if available is None else f" of your {credits(available)}"
    return f"{credits(spec.budget_micro)}{known} credits"


def _submit(client: Client, spec: JobSpec, files: bundle.LocalBundle) -> JobView:
    columns = (TextColumn("Upload"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = stderr()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        return client.submit_bundle(spec, files, lambda done, total: progress.update(task, completed=done, total=total))


def _follow_to_the_end(client: Client, job: JobView, json: bool) -> None:
    """Show a job until it has ended; print what it came to; raise the error that its end stands for."""
    watch = Watch(job)
    try:
        _show(client, job.id, watch)
    except KeyboardInterrupt:
        say(f"\nDetached; the job goes on. Follow it again with: labapex logs -f {job.id}")
        raise typer.Exit(_INTERRUPTED) from None
    _print_result(client, watch, json)


def _show(client: Client, job: UUID, watch: Watch) -> None:
    console = stderr()
    view: View = LiveView(console) if console.is_terminal else LineView(console)
    with view:

        def on_trouble(error: PlatformUnreachable) -> None:
            watch.trouble = str(error)
            view.show(watch, [])

        for events in client.follow(job, on_trouble=on_trouble):
            view.show(watch, watch.feed(events))


def _print_result(client: Client, watch: Watch, json: bool) -> None:
    job = client.job(watch.job.id)
    signed, receipt = report.verdict_of(client, job), report.receipt_of(client, job)
    verdict = signed.verdict if signed else None
    out = stderr() if json else stdout()
    if job.state is JobState.FAILED and stderr().is_terminal:  # elsewhere each line was printed as it came
        for line in watch.errors:
            say(f"  | {line}")
    if "\n" in job.reason:
        say(job.reason)
    if job.packages:
        say(f"Locked packages: {', '.join(map(one_line, job.packages))}")
    if verdict:
        out.print()
        out.print(report.verdict_lines(verdict))
        out.print(report.rules_table(verdict.rules))
    if receipt and receipt.held:
        out.print()
        out.print(report.receipt_lines(receipt))
    else:
        say("No money was held.")
    say("\nNext: " + "\n      ".join(report.next_commands(job)))
    if json:
        print_json(report.summarise(job, verdict, receipt))
    last_words = next((line.strip() for line in reversed(watch.errors) if line.strip()), "")
    if error := report.outcome(job, verdict, last_words):
        raise error
    say(headline(job.reason) or job.state.value)
