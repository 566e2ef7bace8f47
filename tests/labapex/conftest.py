from __future__ import annotations

from pathlib import Path

import pytest
from tests.labapex.memory_platform import TOKEN, URL, MemoryPlatform
from tests.labapex.proof.forge import write_job

from labapex import sandbox


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


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `job/`, and with the `proof/` that was recorded from it once: 2 epochs of 5, k = 2. Not to be changed."""
    from labapex.cli import proofs

    root = tmp_path_factory.mktemp("recorded")
    script = write_job(root / "job")
    with pytest.MonkeyPatch.context() as patch:
        if sandbox.available() is not None:
            patch.setenv(sandbox.UNCONFINED_SETTING, "1")
        proofs.record(script, root / "proof", every=2, seed="a test", epochs=2)
    return root
