"""Who you are to the platform: `login`, `logout`, `whoami`."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from labapex.cli.options import JsonOption, UrlOption, connect
from labapex.cli.output import credits, one_line, print_json, say
from labapex.client import credentials
from labapex.errors import LabApexError, NotLoggedIn, UsageError
from labapex.protocol.api import Me, NewToken, Scope, TokenView

_MAX_PASSWORD = 4096


def login(
    url: UrlOption = None,
    username: Annotated[
        str | None, typer.Option(help="Log in by password instead of the browser; it is asked for.")
    ] = None,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What the token may do; may be repeated. Default: everything.")
    ] = None,
) -> None:
    """Log this machine in: confirm a code in the portal. The token is kept here, readable by you alone."""
    client = connect(url)
    name, scopes = f"labapex on {platform.node()}"[:80], tuple(scope or Scope)
    organisation = os.environ.get(credentials.ORGANISATION_VARIABLE) or None
    if password_stdin and not username:
        raise UsageError("--password-stdin needs --username too")
    if username:
        new = client.login(username, _password(password_stdin), name, scopes, organisation)
    else:
        code = client.begin_login(name, scopes, organisation)
        say(f"Open {one_line(code.verification_uri_complete)}")
        say(f"and allow this login there if the page shows the code {one_line(code.user_code)}. Waiting ...")
        new = client.await_login(code)
    logins = credentials.load()
    key = credentials.key(client.url, new.organisation)
    entry = credentials.Login(username=new.username, organisation=new.organisation, token=new.token)
    credentials.save(credentials.Logins(current=key, platforms={**logins.platforms, key: entry}))
    say(f"Logged in to {client.url} as {_who(new)}; the token is kept in {credentials.path()}")


def _who(of: Me | NewToken) -> str:
    return one_line(of.username if of.organisation is None else f"{of.username} for {of.organisation}")


def _password(from_stdin: bool) -> str:
    if from_stdin:
        password = sys.stdin.readline(_MAX_PASSWORD + 2).rstrip("\r\n")
    else:
        password = str(typer.prompt("Password", hide_input=True, err=True))
    if not password or len(password) > _MAX_PASSWORD:
        raise UsageError("a password of 1 to 4096 characters is needed")
    return password


def logout(url: UrlOption = None) -> None:
    """Revoke this machine's token, and forget it."""
    logins = credentials.load()
    platform_url = credentials.normal_url(url) if url else credentials.address(logins.current or "")
    key = credentials.chosen_key(logins, platform_url, os.environ)
    if key not in logins.platforms:
        raise NotLoggedIn(f"there is no stored login{f' for {key}' if key else ''}")
    revoked = _revoke(platform_url, logins.platforms[key].token)
    rest = {kept: entry for kept, entry in logins.platforms.items() if kept != key}
    credentials.save(credentials.Logins(current=next(iter(rest), None), platforms=rest))
    say(f"Forgot the token for {key}; {revoked}")


def _revoke(address: str, token: str) -> str:
    """What became of the token at the platform, in words."""
    try:
        with connect(address, token) as client:
            client.logout()
    except NotLoggedIn:
        return "it opened nothing any more"
    except LabApexError as error:
        return f"it could not be revoked ({error}): do so on the portal's page Tokens"
    return "it opens nothing any more"


def whoami(url: UrlOption = None, json: JsonOption = False) -> None:
    """Your name, your balance, and what the token may do."""
    client = connect(url)
    me = client.me()
    if json:
        print_json(me)
    else:
        typer.echo(f"{_who(me)} at {client.url}")
        if me.available is not None and me.held is not None:
            typer.echo(f"{credits(me.available)} credits available, {credits(me.held)} held")
        typer.echo(f"token {_described(me.token)}")


def _described(token: TokenView) -> str:
    until = "without an end" if token.expires_at is None else f"until {_day(token.expires_at)}"
    scopes = "everything" if set(token.scopes) == set(Scope) else ", ".join(token.scopes)
    return one_line(f"'{token.name}' ({token.prefix}…), {until}: {scopes}")


def _day(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
    except (OverflowError, ValueError, OSError):
        return f"{at:g}"
