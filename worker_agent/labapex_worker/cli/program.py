"""The commands, and how an error of any of them looks."""

from __future__ import annotations

import typer

from labapex.cli.output import one_line, say
from labapex.errors import LabApexError
from labapex_worker.cli import earnings, enrolment, examination, files, installation, limits, service, state, wishes

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # usage errors stay plain text
    pretty_exceptions_enable=False,
    help="Rent out this machine to train models in a sandbox, and be paid.",
)
app.command()(examination.check)
app.command()(enrolment.enrol)
app.command()(installation.install)
app.command()(service.run)
app.command()(service.update)
app.command()(state.status)
app.command()(limits.limits)
app.command()(wishes.pause)
app.command()(wishes.resume)
app.command()(wishes.drain)
app.command()(earnings.earnings)
app.command()(installation.uninstall)
app.command()(files.inspect)
app.command()(files.digest)
app.command()(files.version)


def main() -> None:
    """The console script: errors of ours are one line and an exit code (`labapex.errors`), never a traceback."""
    try:
        app()
    except LabApexError as error:
        say(f"error: {one_line(str(error))}")
        raise SystemExit(error.exit_code) from None
