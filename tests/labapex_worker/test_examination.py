"""What `check` says of torch."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from tests import wheels
from tests.nvml import traces
from tests.nvml.stub import Play

from labapex import nvml
from labapex.protocol.canonical import canonical
from labapex_worker import devices, packages
from labapex_worker.cli import examination
from labapex_worker.config import Config, Home
from labapex_worker.identity import Identity


def test_a_host_without_torch_is_told_that_jobs_bring_it_and_later_which(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    empty = Config(platform="https://x", worker=UUID(int=7), name="x", root=bytes(32), site_packages=(tmp_path,))
    home.save(empty)
    Identity.create(home.key)
    found = {finding.what: finding for finding in examination.examine(home)}
    assert (found["torch"].good, found["torch"].required) == (False, False)
    assert found["torch"].detail == f"none in {tmp_path}: jobs bring the platform's, if it supplies one"
    torch, wheels_of = wheels.supplied(wheels.a_torch(tmp_path))
    packages.store(home, empty).make(torch.packages, wheels_of)
    home.torch.write_bytes(canonical(torch))
    found = {finding.what: finding for finding in examination.examine(home)}
    assert (found["torch"].good, found["torch"].detail) == (True, "2.13.0+tests, supplied by the platform")
    assert found["torch's files"].good


def test_check_has_a_line_on_the_build_where_there_is_a_gpu(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_driver", nvml.Driver())
    monkeypatch.setattr(devices, "_seen", {})
    play(traces.H200)
    found = {finding.what: finding for finding in examination.examine(Home(tmp_path))}
    assert found["torch build"].required is False
    assert found["torch build"].detail.startswith("driver 580.95.05 runs builds for CUDA 13 (cu13*) and older; ")
