"""torch for hosts without: pip is asked for real, of a folder of wheels, for what is installed in a folder made of the same."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from tests import wheels

from labapex import drivers, environments, installed
from labapex.drivers import NoBuild
from labapex.errors import LabApexError
from labapex.protocol.devices import Device
from labapex_server.jobs import packages, supply

pytestmark = pytest.mark.django_db

OWN = "2.13.0+cpu"
LIBRARY = "nvidia-cublas-cu12"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip looks, with the torch that is installed on the platform, and builds of it for GPUs."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    folder, there = tmp_path / "index", tmp_path / "installed"
    plain = wheels.make(folder, "sympy", "1.13")
    for wheel in (
        wheels.a_torch(folder, OWN, requires=["sympy"]), wheels.make(folder, "numpy", "2.0"),
        wheels.make(folder, "safetensors"), plain,
    ):  # fmt: skip
        zipfile.ZipFile(wheel).extractall(there)
    wheels.make(folder, "numpy", "2.1")
    wheels.make(folder, "sympy", "1.14")
    wheels.make(folder, LIBRARY.replace("-", "_"), "12.6.4", files={"nvidia/cublas/libcublas.so.12": b"the one"})
    wheels.a_torch(folder, "2.13.0+cu126", requires=["sympy", f"{LIBRARY}==12.6.4"])
    wheels.a_torch(folder, "2.13.0+cu130", requires=["sympy"])
    wheels.a_torch(folder, "2.12.0+cu130")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(settings.LABAPEX, "site_packages", str(there))
    return folder


def gpu(driver: str) -> Device:
    return Device(kind="cuda", name="NVIDIA A100", driver=driver, capability="8.0")


def test_hosts_without_torch_are_given_the_very_versions_that_the_platform_has(index: Path, tmp_path: Path) -> None:
    assert supply.held() == supply.NOTHING
    found = supply.lock(lambda: None)
    assert [str(wheel) for wheel in found.packages.wheels] == [
        "numpy 2.0", "safetensors 1.0", "sympy 1.13", f"torch {OWN}"
    ]  # fmt: skip
    assert all(packages.kept(wheel).is_file() for wheel in found.packages.wheels)
    own = installed.find([tmp_path / "installed"])
    assert own is not None
    assert (found.build.torch, found.build.digest) == (OWN, own.digest)
    held = supply.held()
    assert held.builds == (found,)
    assert held.fitting(Device(kind="cpu", name="AMD EPYC")) == held.fitting(None) == found
    (settings.LABAPEX.home / "torch" / f"{OWN}.json").write_bytes(b"{}")
    with pytest.raises(NoBuild, match=r"supplies no torch; install one, or ask its operator to run: manage\.py torch"):
        supply.held().fitting(None)


def test_builds_for_gpus_are_of_the_platforms_release_and_bring_what_only_they_need(
    index: Path, tmp_path: Path
) -> None:
    said = io.StringIO()
    call_command("torch", "cpu", "cu126", "cu130", stdout=said)
    lines = said.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        f"hosts without torch can get 2.13.0+{label}" for label in ("cpu", "cu126", "cu130")
    ]
    held = supply.held()
    given = {driver: held.fitting(gpu(driver)) for driver in ("580.95.05", "550.54.14")}
    assert {driver: found.build.torch for driver, found in given.items()} == {
        "580.95.05": "2.13.0+cu130", "550.54.14": "2.13.0+cu126"
    }  # fmt: skip
    assert held.fitting(None).build.torch == OWN
    lock = given["550.54.14"].packages
    assert [str(wheel) for wheel in lock.wheels] == [
        "numpy 2.0", f"{LIBRARY} 12.6.4", "safetensors 1.0", "sympy 1.13", "torch 2.13.0+cu126"
    ]  # fmt: skip
    host = environments.Store(tmp_path / "host", 1 << 30)  # as its agent makes it
    there = host.make(lock, {wheel: packages.kept(wheel) for wheel in lock.wheels})
    build = installed.find([there])
    assert build is not None
    assert (build.version, build.digest) == ("2.13.0+cu126", given["550.54.14"].build.digest)
    assert drivers.fits(gpu("550.54.14"), drivers.installed([there]))[0]
    assert (there / "nvidia" / "cublas" / "libcublas.so.12").read_bytes() == b"the one"
    with pytest.raises(
        NoBuild, match=r"driver 470\.1 runs builds for CUDA 11 .* 2\.13\.0\+cu126 needs driver 525 or newer"
    ):
        held.fitting(gpu("470.1"))


def test_hosts_without_a_gpu_get_a_build_for_gpus_where_no_other_is_held(index: Path) -> None:
    supply.lock(lambda: None, "cu126")
    assert supply.held().fitting(None).build.torch == "2.13.0+cu126"


def test_a_build_that_is_not_what_its_name_says_is_not_supplied(index: Path) -> None:
    liar = wheels.make(index, "torch", "2.13.0+cu128", files={
        "torch/__init__.py": "", "torch/version.py": "__version__ = '2.13.0+cu128'\ncuda = '13.0'\n"
    })  # fmt: skip
    with pytest.raises(LabApexError, match=r"torch 2\.13\.0\+cu128, built for CUDA 13\.0; .* has it for CUDA 12\.8"):
        supply.lock(lambda: None, "cu128")
    liar.unlink()
    with pytest.raises(CommandError, match=r"(?s)pip does not load torch==2\.13\.0\+cu128"):
        call_command("torch", "cu128")
    assert supply.held() == supply.NOTHING


def test_builds_of_a_release_that_the_platform_no_longer_has_do_not_count(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    call_command("torch", "cpu", "cu126", stdout=io.StringIO())
    newer = tmp_path / "newer"
    for wheel in (wheels.a_torch(tmp_path / "made", "2.14.0+cpu"),):
        zipfile.ZipFile(wheel).extractall(newer)
    monkeypatch.setattr(settings.LABAPEX, "site_packages", str(newer))
    assert supply.held().builds == ()
    assert "torch is another one here since it was locked; run: manage.py torch cu126" in caplog.text


def test_another_build_of_the_same_version_is_not_supplied(index: Path) -> None:
    wheels.a_torch(index, OWN, text="PATCHED = True\n")
    with pytest.raises(LabApexError, match=r"another build of torch 2\.13\.0\+cpu than the one that is installed"):
        supply.lock(lambda: None)
    assert supply.held() == supply.NOTHING
    (index / f"torch-{OWN}-py3-none-any.whl").unlink()
    with pytest.raises(LabApexError, match=r"(?s)pip does not load .*torch==2\.13\.0\+cpu"):
        supply.lock(lambda: None)
