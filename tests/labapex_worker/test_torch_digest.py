"""`labapex-worker digest`: what an operator puts on record, and only of a torch that is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.labapex.test_installed import FILES, install

from labapex import installed
from labapex.errors import MalformedInput, UsageError
from labapex.protocol.contract import TorchBuild
from labapex_worker.cli import files


def test_the_digest_of_a_whole_installation_is_what_a_platform_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.digest([install(tmp_path)])
    told = TorchBuild.model_validate(json.loads(capsys.readouterr().out))
    build = installed.find([tmp_path])
    assert build is not None
    assert told == TorchBuild(torch="2.13.0+test", files=4, digest=build.digest)


def test_of_a_torch_that_was_altered_or_is_not_there_no_digest_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--site-packages"):
        files.digest([tmp_path])
    install(tmp_path, {**FILES, "torch/nn.py": b"honest"})
    (tmp_path / "torch" / "nn.py").write_bytes(b"patched")
    with pytest.raises(MalformedInput, match=r"not what was installed: torch/nn\.py"):
        files.digest([tmp_path])
