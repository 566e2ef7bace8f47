from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from labapex import sandbox
from labapex.errors import SandboxUnavailable
from labapex.sandbox import Confinement

missing = sandbox.available()
confined = pytest.mark.skipif(missing is not None, reason=f"no sandbox can be had: {missing}")

PATH = {"PATH": "/usr/bin:/bin"}


def run(argv: list[str], confinement: Confinement) -> tuple[int, str, str]:
    process = sandbox.popen(argv, confinement, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.decode(), err.decode()


def probe(code: str, confinement: Confinement) -> object:
    """The JSON that a Python program prints in the sandbox."""
    code_, out, err = run([sys.executable, "-I", "-c", textwrap.dedent(code)], confinement)
    assert code_ == 0, err
    return json.loads(out)


@pytest.fixture
def box(tmp_path: Path) -> Confinement:
    folder = tmp_path / "job"
    folder.mkdir(mode=0o700)
    return Confinement(folder=folder, read_only=sandbox.python_paths(), environment=PATH)


@confined
def test_the_folder_can_be_written_and_what_is_written_is_there_afterwards(box: Confinement) -> None:
    (box.folder / "given").write_text("in")
    code, _, err = run(["sh", "-c", "cat given > made"], box)
    assert (code, err) == (0, "")
    assert (box.folder / "made").read_text() == "in"


@confined
def test_the_network_is_out_of_reach_even_on_the_own_host(box: Confinement) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen = probe(
            f"""
            import json, socket
            def refused(address):
                try: socket.create_connection(address, timeout=5)
                except OSError: return True
                return False
            names = [name for _, name in socket.if_nameindex()]
            here, metadata = ("127.0.0.1", {server.getsockname()[1]}), ("169.254.169.254", 80)
            print(json.dumps([refused(here), refused(metadata), names]))
            """,
            box,
        )
    assert seen == [True, True, ["lo"]]


@confined
def test_files_of_the_host_are_invisible(box: Confinement, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the host's")
    seen = probe(
        f"""
        import json, os
        paths = ["/etc/passwd", "/etc/shadow", "/home", "/var", "/run", "/boot", {str(tmp_path / "secret")!r}]
        print(json.dumps([path for path in paths if os.path.exists(path)]))
        """,
        box,
    )
    assert seen == []


@confined
@pytest.mark.parametrize("place", ["/", "/usr", "/etc", "/sys", "/proc/sys/kernel/hostname"])
def test_nothing_outside_the_folder_can_be_written(box: Confinement, place: str) -> None:
    target = place if place.startswith("/proc") else f"{place.rstrip('/')}/x"
    code, _, _ = run(["sh", "-c", f"echo x > {target}"], box)
    assert code != 0


@confined
def test_what_is_read_only_cannot_be_written_or_replaced(box: Confinement) -> None:
    program = box.folder / "program"
    program.write_text("genuine")
    program.chmod(0o644)
    _, out, _ = run(
        ["sh", "-c", "echo forged > program; rm -f program; mv program other; cat program"],
        Confinement(folder=box.folder, read_only=(program,), environment=PATH),
    )
    assert out == "genuine"
    assert program.read_text() == "genuine"


@confined
def test_the_environment_is_what_was_given_and_nothing_more(box: Confinement, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the host's")
    code, out, _ = run(["env", "-0"], Confinement(folder=box.folder, environment={**PATH, "GIVEN": "1"}))
    assert code == 0
    assert {line.partition("=")[0] for line in out.split("\0") if line} == {"PATH", "GIVEN", "PWD"}


@confined
def test_other_processes_are_invisible_and_there_are_no_capabilities(box: Confinement) -> None:
    seen = probe(
        """
        import json, os
        status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        print(json.dumps([os.getuid() != 0, status["CapEff"], status["CapBnd"], status["NoNewPrivs"], max(pids) < 20]))
        """,
        box,
    )
    assert seen == [True, "0" * 16, "0" * 16, "1", True]


@confined
def test_no_further_user_namespace_can_be_made_inside(box: Confinement) -> None:
    code, _, _ = run(["unshare", "--user", "--map-root-user", "true"], box)
    assert code != 0


@confined
def test_a_unix_socket_of_a_read_only_folder_can_be_reached(box: Confinement, tmp_path: Path) -> None:
    door = tmp_path / "door"
    door.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(door / "s"))
        (door / "s").chmod(0o666)
        server.listen()
        server.settimeout(30)
        process = sandbox.popen(
            [sys.executable, "-I", "-c", f"import socket; socket.socket(socket.AF_UNIX).connect({str(door / 's')!r})"],
            Confinement(folder=box.folder, read_only=(*box.read_only, door), environment=PATH),
        )
        connection, _ = server.accept()
        connection.close()
    assert process.wait(30) == 0


@confined
def test_torch_can_be_imported_from_read_only_site_packages(box: Confinement) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    seen = probe("import torch; print(float(torch.ones(3).sum()))", box)
    assert seen == 3.0


@confined
@pytest.mark.parametrize(
    ("limit", "script"),
    [
        ({"memory_bytes": 64 << 20}, "x = bytearray(512 << 20)"),
        ({"file_bytes": 1 << 20}, "open('big', 'wb').write(bytes(4 << 20))"),
        ({"processes": 8}, "import os, time\nfor _ in range(32):\n    if os.fork() == 0: time.sleep(60)"),
        ({"cpu_seconds": 1}, "while True: pass"),
    ],
)
def test_a_program_past_a_limit_fails(box: Confinement, limit: dict[str, int], script: str) -> None:
    code, _, _ = run(
        [sys.executable, "-I", "-c", script],
        Confinement(folder=box.folder, read_only=box.read_only, environment=PATH, **limit),  # type: ignore[arg-type]
    )
    assert code != 0


@confined
def test_killing_the_tree_kills_what_has_left_its_process_group(box: Confinement) -> None:
    script = "setsid sleep 4321.5 & setsid sh -c 'sleep 4321.5 & sleep 4321.5' & echo ready; sleep 4321.5"
    process = sandbox.popen(["sh", "-c", script], box, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    sandbox.kill_tree(process)
    assert process.stdout.read() == b""
    process.stdout.close()
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if b"4321.5" in read(p)]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@confined
@pytest.mark.parametrize("folder", ["relative", "/", "/usr"])
def test_a_folder_that_is_the_hosts_own_is_refused(folder: str) -> None:
    with pytest.raises(SandboxUnavailable, match="folder of its own"):
        sandbox.popen(["true"], Confinement(folder=Path(folder)))


@confined
def test_a_path_that_does_not_exist_is_named(box: Confinement) -> None:
    with pytest.raises(SandboxUnavailable, match="/no/such/path"):
        sandbox.popen(["true"], Confinement(folder=box.folder, read_only=(Path("/no/such/path"),)))


@confined
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_root_drops_to_an_ordinary_user_before_bubblewrap_and_gives_it_the_folder_but_no_links_target(
    box: Confinement, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("root's")
    (box.folder / "link").symlink_to(outside)
    process = sandbox.popen(["sh", "-c", "echo; exec cat"], box, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        users = {
            (proc / "comm").read_text().strip(): proc.stat().st_uid
            for proc in (Path(f"/proc/{pid}") for pid in sandbox.descendants(process.pid))
        }
    finally:
        sandbox.kill_tree(process)
        process.communicate()
    assert {"bwrap", "cat"} <= users.keys()
    assert 0 not in (users["bwrap"], users["cat"])
    assert box.folder.stat().st_uid != 0
    assert outside.stat().st_uid == 0


def test_without_a_sandbox_foreign_code_is_refused_with_the_remedy_unless_the_setting_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sandbox, "_which", lambda tool: None if tool == "bwrap" else f"/usr/bin/{tool}")
    sandbox.available.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="install the package bubblewrap") as raised:
            sandbox.popen(["true"], Confinement(folder=tmp_path))
        assert sandbox.UNCONFINED_SETTING in str(raised.value)
        monkeypatch.setenv(sandbox.UNCONFINED_SETTING, "1")
        monkeypatch.setenv("HOST_SECRET", "x")
        code, out, _ = run(["env"], Confinement(folder=tmp_path, environment={"PATH": "/usr/bin:/bin", "GIVEN": "1"}))
        assert code == 0
        assert "GIVEN=1" in out
        assert "HOST_SECRET" not in out
        assert "WITHOUT a sandbox" in caplog.text
    finally:
        sandbox.available.cache_clear()


@confined
def test_a_private_folder_lies_in_memory_of_its_size_and_never_reaches_the_disk(box: Confinement) -> None:
    place = box.folder / "mine"
    box = replace(box, private=((place, 1 << 20),))
    script = f"cd {place}; echo secret > file; cat file; head -c 2000000 /dev/zero > large || stat -c %a ."
    code, out, err = run(["sh", "-c", script], box)
    assert (code, out) == (0, "secret\n700\n")
    assert "No space left" in err
    assert list(place.iterdir()) == []
