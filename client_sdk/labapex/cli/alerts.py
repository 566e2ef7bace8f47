"""How you are told of what happens to your jobs: `alerts`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from pydantic import ValidationError

from labapex.cli.options import JsonOption, UrlOption, connect
from labapex.cli.output import one_line, print_json, say, stdout
from labapex.errors import UsageError
from labapex.protocol.api import AlertChannels, AlertChoice
from labapex.protocol.canonical import explain


def alerts(
    mail: Annotated[bool | None, typer.Option("--mail/--no-mail", help="To the address of your account.")] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Call this https address.")] = None,
    no_webhook: Annotated[bool, typer.Option("--no-webhook", help="Call none.")] = False,
    budget_share: Annotated[
        int | None, typer.Option(metavar="PERCENT", help="Of a job's budget, that is worth an alert.")
    ] = None,
    trial: Annotated[bool, typer.Option("--trial", help="Send a trial to your channels.")] = False,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """How you are told of alerts: a loss that diverges or is none, a run that stands still, the budget, the end of a job."""
    if webhook is not None and no_webhook:
        raise UsageError("--webhook and --no-webhook exclude each other")
    client = connect(url)
    channels = client.alert_channels()
    wanted: dict[str, Any] = {"mail": mail, "webhook": webhook, "budget_share": budget_share}
    changes = {name: value for name, value in wanted.items() if value is not None}
    changes |= {"webhook": None} if no_webhook else {}
    if changes:
        kept = channels.model_dump(include=set(AlertChoice.model_fields))
        try:
            choice = AlertChoice.model_validate(kept | changes)
        except ValidationError as error:
            raise UsageError(explain(error)) from None
        channels = client.choose_alert_channels(choice)
    if trial:
        client.try_alert_channels()
        say("A trial is on its way.")
    if json:
        print_json(channels)
    else:
        for line in _lines(channels):
            stdout().print(line)


def _lines(channels: AlertChannels) -> list[str]:
    mail = f"to {one_line(channels.address)}" if channels.address else "wanted, but your account has no address"
    lines = [
        f"mail     {mail if channels.mail else 'no'}",
        f"webhook  {one_line(channels.webhook or 'no')}",
        f"budget   from {channels.budget_share} % of it on",
    ]
    return [*lines, f"secret   {one_line(channels.secret)}   (shown only now)"] if channels.secret else lines
