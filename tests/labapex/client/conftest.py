from __future__ import annotations

from pathlib import Path

import pytest
from tests.labapex.memory_platform import TOKEN, URL, MemoryPlatform

from labapex.client import Client


@pytest.fixture
def sleeps() -> list[float]:
    return []


@pytest.fixture
def client(platform: MemoryPlatform, user_home: Path, sleeps: list[float]) -> Client:
    return Client(URL, TOKEN, transport=platform.transport, sleep=sleeps.append, jitter=lambda: 1.0)
