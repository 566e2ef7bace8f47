"""`labapex verify certificate.json`: a certificate checked without asking anyone, or against the log as it is today."""

from __future__ import annotations

import json as json_module
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table
from rich.text import Text

from labapex.certificate import (
    MAX_BUNDLE,
    Certificate,
    CertificateBundle,
    PlatformKeys,
    check,
    check_weights,
)
from labapex.cli import files
from labapex.cli.options import connect
from labapex.cli.output import credits, one_line, print_json, say, stdout
from labapex.errors import MalformedInput, VerificationRejected


def is_certificate(file: Path) -> bool:
    """Whether a file means to be a certificate's bundle. Nothing is believed by this."""
    try:
        with file.open("rb") as stream:
            document = json_module.loads(stream.read(MAX_BUNDLE + 1))
    except (OSError, ValueError, RecursionError):
        return file.name == "certificate.json"
    return isinstance(document, dict) and "envelope" in document


def verify(file: Path, *, keys: PlatformKeys | None, weights: Path | None, url: str | None, json: bool) -> None:
    """Check a certificate and print what it states. Without `keys` the platform is asked for them, and for its log.

    Raises `VerificationRejected` (104) where anything does not hold."""
    client = None if keys else connect(url)
    trusted = keys or (client.platform_keys() if client else None)
    assert trusted is not None
    try:
        certificate = check(files.document(CertificateBundle, file, limit=MAX_BUNDLE), trusted)
        if weights is not None:
            check_weights(certificate.statement, files.sha256(weights))
        now = client.check_log(certificate.head, trusted.log) if client else None
        revoked = client.revocation(certificate.digest, trusted) if client else None
    except MalformedInput as error:
        raise VerificationRejected(f"the certificate does not hold: {error}") from None
    if revoked is not None:
        raise VerificationRejected(
            f"the certificate was revoked {_time(revoked.predicate.issued_at)}: {one_line(revoked.predicate.reason)}"
            f" (dispute {revoked.predicate.dispute})"
        )
    if json:
        print_json(_summary(certificate))
    else:
        stdout().print(_table(certificate))
    whose = "the keys you gave" if keys else "the keys that the platform states"
    say(f"The certificate holds: signed under {whose}, entry {certificate.index} of {certificate.head.size} in the log")
    if now is not None:
        say(f"The log has {now.size} entries today and only grew since; the platform states that none revokes it")
    if weights is not None:
        say(f"{weights} is the certified file")


def _summary(certificate: Certificate) -> dict[str, object]:
    head = certificate.head
    return {
        "certificate": certificate.digest,
        "index": certificate.index,
        "log": {"origin": head.origin, "size": head.size, "root": head.root.hex()},
        "statement": certificate.statement.model_dump(mode="json", by_alias=True),
    }


def _table(certificate: Certificate) -> Table:
    statement = certificate.statement
    stated = statement.predicate
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    decided = [rule for rule in stated.rules if rule.weight == "decides"]
    passed = sum(rule.result == "pass" for rule in decided)
    client = f"{stated.client.name} ({stated.client.id})" if stated.client.name else stated.client.id
    rows = {
        "model": statement.subject[0].name,
        "weights": statement.model,
        "client": client,
        "trained": f"{stated.epochs} epochs, {stated.iterations} iterations",
        "on": stated.worker_environment.device if stated.worker_environment else "an unknown device",
        "rules": f"{passed} of {len(decided)} deciding rules passed, the others had nothing to look at",
        "detection": stated.detection,
        "code": stated.code,
        "data": stated.data,
        "terms fixed": _time(stated.contracted_at),
        "issued": _time(stated.issued_at),
        "paid": f"{credits(stated.cost.paid)} credits",
        "started from": ", ".join(stated.parents) or "no certified model",
        "initial weights": stated.origin.words,
        "chain of proofs": f"{stated.origin.success:.4g} = {stated.origin.formula}",
        "certificate": certificate.digest,
    }
    for name, value in rows.items():
        table.add_row(name, Text(one_line(value)))
    return table


def _time(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"{at:g}"
