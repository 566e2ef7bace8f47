from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from labapex import landlock, sandbox
from labapex.errors import SandboxUnavailable
from labapex.sandbox import Confinement

narrowed = pytest.mark.skipif(landlock.lacking() is not None, reason=str(landlock.lacking()))
SOURCE = Path(landlock.__file__).parents[1]


def restricted(code: str, *writable: Path) -> Any:
    """The JSON that a program prints which first gave up all but the folders `writable`."""
    start = f"import sys; sys.path.insert(0, {str(SOURCE)!r})\nfrom pathlib import Path\nfrom labapex import landlock\n"
    names = [str(path) for path in writable]
    give_up = f"import json, os\nlacking = landlock.restrict([Path(name) for name in {names!r}])\n"
    tell = textwrap.dedent("""
        def refused(attempt):
            try: attempt()
            except OSError: return True
            return False
    """)
    line = [sys.executable, "-I", "-c", start + give_up + tell + textwrap.dedent(code)]
    return json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine").write_text("x")
    (tmp_path / "other").write_text("precious")
    return tmp_path / "own"


@narrowed
def test_a_process_writes_in_its_own_folders_only_whatever_way_it_takes(own: Path) -> None:
    code = f"""
    own, other = Path({str(own)!r}), Path({str(own.parent / "other")!r})
    (own / "made").write_text("x"); (own / "mine").unlink()
    print(json.dumps([refused(attempt) for attempt in (
        lambda: other.write_text("x"), lambda: other.unlink(), lambda: os.truncate(other, 0),
        lambda: (own / "made").rename(other), lambda: other.rename(own / "taken"), lambda: (own.parent / "new").mkdir(),
        lambda: (own.parent / "link").symlink_to("x"), lambda: (own / "hard").hardlink_to(other),
    )] + [other.read_text()]))
    """
    assert restricted(code, own) == [True] * 8 + ["precious"]


@narrowed
def test_what_it_starts_is_narrowed_too_and_cannot_widen_itself(own: Path) -> None:
    code = f"""
    landlock.restrict([Path("/")])
    print(json.dumps(os.spawnlp(os.P_WAIT, "sh", "sh", "-c", "echo x > {own.parent}/other") != 0))
    """
    assert restricted(code, own) is True
    assert (own.parent / "other").read_text() == "precious"


@narrowed
def test_it_neither_signals_nor_looks_into_processes_outside_and_does_both_inside(own: Path) -> None:
    code = """
    import signal, subprocess
    child = subprocess.Popen(["sleep", "60"])
    child.send_signal(signal.SIGTERM)
    outside = [lambda: os.kill(os.getppid(), 0), lambda: os.readlink(f"/proc/{os.getppid()}/cwd")]
    print(json.dumps([child.wait(), *map(refused, outside)]))
    """
    assert restricted(code, own) == [-15, True, True]


@narrowed
def test_a_folder_that_is_named_below_the_shared_one_closes_the_rest_of_that(own: Path) -> None:
    code = "print(json.dumps(refused(lambda: Path('/tmp/labapex-test-unwritten').touch())))"
    assert restricted(code, own) is own.is_relative_to("/tmp")
    assert restricted(code) is False
    Path("/tmp/labapex-test-unwritten").unlink()


@pytest.mark.parametrize(("version", "said"), [(0, "can overwrite"), (5, "can signal")])
def test_what_a_kernel_lacks_is_said(monkeypatch: pytest.MonkeyPatch, version: int, said: str) -> None:
    monkeypatch.setattr(landlock, "version", lambda: version)
    assert said in (landlock.lacking() or "")


def test_foreign_code_is_refused_without_landlock_unless_the_setting_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if (missing := sandbox.available()) is not None:
        pytest.skip(missing)
    monkeypatch.setattr(landlock, "version", lambda: 0)
    sandbox.available.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match=sandbox.LANDLOCK_SETTING):
            sandbox.popen(["true"], Confinement(folder=tmp_path))
        sandbox.available.cache_clear()
        monkeypatch.setenv(sandbox.LANDLOCK_SETTING, "1")
        process = sandbox.popen(["true"], Confinement(folder=tmp_path, environment={"PATH": "/usr/bin:/bin"}))
        assert process.wait() == 0
        assert "can overwrite" in caplog.text
    finally:
        sandbox.available.cache_clear()
