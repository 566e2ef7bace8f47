"""torch for hosts without: pip is asked for real, of a folder of wheels, for what is installed in a folder made of the same."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from django.conf import settings
from tests import wheels

from labapex import installed
from labapex.errors import LabApexError
from labapex_server.jobs import packages, supply

pytestmark = pytest.mark.django_db


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip looks, with the torch that is installed on the platform."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    folder, there = tmp_path / "index", tmp_path / "installed"
    for wheel in (wheels.a_torch(folder), wheels.make(folder, "numpy", "2.0"), wheels.make(folder, "safetensors")):
        zipfile.ZipFile(wheel).extractall(there)
    wheels.make(folder, "numpy", "2.1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(settings.LABAPEX, "site_packages", str(there))
    return folder


def test_hosts_without_torch_are_given_the_very_versions_that_the_platform_has(index: Path, tmp_path: Path) -> None:
    assert supply.torch() is None
    found = supply.lock(lambda: None)
    assert [str(wheel) for wheel in found.packages.wheels] == ["numpy 2.0", "safetensors 1.0", "torch 2.13.0+tests"]
    assert all(packages.path(wheel).is_file() for wheel in found.packages.wheels)
    own = installed.find([tmp_path / "installed"])
    assert own is not None
    assert (found.build.torch, found.build.digest) == ("2.13.0+tests", own.digest)
    assert supply.torch() == found
    (settings.LABAPEX.home / "torch.json").write_bytes(b"{}")
    assert supply.torch() is None


def test_another_build_of_the_same_version_is_not_supplied(index: Path) -> None:
    wheels.a_torch(index, text="PATCHED = True\n")
    with pytest.raises(LabApexError, match=r"another build of torch 2\.13\.0\+tests than the one that is installed"):
        supply.lock(lambda: None)
    assert supply.torch() is None
    (index / "torch-2.13.0+tests-py3-none-any.whl").unlink()
    with pytest.raises(LabApexError, match=r"(?s)pip does not load what is installed here .*torch==2\.13\.0\+tests"):
        supply.lock(lambda: None)
