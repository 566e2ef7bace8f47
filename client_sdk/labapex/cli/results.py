"""What a job came to: `pull` the weights, `verify` the verdict, list the `receipts`."""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from labapex.cli import report
from labapex.cli.options import JobArgument, JsonOption, UrlOption, connect, find, short
from labapex.cli.output import credits, headline, one_line, plain, print_json, say, size, stdout
from labapex.client import VerdictKey, check_verdict
from labapex.errors import MalformedInput, Tampered, UsageError, VerificationRejected
from labapex.protocol.canonical import parse
from labapex.protocol.verdict import SignedVerdict, Verdict

_MAX_VERDICT = 16 << 20
_KEY_BYTES = 32
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key", metavar="KEY", help="The platform's verdict key: base64, hexadecimal or a file. Default: ask it."
    ),
]


def pull(
    job: JobArgument,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder. Default: labapex-<id>.")] = None,
    key: KeyOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Bring the verified weights (safetensors) and the signed verdict, both checked before they get their names."""
    client = connect(url)
    found = find(client, job)
    pulled = client.pull(found, output or Path(f"labapex-{short(found)}"), read_key(key) if key else None)
    if json:
        print_json(
            {
                "weights": str(pulled.weights),
                "verdict": str(pulled.verdict),
                "digest": pulled.digest,
                "size": pulled.size,
            }
        )
        return
    typer.echo(f"{pulled.digest}  {pulled.weights}")
    say(f"{size(pulled.size)} of weights, as the signed verdict in {pulled.verdict} names them")


def verify(
    what: Annotated[str, typer.Argument(metavar="JOB|FILE", help="A job's id, or a verdict.json from `pull`.")],
    key: KeyOption = None,
    weights: Annotated[Path | None, typer.Option(help="Check this weights file against the verdict too.")] = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Check the signature of a verdict. With a file and --key nothing is asked of anyone. 104: it is "rejected"."""
    file = Path(what)
    if file.is_file():
        signed = _read_verdict(file)
        verdict = check_verdict(signed, read_key(key) if key else connect(url).verdict_key().public_key)
    else:
        if file.suffix == ".json" or "/" in what:
            raise UsageError(f"there is no file {what}")
        client = connect(url)
        signed = client.checked_verdict(find(client, what), read_key(key) if key else None)
        verdict = signed.verdict
    if weights is not None:
        _check_weights(weights, verdict)
    if json:
        print_json(signed)
    else:
        out = stdout()
        out.print(report.verdict_lines(verdict))
        out.print(report.rules_table(verdict.rules))
        whose = "the key you gave" if key else "the key that the platform states"
        say(f"The signature is good: signed by {whose} (id {one_line(signed.key_id)})")
    if verdict.verdict == "rejected":
        raise VerificationRejected(f"rejected by the rule '{verdict.deciding_rule}': {verdict.reason}")


def receipts(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="One job's only.")] = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Where your credits went: one line for each job that ended."""
    client = connect(url)
    jobs = [client.job(find(client, job))] if job else [j for j in client.all_jobs() if j.state.ended]
    found = [(entry, report.receipt_of(client, entry)) for entry in jobs]
    if json:
        print_json([plain(receipt) for _, receipt in found if receipt])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("job", "name", "held", "paid", "refunded", "epochs", "because"):
        table.add_column(column, no_wrap=column == "job")
    for entry, receipt in found:
        if receipt is None or not receipt.held:
            cells = [short(entry.id), entry.name, "0", "0", "0", "0", f"{entry.state.value}: no money was held"]
        else:
            amounts = [credits(amount) for amount in (receipt.held, receipt.paid, receipt.refunded)]
            cells = [short(entry.id), entry.name, *amounts, str(receipt.verified_epochs), headline(receipt.reason)]
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    stdout().print(table)


def read_key(text: str) -> bytes:
    """A public key of 32 bytes from base64, hexadecimal, or a file with either or with the platform's own JSON."""
    path = Path(text)
    try:
        if path.is_file():
            with path.open("rb") as file:
                text = file.read(4096).decode("ascii").strip()
            if text.startswith("{"):
                return parse(VerdictKey, text, limit=4096).public_key
        if len(text) == 2 * _KEY_BYTES:
            return bytes.fromhex(text)
        key = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (OSError, ValueError, binascii.Error, MalformedInput):
        key = b""
    if len(key) != _KEY_BYTES:
        raise UsageError("--key must be a public key of 32 bytes as base64 or hexadecimal, or a file that holds one")
    return key


def _read_verdict(file: Path) -> SignedVerdict:
    try:
        with file.open("rb") as stream:
            return parse(SignedVerdict, stream.read(_MAX_VERDICT + 1), limit=_MAX_VERDICT)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None


def _check_weights(path: Path, verdict: Verdict) -> None:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if digest != verdict.weights:
        raise Tampered(f"{path} is not the file that the verdict names (its digest is {digest})")
