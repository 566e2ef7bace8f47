from __future__ import annotations

from pathlib import Path

import pytest
from tests.labapex.memory_platform import TOKEN, URL, MemoryPlatform


@pytest.fixture
def platform() -> MemoryPlatform:
    return MemoryPlatform()


@pytest.fixture
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with nothing stored and nothing in the environment."""
    for name in ("LABAPEX_URL", "LABAPEX_TOKEN", "LABAPEX_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def logged_in(user_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABAPEX_URL", URL)
    monkeypatch.setenv("LABAPEX_TOKEN", TOKEN)
    return user_home


@pytest.fixture
def job_folder(tmp_path: Path) -> Path:
    """A job's folder, as people have it."""
    root = tmp_path / "job"
    (root / "data").mkdir(parents=True)
    (root / "train.py").write_text("print('hello')\n")
    (root / "helper.py").write_text("x = 1\n")
    (root / "data" / "digits.npz").write_bytes(b"\x00\x01" * 5000)
    (root / "labapex.yaml").write_text(
        'name: digits\nscript: train.py\ndata: data\nargs: ["--epochs", "{epochs}"]\nepochs: 3\nbudget: 10\n'
    )
    return root
