"""`labapex`: the command line of a client of the marketplace. Exit codes stand in `labapex.errors`."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from labapex.cli import (
    account,
    alerts,
    calibration,
    check,
    disputes,
    doctor,
    init,
    jobs,
    market,
    proofs,
    results,
    storage,
)
from labapex.cli.output import one_line, say
from labapex.client import credentials
from labapex.errors import LabApexError

DEBUG_VARIABLE = "LABAPEX_DEBUG"

app = typer.Typer(
    name="labapex",
    help="Buy GPU training from a stranger and know that it was done.",
    no_args_is_help=True,
    rich_markup_mode=None,  # usage errors stay plain text
    pretty_exceptions_enable=False,
)
app.command()(account.login)
app.command()(account.logout)
app.command()(account.whoami)
app.command()(doctor.doctor)
app.command()(init.init)
app.command()(check.check)
app.command()(market.balance)
app.command()(market.offers)
app.command()(jobs.run)
app.command()(jobs.ps)
app.command()(jobs.show)
app.command()(jobs.logs)
app.command()(jobs.metrics)
app.command()(jobs.stop)
app.command()(jobs.resume)
app.command()(alerts.alerts)
app.command()(results.pull)
app.command()(results.verify)
app.command()(results.receipts)
app.command()(disputes.dispute)
app.command("disputes")(disputes.listing)
app.command()(market.statement)
app.command()(storage.storage)
app.command()(storage.delete)
app.command()(proofs.record)
app.command()(proofs.replay)
app.command()(calibration.calibrate)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
    org: Annotated[
        str | None,
        typer.Option(
            "--org",
            metavar="NAME",
            help="Act for this organisation; '' for yourself. Default: LABAPEX_ORG, else as last.",
        ),
    ] = None,
) -> None:
    if org is not None:
        os.environ[credentials.ORGANISATION_VARIABLE] = org
    if version:
        from importlib.metadata import version as of

        typer.echo(of("labapex"))
        raise typer.Exit


def main() -> None:
    """Run the command line: an error is one line on stderr, with a traceback only where it is asked for."""
    try:
        app()
    except LabApexError as error:
        _fail(error, str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a user never meets our traceback
        where = f"set {DEBUG_VARIABLE}=1 to see where" if not os.environ.get(DEBUG_VARIABLE) else "see above"
        _fail(error, f"unexpected {type(error).__name__}: {error} ({where})", LabApexError.exit_code)


def _fail(error: Exception, message: str, code: int) -> None:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    say(f"error: {one_line(message)}")
    sys.exit(code)


if __name__ == "__main__":
    main()
