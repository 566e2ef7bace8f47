"""Which platform is spoken to, and with which token. A token goes to the platform that it was made for alone."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field

from labapex.errors import MalformedInput, NotLoggedIn, UsageError
from labapex.protocol.canonical import Message, parse

URL_VARIABLE = "LABAPEX_URL"
ORGANISATION_VARIABLE = "LABAPEX_ORG"
TOKEN_VARIABLE = "LABAPEX_TOKEN"  # noqa: S105 - the variable's name
_MAX_FILE = 1 << 20
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Token:
    """A token and where it came from, so that a refusal can say which one was sent. Its text is never shown whole."""

    text: str = field(repr=False)
    source: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\x21-\x7e]{1,500}", self.text):
            raise NotLoggedIn(f"the token from {self.source} is not one: it is empty, too long or has odd characters")

    def hint(self) -> str:
        return f"'{self.text[: min(6, len(self.text) // 4)]}…' from {self.source}"


class Login(Message):
    username: str
    organisation: str | None = None  # for which the token acts
    token: str = Field(repr=False)


class Logins(Message):
    """The file that `labapex login` writes: one login for each platform and whom one acts for there (`key`), and the last one."""

    current: str | None = None  # a key
    platforms: dict[str, Login] = Field(default_factory=dict)


def key(url: str, organisation: str | None) -> str:
    """What a login is kept under. No normal address has a fragment, so none is taken for another."""
    return f"{url}#{organisation}" if organisation else url


def address(key: str) -> str:
    """The platform of a kept login."""
    return key.partition("#")[0]


def path() -> Path:
    """Where logins are kept; `labapex login` creates it with mode 0600."""
    return platformdirs.user_config_path("labapex") / "logins.json"


def normal_url(url: str) -> str:
    """`https://host[:port][/path]` without a trailing slash; raises `UsageError`."""
    try:
        parts = urlsplit(url.strip())
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or parts.username is not None or parts.query or parts.fragment:
        raise UsageError("the platform's address must look like https://apex.example.org")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def is_private(url: str) -> bool:
    """Whether nobody on the way can read what is sent to this address."""
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in _LOOPBACK


def load(file: Path | None = None) -> Logins:
    """The stored logins; none where there is no file. Raises `UsageError` for a file that is not one."""
    file = file or path()
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_FILE + 1)
    except FileNotFoundError:
        return Logins()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    try:
        return parse(Logins, data, limit=_MAX_FILE)
    except MalformedInput:
        raise UsageError(f"{file} is damaged; delete it and run `labapex login`") from None


def save(logins: Logins, file: Path | None = None) -> None:
    """Replace the stored logins at once; the file is readable by its owner alone."""
    file = file or path()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=file.parent)  # created with mode 0600
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(logins.model_dump_json(indent=2))
        Path(name).replace(file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def resolve(url: str | None, token: str | None, environment: Mapping[str, str]) -> tuple[str, Token | None]:
    """The platform and the token: what is given, else the environment's, else the stored login of that platform: for whom
    `LABAPEX_ORG` names (empty: yourself), else as it was used last."""
    logins = load()
    chosen = url or environment.get(URL_VARIABLE) or (address(logins.current) if logins.current else None)
    if not chosen:
        raise NotLoggedIn(f"no platform is known; run `labapex login --url https://…` or set {URL_VARIABLE}")
    platform = normal_url(chosen)
    if token:
        return platform, Token(token, "the program's own argument")
    if environment.get(TOKEN_VARIABLE):
        return platform, Token(environment[TOKEN_VARIABLE], f"the environment variable {TOKEN_VARIABLE}")
    login = logins.platforms.get(chosen_key(logins, platform, environment))
    return platform, Token(login.token, str(path())) if login else None


def chosen_key(logins: Logins, platform: str, environment: Mapping[str, str]) -> str:
    """Which of the logins of a platform is meant."""
    if ORGANISATION_VARIABLE in environment:
        return key(platform, environment[ORGANISATION_VARIABLE])
    if logins.current and address(logins.current) == platform:
        return logins.current
    return platform
