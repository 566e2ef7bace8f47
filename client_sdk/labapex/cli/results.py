"""What a job came to: `pull` the weights, `verify` the verdict, list the `receipts`."""

from __future__ import annotations

import base64
import binascii
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from labapex.certificate import PlatformKeys
from labapex.cli import certificates, files, proofs, report
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
        "--key",
        metavar="KEY",
        help="The platform's key: base64, hexadecimal or a file, for certificates KEY,LOG_KEY. Default: ask it.",
    ),
]


def pull(
    job: JobArgument,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder. Default: labapex-<id>.")] = None,
    proof: Annotated[
        Path | None,
        typer.Option("--proof", metavar="DIR", help="Bring the job's proof folder instead, also if rejected."),
    ] = None,
    key: KeyOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Bring the verified weights (safetensors), the signed verdict and the certificate, checked before they get names."""
    client = connect(url)
    found = find(client, job)
    verdict_key, log_key = read_keys(key) if key else (None, None)
    if proof is not None:
        brought = client.proof(found, proof, verdict_key)
        if json:
            print_json({"proof": str(proof), **plain(brought)})
            return
        typer.echo(f"{brought.proof_root}  {proof}")
        say(f"The proof that the signed verdict speaks of; replay what was opened with `labapex verify {proof}`")
        return
    pulled = client.pull(found, output or Path(f"labapex-{short(found)}"), verdict_key, log_key=log_key)
    if json:
        print_json(
            {
                "weights": str(pulled.weights),
                "verdict": str(pulled.verdict),
                "certificate": str(pulled.certificate) if pulled.certificate else None,
                "digest": pulled.digest,
                "size": pulled.size,
            }
        )
        return
    typer.echo(f"{pulled.digest}  {pulled.weights}")
    say(f"{size(pulled.size)} of weights, as the signed verdict in {pulled.verdict} names them")
    if pulled.certificate:
        say(f"The certificate for others is {pulled.certificate}")


def verify(
    what: Annotated[
        str,
        typer.Argument(
            metavar="DIR|JOB|FILE",
            help="A proof folder, a job's id, or a verdict.json or certificate.json from `pull`.",
        ),
    ],
    script: Annotated[Path | None, typer.Option("--script", help="DIR: your own copy of the script.")] = None,
    data: proofs.DataOption = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="DIR: JSON with audit_segments, top_q, pev_percent, weights, line.")
    ] = None,
    audit: Annotated[int | None, typer.Option("--audit", min=1, help="DIR: random segments to replay.")] = None,
    tolerance: Annotated[
        Path | None, typer.Option("--tolerance", help="DIR of another class of hosts: what `labapex calibrate` wrote.")
    ] = None,
    again: Annotated[bool, typer.Option("--replay", help="JOB: bring its proof and replay it here.")] = False,
    key: KeyOption = None,
    weights: Annotated[Path | None, typer.Option(help="Check this weights file against the verdict too.")] = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Replay a proof folder, or check a verdict's signature or a certificate. 104: rejected, 105: no verdict.

    A folder needs nobody; a file needs nobody where --key is given.
    """
    file = Path(what)

    def replayed(folder: Path, platform: bytes | None) -> None:
        proofs.verify_folder(
            folder,
            script=script,
            data=data,
            policy=policy,
            audit=audit,
            tolerance=tolerance,
            key=platform,
            json=json,
        )

    if file.is_dir():
        if url or weights or again:
            raise UsageError("--url, --weights and --replay belong to a job or a file, not to a proof folder")
        replayed(file, read_keys(key)[0] if key else None)
        return
    if again:
        if weights or file.is_file():
            raise UsageError("--replay is for a job, whose proof it brings; --weights and files have no place in it")
        client = connect(url)
        platform = read_keys(key)[0] if key else client.verdict_key().public_key
        with tempfile.TemporaryDirectory(prefix="labapex-proof-") as scratch:
            client.proof(find(client, what), Path(scratch) / "proof", platform)
            replayed(Path(scratch) / "proof", platform)
        return
    if script or data or policy or audit or tolerance:
        options = "--script, --data, --policy, --audit and --tolerance"
        raise UsageError(f"{options} belong to a proof folder, and {what} is none; for a job's add --replay")
    if file.is_file() and certificates.is_certificate(file):
        certificates.verify(file, keys=both_keys(key) if key else None, weights=weights, url=url, json=json)
        return
    if file.is_file():
        signed = files.document(SignedVerdict, file, limit=_MAX_VERDICT)
        verdict = check_verdict(signed, read_keys(key)[0] if key else connect(url).verdict_key().public_key)
    else:
        if file.suffix == ".json" or "/" in what:
            raise UsageError(f"there is no file {what}")
        client = connect(url)
        signed = client.checked_verdict(find(client, what), read_keys(key)[0] if key else None)
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


def both_keys(text: str) -> PlatformKeys:
    """The two keys that a certificate stands on. Raises `UsageError`."""
    verdict, log = read_keys(text)
    if log is None:
        raise UsageError(
            "a certificate stands on two keys: give --key KEY,LOG_KEY, or a file with what the platform"
            " answers at /api/v1/keys/"
        )
    return PlatformKeys(verdict=verdict, log=log)


def read_keys(text: str) -> tuple[bytes, bytes | None]:
    """The key of verdicts, and the log's where it is given too: after a comma, or in a file of both."""
    path = Path(text)
    try:
        if path.is_file():
            with path.open("rb") as file:
                both = parse(PlatformKeys, file.read(4096), limit=4096)
            return both.verdict, both.log
    except (OSError, MalformedInput):
        return read_key(text), None
    verdict, found, log = text.partition(",")
    return read_key(verdict), read_key(log) if found else None


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


def _check_weights(path: Path, verdict: Verdict) -> None:
    if (digest := files.sha256(path)) != verdict.weights:
        raise Tampered(f"{path} is not the file that the verdict names (its digest is {digest})")
