from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from labapex import bundle
from labapex.errors import UsageError
from labapex.protocol.spec import MAX_CODE_BYTES, JobSpec


def spec(**fields: object) -> JobSpec:
    return JobSpec.model_validate({"script": "train.py", "epochs": 1, "budget": 1, **fields})


def code_of(job_folder: Path, **fields: object) -> list[str]:
    return [part.path for part in bundle.collect(job_folder, spec(**fields)).bundle.code]


def test_code_is_every_python_file_and_data_every_file_of_the_data_folder(job_folder: Path) -> None:
    (job_folder / "pkg").mkdir()
    (job_folder / "pkg" / "model.py").write_text("")
    (job_folder / "notes.txt").write_text("private")
    (job_folder / "data" / "deep").mkdir()
    (job_folder / "data" / "deep" / "labels.py").write_text("data, not code")
    found = bundle.collect(job_folder, spec(data="data"))
    assert [part.path for part in found.bundle.code] == ["helper.py", "pkg/model.py", "train.py"]
    assert [part.path for part in found.bundle.data] == ["data/deep/labels.py", "data/digits.npz"]
    assert found.data_bytes == 10_000 + 14


@pytest.mark.parametrize("place", [".git/hook.py", "__pycache__/x.py", ".hidden.py", "env/lib/torch.py"])
def test_hidden_files_caches_and_virtual_environments_stay_at_home(job_folder: Path, place: str) -> None:
    path = job_folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    if place.startswith("env/"):
        (job_folder / "env" / "pyvenv.cfg").write_text("")
    assert code_of(job_folder) == ["helper.py", "train.py"]


def test_a_part_carries_the_digest_and_size_of_its_file(job_folder: Path) -> None:
    found = bundle.collect(job_folder, spec())
    part = found.bundle.code[1]
    content = (job_folder / "train.py").read_bytes()
    assert (part.digest, part.size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert found.files[part.digest] == job_folder / "train.py"


def test_a_link_to_a_file_inside_is_taken_and_one_that_leaves_is_refused(job_folder: Path, tmp_path: Path) -> None:
    (job_folder / "again.py").symlink_to(job_folder / "helper.py")
    assert "again.py" in code_of(job_folder)
    (tmp_path / "secret.txt").write_text("key")
    (job_folder / "data" / "link").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UsageError, match=r"'data/link' is a symbolic link that leaves"):
        bundle.collect(job_folder, spec(data="data"))


def test_a_linked_folder_is_refused_rather_than_silently_left_out(job_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (job_folder / "data" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="link to a folder"):
        bundle.collect(job_folder, spec(data="data"))


def test_a_data_folder_that_is_itself_a_link_is_refused(job_folder: Path, tmp_path: Path) -> None:
    (job_folder / "linked").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="'linked' is a symbolic link"):
        bundle.collect(job_folder, spec(data="linked"))


def test_a_link_that_leads_nowhere_and_a_loop_are_named(job_folder: Path) -> None:
    (job_folder / "data" / "gone").symlink_to(job_folder / "nothing")
    with pytest.raises(UsageError, match=r"'data/gone' cannot be read"):
        bundle.collect(job_folder, spec(data="data"))


def test_a_pipe_is_refused_instead_of_being_waited_for(job_folder: Path) -> None:
    os.mkfifo(job_folder / "data" / "pipe")
    with pytest.raises(UsageError, match="not a regular file"):
        bundle.collect(job_folder, spec(data="data"))


def test_a_missing_script_is_named(job_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no file 'trian\.py'"):
        bundle.collect(job_folder, spec(script="trian.py"))


def test_a_missing_or_empty_data_folder_points_to_prepare_py(job_folder: Path) -> None:
    (job_folder / "prepare.py").write_text("")
    (job_folder / "empty").mkdir()
    for name in ("nothing", "empty"):
        with pytest.raises(UsageError, match=r"python prepare\.py"):
            bundle.collect(job_folder, spec(data=name))


def test_the_job_folder_itself_cannot_be_the_data(job_folder: Path) -> None:
    with pytest.raises(UsageError, match="not the job's folder itself"):
        bundle.collect(job_folder, spec(data="."))


def test_a_script_in_the_data_folder_is_refused(job_folder: Path) -> None:
    (job_folder / "data" / "train.py").write_text("")
    with pytest.raises(UsageError, match="lies in the data folder"):
        bundle.collect(job_folder, spec(script="data/train.py", data="data"))


def test_data_over_the_limit_says_how_much_is_accepted(job_folder: Path) -> None:
    with pytest.raises(UsageError, match="data: 10,000 bytes, at most 9,999"):
        bundle.collect(job_folder, spec(data="data"), max_data_bytes=9_999)


def test_code_over_the_limit_is_refused_before_it_is_read(job_folder: Path) -> None:
    with (job_folder / "huge.py").open("wb") as file:
        file.truncate(MAX_CODE_BYTES)
    with pytest.raises(UsageError, match=r"code: .* at most 16,777,216"):
        bundle.collect(job_folder, spec())


@pytest.mark.parametrize("name", ["back\\slash", "line\nfeed", os.fsdecode(b"\xff")])
def test_a_file_name_that_cannot_travel_is_named(job_folder: Path, name: str) -> None:
    (job_folder / "data" / name).write_text("x")
    with pytest.raises(UsageError, match=r"the file name .* cannot be used"):
        bundle.collect(job_folder, spec(data="data"))
