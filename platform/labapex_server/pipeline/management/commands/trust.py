"""The trust document: who makes its root key and signs it, mostly on a machine that is no server. docs/operations.md, Trust."""

from __future__ import annotations

import base64
import binascii
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from labapex import trust as rules
from labapex.errors import LabApexError, MalformedInput, UsageError
from labapex.protocol.canonical import canonical, parse
from labapex.protocol.trust import MAX_CHAIN, Role, SignedTrust, TrustDocument, TrustedKey, key_id
from labapex.sealing import public_signing_key
from labapex.trust import fingerprint
from labapex_server.lib import keys, offline, trust

DAY = 24 * 3600


class Command(BaseCommand):
    help = "Make root and online keys, sign, publish and show the trust document."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        root = actions.add_parser("root", help="make a root key: a PEM file under a passphrase, outside the home")
        root.add_argument("file", type=Path)
        key = actions.add_parser("key", help="make a manifest key here, or a release key in a PEM file")
        key.add_argument("role", choices=["manifest", "release"])
        key.add_argument("file", type=Path, nargs="?", help="where the release key is written")
        sign = actions.add_parser("sign", help="sign the first trust document, or the next")
        sign.add_argument("--root", type=Path, required=True, help="the root key that counts")
        sign.add_argument("--new-root", type=Path, help="the root key that shall count from this document on")
        sign.add_argument("--after", type=Path, help="today's document or home/trust.json; without it: the first")
        sign.add_argument("--add", action="append", default=[], metavar="ROLE:KEY", help="as `trust key` printed it")
        sign.add_argument("--retire", action="append", default=[], metavar="ID", help="counts until its leases ended")
        sign.add_argument("--revoke", action="append", default=[], metavar="ID", help="counts no more")
        sign.add_argument("--days", type=float, default=90, help="until the document expires")
        sign.add_argument("--key-days", type=float, default=365, help="until an added key expires")
        sign.add_argument("--out", type=Path, required=True)
        publish = actions.add_parser("publish", help="hand out a signed document from now on")
        publish.add_argument("file", type=Path)
        show = actions.add_parser("show", help="what is handed out, and what there is to worry about")
        show.add_argument("--json", action="store_true", dest="as_json")
        for each in (root, key, sign):
            each.add_argument("--passphrase-file", type=Path, help="a file of mode 0600; else it is asked for")

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        try:
            getattr(self, f"_{action}")(options)
        except LabApexError as error:
            raise CommandError(str(error)) from None

    def _root(self, options: dict[str, Any]) -> None:
        public = offline.make(options["file"], offline.new_passphrase(options["passphrase_file"]))
        self.stdout.write(f"root key {fingerprint(public)} in {options['file']}; keep it away from every server")

    def _key(self, options: dict[str, Any]) -> None:
        role: Role = options["role"]
        if role == "manifest":
            if options["file"] is not None:
                raise UsageError("a manifest key is made in the platform's home, where it is needed; name no file")
            public = keys.new(role)
        elif options["file"] is None:
            raise UsageError("name a file outside the home: the release key is needed only where releases are signed")
        else:
            public = offline.make(options["file"], offline.new_passphrase(options["passphrase_file"]))
        self.stderr.write(f"{role} key {key_id(public)} counts once a trust document names it:")
        self.stdout.write(f"{role}:{base64.b64encode(public).decode()}")

    def _sign(self, options: dict[str, Any]) -> None:
        before = None if options["after"] is None else _read(options["after"])
        root = offline.load(options["root"], options["passphrase_file"])
        document = _next(before, public_signing_key(root), options)
        signers = [root]
        if options["new_root"] is not None:
            signers.append(offline.load(options["new_root"], options["passphrase_file"]))
            document = document.model_copy(update={"root": public_signing_key(signers[1])})
        signed = SignedTrust.model_validate(rules.sign(document, *signers).model_dump())
        options["out"].write_bytes(canonical(signed))
        self.stdout.write(f"version {document.version}, until {_day(document.expires_at)}, in {options['out']}")
        self.stdout.write(f"on the server: manage.py trust publish {options['out'].name}")

    def _publish(self, options: dict[str, Any]) -> None:
        signed = _read(options["file"])
        trust.publish(signed)
        self.stdout.write(
            f"version {signed.document.version} is handed out, root key {fingerprint(signed.document.root)}"
        )
        trust.signer("manifest")  # says what is missing

    def _show(self, options: dict[str, Any]) -> None:
        if not trust.path().exists():
            raise UsageError(
                "there is no trust document yet; `serve` makes one for itself where none is published before"
            )
        document = trust.current().document
        if options["as_json"]:
            concerns = list(trust.concerns(time.time()))
            shown = document.model_dump(mode="json") | {"fingerprint": fingerprint(document.root), "concerns": concerns}
            self.stdout.write(json.dumps(shown))
            return
        self.stdout.write(f"version {document.version}, root key {fingerprint(document.root)}")
        self.stdout.write(f"issued {_day(document.issued_at)}, expires {_day(document.expires_at)}")
        for key in document.keys:
            place = "here" if key.id in keys.held(key.role) else "elsewhere"
            self.stdout.write(f"{key.role:8} {key.id}  {_day(key.not_before)} to {_day(key.not_after)}  ({place})")
        for concern in trust.concerns(time.time()):
            self.stderr.write(self.style.WARNING(f"WARNING: {concern}"))


def _read(file: Path) -> SignedTrust:
    """The last document of a chain, or the one in a file. Raises `UsageError`."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_CHAIN + 1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    try:
        if data.startswith(b'{"documents"'):
            return rules.read_chain(data).documents[-1]
        return parse(SignedTrust, data, limit=MAX_CHAIN)
    except MalformedInput as error:
        raise UsageError(f"{file} holds no trust document: {error}") from None


def _next(before: SignedTrust | None, root: bytes, options: dict[str, Any]) -> TrustDocument:
    """The document after `before`, as the options change it, not signed yet. Raises `UsageError`."""
    now = int(time.time())
    named = {} if before is None else {key.id: key for key in before.document.keys}
    if before is not None and before.document.root != root:
        raise UsageError(
            f"the document names the root key {fingerprint(before.document.root)}, not {fingerprint(root)}"
        )
    for identity in (*options["revoke"], *options["retire"]):
        if identity not in named:
            raise UsageError(f"the document names no key {identity}; it names {', '.join(named) or 'none'}")
    for identity in options["revoke"]:
        del named[identity]
    for identity in options["retire"]:
        until = min(named[identity].not_after, now + int(settings.LABAPEX.lease_limit_seconds))
        named[identity] = named[identity].model_copy(update={"not_after": until})
    for text in options["add"]:
        added = _added(text, now, now + int(options["key_days"] * DAY))
        named[added.id] = added
    kept = [key for key in named.values() if key.not_after > now]
    try:
        return TrustDocument(
            version=1 if before is None else before.document.version + 1,
            root=root,
            issued_at=now,
            expires_at=now + int(options["days"] * DAY),
            keys=tuple(kept),
        )
    except ValueError as error:
        raise UsageError(f"this is no trust document: {error}") from None


def _added(text: str, begins: int, ends: int) -> TrustedKey:
    role, _, encoded = text.partition(":")
    try:
        return TrustedKey.model_validate(
            {"role": role, "key": base64.b64decode(encoded, validate=True), "not_before": begins, "not_after": ends}
        )
    except (ValueError, binascii.Error):
        raise UsageError(
            f"'{text}' is no key; give what `manage.py trust key` printed, manifest:.. or release:.."
        ) from None


def _day(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
