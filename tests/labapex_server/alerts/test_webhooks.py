"""A webhook reaches its owner's server and nothing behind our own walls, and can neither hold us up nor fill us up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from labapex_server.alerts import webhooks
from labapex_server.alerts.webhooks import NotDelivered, post, public, resolve

PRIVATE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1",
    "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "64:ff9b::a00:1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_none(address: str) -> None:
    assert not public(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8"]
)
def test_a_public_address_is_one(address: str) -> None:
    assert public(address)


@given(
    st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(network="fd00::/8") | st.ip_addresses(network="127.0.0.0/8")
)
def test_no_private_address_is_public_however_it_is_written(address: Any) -> None:
    assert not public(str(address))
    if address.version == 4:
        assert not public(f"::ffff:{address}")
        assert not public(f"64:ff9b::{address}")


def answers(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def resolved(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


def test_a_name_of_which_one_address_is_private_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "93.184.216.34", "127.0.0.1")
    with pytest.raises(NotDelivered, match="not on the public internet"):
        post("https://example.org/", b"{}", {})


def test_a_name_is_resolved_once_and_the_checked_address_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def connect(address: Any, **_: Any) -> Any:
        called.append(address)
        raise ConnectionRefusedError

    answers(monkeypatch, "93.184.216.34")
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(NotDelivered, match="did not take it"):
        post("https://example.org:8443/x", b"{}", {})
    assert called == [("93.184.216.34", 8443)]


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f000001", "2130706433", "[::1]"])
def test_no_spelling_of_this_machine_is_called(host: str) -> None:
    with pytest.raises(NotDelivered):
        post(f"https://{host}/", b"{}", {})


def test_without_tls_nothing_is_called() -> None:
    with pytest.raises(NotDelivered, match="only https"):
        post("http://example.org/", b"{}", {})


def test_a_name_that_leads_nowhere_says_so() -> None:
    with pytest.raises(NotDelivered, match="leads nowhere"):
        resolve("no-such-name.invalid", 443)


@pytest.fixture
def dripping() -> Iterator[str]:
    """A server that answers a byte at a time and never ends."""
    listening = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip() -> None:
        line, _ = listening.accept()
        with line:
            while not over.wait(0.02):
                try:
                    line.send(b"H")
                except OSError:
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    over.set()
    thread.join()
    listening.close()


def test_an_answer_that_never_ends_is_cut_off(dripping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "TOTAL_SECONDS", 0.2)
    with pytest.raises(NotDelivered):
        post(dripping, b"{}", {}, insecure=True)
