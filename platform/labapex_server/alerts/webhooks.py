"""One signed POST to an address that a user chose, and to nothing behind our own walls.

The name is resolved once, each of its addresses must be of the public internet, and the connection goes to the very address that
was checked: a name that changes its mind in between leads nowhere. Redirects are not followed. Time and size are bounded."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import socket
import ssl
import threading
from urllib.parse import urlsplit

from labapex.errors import LabApexError

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 10.0
MAX_ANSWER = 4096


class NotDelivered(LabApexError):
    """The message says why."""


def signature(secret: bytes, at: int, body: bytes) -> str:
    """The header `Labapex-Signature`: HMAC-SHA256 over `<Unix time>.<body>`."""
    return f"t={at},v1={hmac.new(secret, b'%d.' % at + body, hashlib.sha256).hexdigest()}"


def post(url: str, body: bytes, headers: dict[str, str], *, insecure: bool = False) -> int:
    """The status of the answer, if it is 2xx. Raises `NotDelivered`. `insecure`: to any address, and without TLS too."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    if not secure and not insecure:
        raise NotDelivered("only https is called")
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    address = resolve(host, port, insecure=insecure)
    line = _Line(host, port, address, secure=secure)
    timer = threading.Timer(TOTAL_SECONDS, line.cut)
    timer.daemon = True
    timer.start()
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        line.request("POST", path, body=body, headers=headers)
        answer = line.getresponse()
        answer.read(MAX_ANSWER)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotDelivered(f"{host} did not take it: {type(error).__name__}") from None
    finally:
        timer.cancel()
        line.close()
    if not 200 <= answer.status < 300:
        raise NotDelivered(
            f"{host} answered {answer.status}" + (": redirects are not followed" if answer.status // 100 == 3 else "")
        )
    return answer.status


def resolve(host: str, port: int, *, insecure: bool = False) -> str:
    """The address to connect to. Raises `NotDelivered` for a name of which any address is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise NotDelivered(f"the name {host} leads nowhere") from None
    addresses = [str(each[4][0]) for each in found]
    if not insecure and not all(public(address) for address in addresses):
        raise NotDelivered(f"{host} is not on the public internet")
    return addresses[0]


def public(address: str) -> bool:
    """Whether an address is one of the public internet, and no other way to write one that is not."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return public(str(ip.ipv4_mapped))
        if ip.sixtofour is not None or ip.teredo is not None or ip in _TRANSLATED:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")


class _Line(http.client.HTTPConnection):
    """A connection to a name at an address that is known already."""

    def __init__(self, host: str, port: int, address: str, *, secure: bool) -> None:
        super().__init__(host, port, timeout=CONNECT_SECONDS)
        self._address, self._secure = address, secure
        if secure and port == 443:
            self.default_port = 443  # which a Host header leaves out

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), timeout=self.timeout)
        if self._secure:  # a handshake that never ends can be cut too
            tls = ssl.create_default_context()
            self.sock = tls.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock.do_handshake()

    def cut(self) -> None:
        """From the timer: whoever reads or writes is told that it is over."""
        if self.sock is not None:
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it is closed already
