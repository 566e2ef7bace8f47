"""Who you are to the platform: `login`, `logout`, `whoami`."""

from __future__ import annotations

import platform
import sys
from typing import Annotated

import typer

from labapex.cli.options import JsonOption, UrlOption, connect
from labapex.cli.output import credits, print_json, say
from labapex.client import credentials
from labapex.errors import NotLoggedIn, UsageError

_MAX_PASSWORD = 4096


def login(
    url: UrlOption = None,
    username: Annotated[str | None, typer.Option(help="Your user name; asked for where it is missing.")] = None,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
) -> None:
    """Make a token with your password and keep it on this machine, readable by you alone."""
    client = connect(url)
    if not username:
        if password_stdin:
            raise UsageError("--password-stdin needs --username too")
        username = str(typer.prompt("Username", err=True))
    if password_stdin:
        password = sys.stdin.readline(_MAX_PASSWORD + 2).rstrip("\r\n")
    else:
        password = str(typer.prompt("Password", hide_input=True, err=True))
    if not password or len(password) > _MAX_PASSWORD:
        raise UsageError("a password of 1 to 4096 characters is needed")
    new = client.login(username, password, f"labapex on {platform.node()}"[:80])
    logins = credentials.load()
    entry = credentials.Login(username=username, token=new.token)
    credentials.save(credentials.Logins(current=client.url, platforms={**logins.platforms, client.url: entry}))
    say(f"Logged in to {client.url} as {username}; the token is kept in {credentials.path()}")


def logout(url: UrlOption = None) -> None:
    """Forget this machine's token. It stays valid elsewhere until it is revoked on the platform."""
    logins = credentials.load()
    address = credentials.normal_url(url) if url else logins.current
    if address is None or address not in logins.platforms:
        raise NotLoggedIn(f"there is no stored login{f' for {address}' if address else ''}")
    rest = {platform: entry for platform, entry in logins.platforms.items() if platform != address}
    credentials.save(credentials.Logins(current=next(iter(rest), None), platforms=rest))
    say(f"Forgot the token for {address}. To make it void everywhere, revoke it on the platform.")


def whoami(url: UrlOption = None, json: JsonOption = False) -> None:
    """Your name and your balance."""
    client = connect(url)
    me = client.me()
    if json:
        print_json(me)
    else:
        typer.echo(f"{me.username} at {client.url}")
        typer.echo(f"{credits(me.available)} credits available, {credits(me.held)} held")
