"""What is installed can be found in a list, and is gone without a trace after it was removed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labapex.errors import MalformedInput, UsageError
from labapex.protocol.canonical import parse
from labapex_worker import installation, unit
from labapex_worker.config import Home
from labapex_worker.installation import Place, Record

ME = pwd.getpwuid(os.geteuid()).pw_name
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What a system has at the least."""
    made = tmp_path / "root"
    for folder in ("etc/systemd/system", "var/lib", "usr/bin"):
        (made / folder).mkdir(parents=True)
    (made / "etc/passwd").write_text(f"root:x:0:0::/root:/bin/sh\n{ME}:x:{os.geteuid()}:{os.getegid()}::/:/bin/sh\n")
    (made / "etc/group").write_text(f"root:x:0:\n{ME}:x:{os.getegid()}:\n")
    (made / "etc/systemd/system/other.service").write_text("somebody else's\n")
    return made


def everything(root: Path) -> dict[str, tuple[int, bytes]]:
    """Each path below the root, with mode and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        content = b"" if path.is_dir() else str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        found[str(path.relative_to(root))] = (path.lstat().st_mode, content)
    return found


def test_after_it_was_removed_everything_is_as_it_was(root: Path) -> None:
    before, place = everything(root), Place.of_system(root)
    record = installation.install(place, user=ME)
    home = Home(place.at(record.home))
    home.create()
    home.key.write_bytes(bytes(32))
    (home.path / "jobs" / "a" / "locked").mkdir(parents=True)
    (home.path / "jobs" / "a" / "link").symlink_to(root / "etc")
    (home.path / "jobs" / "a" / "locked").chmod(0)
    assert everything(root) != before
    assert place.load() == record
    installation.remove(place, record)
    assert everything(root) == before


def test_the_record_names_all_that_was_made(root: Path) -> None:
    before, place = set(everything(root)), Place.of_system(root)
    record = installation.install(place, user=ME)
    named = {str(path.relative_to("/")) for path in (*record.files, *record.folders, record.home)}
    assert set(everything(root)) - before == named
    assert not record.user_made


def test_installing_twice_mends_and_forgets_nothing(root: Path) -> None:
    before, place = everything(root), Place.of_system(root)
    first = installation.install(place, user=ME)
    place.at(place.service).unlink()
    place.at(place.environment).write_text("CUDA_VISIBLE_DEVICES=0\n")
    (place.at(place.home) / "key").write_bytes(bytes(32))
    second = installation.install(place, user=ME)
    assert set(second.files) == set(first.files)
    assert place.at(place.service).exists()
    assert place.at(place.environment).read_text() == "CUDA_VISIBLE_DEVICES=0\n"
    assert (place.at(place.home) / "key").exists()
    installation.remove(place, second)
    assert everything(root) == before


def test_an_installation_that_was_cut_off_can_be_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, place = everything(root), Place.of_system(root)

    def full(*_: object, **__: object) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(unit, "text", full)
    with pytest.raises(OSError, match="no space"):
        installation.install(place, user=ME)
    record = place.load()
    assert record is not None
    installation.remove(place, record)
    assert everything(root) == before


def test_a_removal_that_was_cut_off_can_be_repeated(root: Path) -> None:
    before, place = everything(root), Place.of_system(root)
    record = installation.install(place, user=ME)
    place.at(place.service).unlink()
    shutil.rmtree(place.at(place.home))
    installation.remove(place, record)
    assert everything(root) == before


def test_what_others_put_beside_it_stays(root: Path) -> None:
    place = Place.of_system(root)
    record = installation.install(place, user=ME)
    theirs = place.at(place.link.parent) / "ssh.service"
    theirs.touch()
    installation.remove(place, record)
    assert theirs.exists()
    assert not os.path.lexists(place.at(place.link))


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("useradd") is None,
    reason="needs root and useradd (package passwd) to make a user",
)
def test_a_user_of_its_own_comes_and_goes(root: Path) -> None:
    (root / "etc/shadow").write_text("root:*:1::::::\n")
    (root / "etc/gshadow").write_text("root:*::\n")
    before, place = everything(root), Place.of_system(root)
    record = installation.install(place)
    assert record.user_made
    account = next(
        line for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("labapex-worker:")
    )
    user, home, shell = int(account.split(":")[2]), *account.split(":")[5:]
    assert (home, shell) == ("/var/lib/labapex-worker", "/usr/sbin/nologin")
    folder = place.at(place.home).stat()
    assert (folder.st_uid, folder.st_mode & 0o777) == (user, 0o700)
    installation.remove(place, record)
    assert everything(root) == before


def test_a_user_that_does_not_exist_is_refused_before_anything_is_made(root: Path) -> None:
    before = everything(root)
    with pytest.raises(UsageError, match="no user 'ghost'"):
        installation.install(Place.of_system(root), user="ghost")
    assert everything(root) == before


@pytest.mark.parametrize("path", ["etc/passwd", "/etc/../../x"])
def test_a_record_that_leads_elsewhere_is_refused(path: str) -> None:
    text = f'{{"user": "x", "user_made": false, "home": "/h", "files": ["{path}"], "folders": []}}'
    with pytest.raises(MalformedInput, match="no plain absolute path"):
        parse(Record, text, limit=1000)


def a_unit(
    *, user: str | None = "labapex-worker", reads: tuple[Path, ...] = (Path("/opt/x"),), systemd: int | None = None
) -> str:
    home = Path("/var/lib/labapex-worker")
    return unit.text(
        command=["/bin/true", "run"], home=home, environment=Path("/etc/labapex-worker/environment"),
        user=user, reads=reads, config=home / "config.json", systemd=systemd,
    )  # fmt: skip


def test_homes_are_closed_to_the_service_unless_python_or_torch_lie_there() -> None:
    assert "ProtectHome=yes" in a_unit()
    assert "ProtectHome=read-only" in a_unit(reads=(Path("/home/ada/.venv/bin/python"),))


def test_a_unit_has_nothing_that_keeps_bubblewrap_from_working_or_ends_jobs_with_the_daemon() -> None:
    set_there = dict(line.split("=", 1) for line in a_unit().splitlines() if "=" in line and not line.startswith("#"))
    breaks = {"ProtectKernelTunables", "ProtectHostname", "RestrictNamespaces", "ProcSubset"}
    assert not {*breaks, "PrivateDevices", "ProtectClock", "MemoryDenyWriteExecute"} & set(set_there)
    assert (set_there["KillMode"], set_there["OOMPolicy"]) == ("process", "continue")


@pytest.mark.parametrize("user", ["labapex-worker", None], ids=["system", "user"])
def test_a_unit_delegates_its_control_group_with_a_part_for_the_daemon_where_systemd_makes_one(
    user: str | None,
) -> None:
    old, new = a_unit(user=user, systemd=253), a_unit(user=user, systemd=254)
    assert "Delegate=memory pids\nDelegateSubgroup=daemon\n" in new
    assert "ExecStopPost" not in new
    assert "Delegate=memory pids\n" in old
    assert "DelegateSubgroup" not in old
    assert "ProtectControlGroups" not in [line.partition("=")[0] for line in (old + new).splitlines()]
    assert a_unit(user=user) == old, "an image's systemd is not known"


def test_controllers_are_taken_back_from_the_units_group_when_its_daemon_has_ended(tmp_path: Path) -> None:
    """The shell's words themselves, on a played tree."""
    unit_group = tmp_path / "cgroup" / "system.slice" / "labapex-worker.service"
    unit_group.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/system.slice/labapex-worker.service/.control\n")
    command = unit.TAKE_BACK.replace("/proc/self/cgroup", str(tmp_path / "own")).replace(
        "/sys/fs/cgroup", str(tmp_path / "cgroup")
    )
    for group in (unit_group, unit_group / ".control"):  # an old systemd has no such part
        (tmp_path / "own").write_text(f"0::/{group.relative_to(tmp_path / 'cgroup')}\n")
        subprocess.run(["/bin/sh", "-c", command], check=True)
        assert (unit_group / "cgroup.subtree_control").read_text() == "-memory -pids\n"
        (unit_group / "cgroup.subtree_control").unlink()


def test_a_word_with_signs_of_systemds_own_stays_one_word() -> None:
    assert unit._quoted('/a b/100%/$HOME/"x"') == '"/a b/100%%/$$HOME/\\"x\\""'


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (package systemd)")
@pytest.mark.parametrize("user", [ME, None], ids=["system", "user"])
def test_systemd_understands_the_unit(tmp_path: Path, user: str | None) -> None:
    path = tmp_path / unit.SERVICE
    path.write_text(a_unit(user=user))
    scope = [] if user else ["--user"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        ["systemd-analyze", *scope, "verify", "--man=no", str(path)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert unit.SERVICE not in done.stderr


def labapex_worker(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{ROOT / 'client_sdk'}:{ROOT / 'worker_agent'}"
    return subprocess.run(
        [sys.executable, "-m", "labapex_worker.cli", *arguments], capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path, **environment}, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_the_commands_install_into_an_image_and_remove_it_again(root: Path) -> None:
    before = everything(root)
    done = labapex_worker("install", "--root", str(root), "--user", ME)
    assert done.returncode == 0, done.stderr
    assert "Nothing was started" in done.stderr
    asked = labapex_worker("uninstall", "--root", str(root))
    assert asked.returncode == 1, "nobody answers"
    assert labapex_worker("uninstall", "--root", str(root), "-y").returncode == 0
    assert everything(root) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("install", "--enrol", "x"), "go together"),
        (("install", "--enrol", "x", "--platform", "https://x", "--root", "{root}"), "an image must not hold"),
        (("uninstall", "--root", "{root}", "-y"), "no worker is installed here"),
    ],
)
def test_what_makes_no_sense_is_refused(root: Path, arguments: tuple[str, ...], words: str) -> None:
    done = labapex_worker(*(part.replace("{root}", str(root)) for part in arguments))
    assert done.returncode == 2
    assert words in done.stderr
