from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapex.errors import UsageError
from labapex_worker import devices
from labapex_worker.config import Config, Home, platform_url
from labapex_worker.connection import LONGEST_PAUSE, backoff, gateway
from labapex_worker.identity import Identity


@pytest.mark.parametrize(
    "url", ["https://apex.example.org/", "http://127.0.0.1:8000", "http://[::1]:1", "http://localhost"]
)
def test_a_platforms_address_is_accepted(url: str) -> None:
    assert platform_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    ["apex", "ftp://x", "http://10.0.0.1", "https://a:b@x", "https://x/?q", "https://", "http://localhost.evil.org"],
)
def test_an_address_that_is_none_or_would_send_tokens_in_the_clear_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        platform_url(url)


def test_a_trusted_network_can_be_told_apart() -> None:
    assert platform_url("http://platform:8000", insecure=True) == "http://platform:8000"


def test_the_gateway_is_as_encrypted_as_the_platform() -> None:
    assert gateway("https://apex.example.org") == "wss://apex.example.org/gateway/worker/"
    assert gateway("http://127.0.0.1:8000") == "ws://127.0.0.1:8000/gateway/worker/"


@given(st.integers(0, 10_000))
def test_pauses_grow_to_a_limit_and_never_vanish(attempt: int) -> None:
    assert 0.25 <= backoff(attempt) <= LONGEST_PAUSE
    assert 0.25 <= backoff(attempt, 3.0) <= 3.0


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    home = Home(tmp_path / "w")
    home.create()
    config = Config(platform="https://x", worker=uuid4(), name="box", root=bytes(32), site_packages=(Path("/a"),))
    home.save(config)
    assert home.load() == config
    assert home.config.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["", "{}", '{"platform": 1}', "[" * 1000])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    home.config.write_text(text)
    with pytest.raises(UsageError, match=r"config\.json"):
        home.load()


def test_a_key_is_made_once(tmp_path: Path) -> None:
    first = Identity.create(tmp_path / "key")
    assert Identity.create(tmp_path / "key").public_key == first.public_key


def test_a_damaged_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "key").touch(mode=0o600)
    with pytest.raises(UsageError, match="damaged"):
        Identity.load(tmp_path / "key")


def test_every_host_has_a_device_and_calls_it_what_it_is() -> None:
    found = devices.find()
    assert found
    assert {device.kind for device in found} == ({"cuda"} if devices.gpus() else {"cpu"})
    assert all(len(str(device)) <= 200 for device in found)
