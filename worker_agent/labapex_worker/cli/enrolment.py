"""`enrol`: make this host a worker of a platform."""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from labapex.cli.output import say
from labapex.errors import UsageError
from labapex.protocol.api import EnrolReply, EnrolRequest
from labapex.protocol.canonical import explain
from labapex.protocol.trust import MAX_CHAIN
from labapex.trust import fingerprint, read_chain
from labapex_worker import trust
from labapex_worker.cli.options import HomeOption, RootKeyOption
from labapex_worker.cli.place import home_of
from labapex_worker.cli.platform import post, request
from labapex_worker.config import Config, Home, own_site_packages, platform_url
from labapex_worker.identity import Identity


def enrol(
    code: Annotated[str, typer.Argument(help="The code from the portal; it works once.")],
    platform: Annotated[str, typer.Option(help="Address of the platform.")],
    name: Annotated[str, typer.Option(help="How the worker is called in the portal.")] = "",
    site_packages: Annotated[
        list[Path] | None, typer.Option(help="Where torch is installed.  [default: this Python's]", show_default=False)
    ] = None,
    read_only: Annotated[list[Path] | None, typer.Option(help="Further paths that jobs may read.")] = None,
    root_key: RootKeyOption = "",
    insecure: Annotated[bool, typer.Option(help="Allow http to another machine.")] = False,
    home: HomeOption = None,
) -> None:
    """Make this host a worker of a platform. The key is made here and stays here."""
    made = register(
        home_of(home),
        code,
        platform,
        name,
        root_key=root_key,
        site_packages=site_packages,
        read_only=read_only,
        insecure=insecure,
    )
    say(f"Enrolled as '{made.name}' ({made.worker}). Next: labapex-worker check, then labapex-worker run")


def register(
    home: Home,
    code: str,
    platform: str,
    name: str = "",
    *,
    root_key: str = "",
    site_packages: list[Path] | None = None,
    read_only: list[Path] | None = None,
    insecure: bool = False,
) -> Config:
    """Make a key, pin the platform's, exchange the code for an identity, and keep all in the worker's folder."""
    url = platform_url(platform, insecure=insecure)
    if home.config.exists():
        raise UsageError(f"a worker is enrolled in {home.path} already; choose another --home, or remove that folder")
    home.create()
    key = Identity.create(home.key)
    name = name or os.uname().nodename[:80]
    try:
        asked = EnrolRequest(code=code, name=name, public_key=key.public_key)
    except ValidationError as error:
        raise UsageError(explain(error)) from None
    memory = _pin(url, root_key)
    reply = post(url, "enrol", asked, EnrolReply, limit=64 << 10)
    config = Config(
        platform=url,
        worker=reply.worker,
        name=name,
        root=memory.pinned,
        site_packages=tuple(path.absolute() for path in site_packages) if site_packages else own_site_packages(),
        read_only=tuple(path.absolute() for path in read_only or ()),
    )
    trust.save(home.trust, memory)
    home.save(config)
    hint = "" if root_key else "; compare it with the one that the portal shows"
    say(f"Platform's root key: {fingerprint(memory.pinned)}{hint}")
    return config


def _pin(url: str, wanted: str) -> trust.Memory:
    """The root key that the platform shows, before the code is used up. Raises `UsageError` where it is not the wanted one."""
    chain = read_chain(request("GET", url + trust.PATH, limit=MAX_CHAIN))
    root = chain.documents[-1].document.root
    if wanted and not hmac.compare_digest(fingerprint(root).encode(), wanted.strip().lower().encode()):
        raise UsageError(
            f"the platform at {url} shows the root key {fingerprint(root)}, not {wanted}: this is another platform, or"
            " somebody is in between; nothing was enrolled"
        )
    return trust.pin(root, chain)
