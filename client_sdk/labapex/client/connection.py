"""HTTP as the client needs it: bounded replies, retries of what may be repeated, problems turned into our errors."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx

from labapex.client.credentials import Token
from labapex.errors import (
    LabApexError,
    MalformedInput,
    MissingScope,
    NotEnoughCredit,
    NotFinished,
    NotFound,
    NotLoggedIn,
    PlatformUnreachable,
    UsageError,
)
from labapex.protocol.api import Problem
from labapex.protocol.canonical import parse

MAX_REPLY = 64 << 20
ATTEMPTS = 5
_FIRST_DELAY = 0.25
_LONGEST_DELAY = 60.0
_BUSY = frozenset({429, 502, 503, 504})
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout)

_BY_CODE: dict[str, type[LabApexError]] = {
    "not-found": NotFound,
    "not-enough-credit": NotEnoughCredit,
    "invalid": UsageError,
    "too-large": UsageError,
    "not-finished": NotFinished,
    "missing-scope": MissingScope,
}
_BY_STATUS: dict[int, type[LabApexError]] = {
    400: UsageError,
    402: NotEnoughCredit,
    404: NotFound,
    410: NotFound,
    413: UsageError,
}


T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: httpx.Headers
    body: bytes


@dataclass(frozen=True)
class Request:
    """What is asked. `content` makes the body, anew for each attempt; an `anonymous` one carries no token."""

    method: str
    path: str
    content: Callable[[], bytes | Iterator[bytes]] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] | None = None
    anonymous: bool = False


class Connection:
    """One platform, one token. `sleep`, `jitter` (a number in [0, 1)) and `now` are parameters for tests."""

    def __init__(
        self,
        url: str,
        token: Token | None,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.url = url
        self.token = token
        self.sleep = sleep
        self._jitter = jitter
        self._now = now
        # Redirects are not followed: they would carry the token to an address that nobody chose.
        self._http = httpx.Client(
            transport=transport, timeout=httpx.Timeout(30, connect=10, read=120), follow_redirects=False
        )

    def close(self) -> None:
        self._http.close()

    def call(self, asked: Request, *, repeatable: bool = True) -> Reply:
        """Send a request and read the whole reply; a status from 300 on raises the error that it stands for.

        A request that is not `repeatable` is sent again only where it never left.
        """
        return self.persist(lambda: self.send(asked), repeatable)

    def send(self, asked: Request, *, also: frozenset[int] = frozenset()) -> Reply:
        """One attempt, for use within `persist`. A status in `also` is an answer, not an error."""
        with self._sent(asked, also) as response:
            return Reply(response.status_code, response.headers, _read(response))

    def skew(self, headers: httpx.Headers) -> float | None:
        """Seconds by which the other clock is ahead, by the Date of its answer; None where there is none."""
        with contextlib.suppress(ValueError):
            return parsedate_to_datetime(headers.get("Date", "")).timestamp() - self._now()
        return None

    def download(self, path: str, receive: Callable[[httpx.Headers, Iterator[bytes]], None]) -> None:
        """GET a body that is too large for memory; `receive` starts anew when the connection broke in between."""

        def once() -> None:
            with self._sent(Request("GET", path)) as response:
                receive(response.headers, response.iter_bytes(1 << 20))

        self.persist(once, True)

    @contextlib.contextmanager
    def _sent(self, asked: Request, also: frozenset[int] = frozenset()) -> Iterator[httpx.Response]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", **asked.headers}
        if not asked.anonymous:
            if self.token is None:
                raise NotLoggedIn(f"you are not logged in to {self.url}; run `labapex login --url {self.url}`")
            headers["Authorization"] = f"Bearer {self.token.text}"
        body = asked.content() if asked.content else None
        request = self._http.build_request(
            asked.method, self.url + asked.path, content=body, headers=headers, params=asked.params
        )
        response = self._http.send(request, stream=True)
        try:
            if response.status_code >= 300 and response.status_code not in also:
                raise self._problem(response, _read(response))
            yield response
        finally:
            response.close()

    def persist(self, attempt: Callable[[], T], repeatable: bool = True) -> T:
        """Repeat an attempt that failed on the way, with exponential back-off and jitter; the last failure raises.

        A platform that names a time in Retry-After is asked again after it, unless that is more than a minute."""
        for number in range(ATTEMPTS):
            last = number == ATTEMPTS - 1
            wait = _FIRST_DELAY * 2**number * (0.5 + self._jitter() / 2)
            try:
                return attempt()
            except _Busy as busy:
                if last or not repeatable or (busy.seconds or 0) > _LONGEST_DELAY:
                    raise busy.error from None
                wait = busy.seconds or wait
            except httpx.TransportError as error:
                if last or not (repeatable or isinstance(error, _NOT_SENT)):
                    said = str(error) or type(error).__name__
                    raise PlatformUnreachable(
                        f"{self.url} does not answer ({said}); is the address right and the platform up?"
                    ) from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise MalformedInput(f"{self.url} sent something that is not HTTP as it should be: {error}") from None
            self.sleep(min(_LONGEST_DELAY, wait))
        raise AssertionError("the last attempt returns or raises")

    def _problem(self, response: httpx.Response, body: bytes) -> LabApexError | _Busy:
        status = response.status_code
        try:
            problem = parse(Problem, body, limit=MAX_REPLY) if body else None
        except MalformedInput:
            problem = None  # a proxy's page, not the platform's words
        code = problem.code if problem else ""
        detail = problem.detail if problem else f"the platform answered {status}"
        error: LabApexError
        if code == "not-logged-in" or status == 401:
            error = self._not_logged_in(problem)
        elif code == "digest-mismatch":
            error = MalformedInput(f"{detail}; the file changed while it was being sent, run the command again")
        elif kind := _BY_CODE.get(code) or _BY_STATUS.get(status):
            error = kind(detail + _fields(problem))
        elif 300 <= status < 400:
            error = UsageError(f"{self.url} redirects to {response.headers.get('location', '?')}; use that address")
        elif status >= 500:
            error = PlatformUnreachable(detail)
        else:
            error = LabApexError(detail)
        error.code = code
        return _Busy(error, self._retry_after(response)) if status in _BUSY else error

    def _retry_after(self, response: httpx.Response) -> float | None:
        """Seconds, of either form that RFC 9110, 10.2.3 allows; None where there is none."""
        text = response.headers.get("Retry-After", "")
        if text.isascii() and text.isdecimal():
            return float(text[:9])
        with contextlib.suppress(ValueError):
            return max(0.0, parsedate_to_datetime(text).timestamp() - self._now())
        return None

    def _not_logged_in(self, problem: Problem | None) -> NotLoggedIn:
        if self.token is None:  # the answer to a login
            return NotLoggedIn(problem.detail if problem else "wrong user name or password")
        said = problem.detail if problem else "run `labapex login`"
        return NotLoggedIn(f"{self.url} does not accept the token {self.token.hint()}: {said}")


class _Busy(Exception):
    """The platform asks to come again. Carries the error to raise once patience is at its end."""

    def __init__(self, error: LabApexError, seconds: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.seconds = seconds


def _read(response: httpx.Response) -> bytes:
    """The body of at most `MAX_REPLY` bytes; raises `MalformedInput`."""
    body = bytearray()
    for chunk in response.iter_bytes(1 << 16):
        body += chunk
        if len(body) > MAX_REPLY:
            raise MalformedInput(f"the platform's reply is longer than {MAX_REPLY} bytes")
    return bytes(body)


def _fields(problem: Problem | None) -> str:
    """The fields that a refusal names, on the same line."""
    if not problem or not problem.errors:
        return ""
    unsaid = {name: said for name, said in sorted(problem.errors.items()) if said not in problem.detail}
    return " (" + "; ".join(f"{name}: {said}" for name, said in unsaid.items()) + ")" if unsaid else ""
