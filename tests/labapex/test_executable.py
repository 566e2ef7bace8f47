"""Executables: only the very bytes that the platform signed are started, and they unpack to the very files."""

from __future__ import annotations

import stat
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.labapex.authority import Authority
from tests.labapex_runner.jobs import Made, fake_runner, make

from labapex import executable, sealing
from labapex.errors import MalformedInput, Tampered
from labapex.protocol.manifest import Index, IndexEntry

FILES = {"train.py": b"print('very secret script')", "data/x.bin": bytes(range(256)) * 3, "data/empty": b""}
NOW = 1_900_000_000.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("job"), FILES)


def check(made: Made, path: Path | None = None) -> None:
    assert executable.verify(path or made.path, made.trust, made.worker, NOW) == made.manifest


def test_what_the_platform_signed_is_accepted_and_unpacks_to_the_files(made: Made, tmp_path: Path) -> None:
    check(made)
    executable.unpack(made.path, made.manifest, made.keys.content_key, tmp_path / "work")
    for name, data in FILES.items():
        assert (tmp_path / "work" / name).read_bytes() == data
        assert stat.S_IMODE((tmp_path / "work" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "work" / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700


def test_a_flipped_bit_in_any_byte_is_refused(made: Made, tmp_path: Path) -> None:
    whole = made.path.read_bytes()
    bent = tmp_path / "bent"
    for at in range(len(whole)):
        bent.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(MalformedInput):
            check(made, bent)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_other_bytes_are_accepted(made: Made, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = made.path.read_bytes()
    at = data.draw(st.integers(0, len(whole)), label="at")
    cut = data.draw(st.integers(0, 100), label="cut")
    put = data.draw(st.binary(max_size=100), label="put")
    bent = whole[:at] + put + whole[at + cut :]
    if bent == whole:
        return
    path = tmp_path_factory.getbasetemp() / "bent"
    path.write_bytes(bent)
    with pytest.raises(MalformedInput):
        check(made, path)


def test_another_key_another_worker_or_a_late_hour_is_refused(made: Made) -> None:
    for arguments in (
        (Authority().trust, made.worker, NOW),
        (made.trust, uuid4(), NOW),
        (made.trust, made.worker, made.manifest.expires_at),
        (made.trust, made.worker, float("nan")),
    ):
        with pytest.raises(Tampered):
            executable.verify(made.path, *arguments)


def test_a_section_swapped_for_one_of_the_same_size_is_refused(made: Made, tmp_path: Path) -> None:
    parts = list(made.layout.parts)
    parts[2] = sealing.seal_bytes(FILES["train.py"][::-1], sealing.new_key())
    bent = tmp_path / "bent"
    executable.write(bent, executable.Layout(tuple(parts), made.layout.sizes))
    with pytest.raises(Tampered, match="section 1"):
        check(made, bent)


def test_inspection_reads_without_judging(made: Made) -> None:
    assert executable.inspect(made.path).manifest == made.manifest


def test_a_file_that_is_no_executable_says_so(tmp_path: Path) -> None:
    runner = fake_runner(tmp_path)
    bare = tmp_path / "runner"
    bare.write_bytes(runner.bootloader.read_bytes() + runner.archive.read_bytes())
    with pytest.raises(MalformedInput, match="carries no job"):
        executable.inspect(bare)
    bare.write_bytes(b"x" * 1000)
    with pytest.raises(MalformedInput, match="PyInstaller"):
        executable.inspect(bare)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_download_can_go_on_from_any_offset(made: Made, data: st.DataObject) -> None:
    whole = made.path.read_bytes()
    assert made.layout.size == len(whole)
    offset = data.draw(st.integers(0, len(whole)))
    chunk = data.draw(st.integers(1, 2000))
    pieces = list(made.layout.stream(offset, chunk))
    assert b"".join(pieces) == whole[offset:]
    assert all(0 < len(piece) <= chunk for piece in pieces)


def test_a_layout_from_files_is_the_same_as_from_bytes(made: Made, tmp_path: Path) -> None:
    sections: list[bytes | Path] = []
    for number, part in enumerate(made.layout.parts[1 : 1 + len(made.manifest.sections)]):
        assert isinstance(part, bytes)
        file = tmp_path / str(number)
        file.write_bytes(part)
        sections.append(file)
    runner = executable.load_runner(made.path.parent / "runner")
    layout = executable.layout(runner, sections, made.manifest, executable.inspect(made.path).signature)
    assert b"".join(layout.stream()) == made.path.read_bytes()
    sections[1].write_bytes(b"")  # type: ignore[union-attr]
    with pytest.raises(MalformedInput, match="became shorter"):
        list(layout.stream())
    with pytest.raises(MalformedInput, match="section 1"):
        executable.layout(runner, sections, made.manifest, bytes(64))


def test_a_manifest_for_another_runner_makes_no_executable(made: Made, tmp_path: Path) -> None:
    other = fake_runner(tmp_path / "other", bootloader=b"\x7fELF" + bytes(299) + b"!")
    with pytest.raises(MalformedInput, match="another runner"):
        executable.layout(other, [b""] * len(made.manifest.sections), made.manifest, bytes(64))


def test_a_missing_runner_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(MalformedInput, match=r"labapex_runner\.build"):
        executable.load_runner(tmp_path)


def test_another_content_key_unpacks_nothing(made: Made, tmp_path: Path) -> None:
    with pytest.raises(Tampered):
        executable.unpack(made.path, made.manifest, sealing.new_key(), tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


def test_an_existing_file_or_link_is_not_written_through(made: Made, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "train.py").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        executable.unpack(made.path, made.manifest, made.keys.content_key, tmp_path / "work")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("change", [{"digest": "00" * 32}, {"size": 1}])
def test_an_index_that_lies_about_a_file_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    made = make(tmp_path, {"train.py": b"x"})
    index = sealing.open_bytes(made.layout.parts[1], made.keys.content_key)  # type: ignore[arg-type]
    entry = Index.model_validate_json(index).entries[0]
    if change == {"size": entry.size}:
        change = {"size": 2}
    lie = executable.seal_index(Index(entries=(entry.model_copy(update=change),)), made.keys.content_key)
    _swap_index(made, lie)
    with pytest.raises(Tampered, match=r"train\.py"):
        executable.unpack(made.path, made.manifest, made.keys.content_key, tmp_path / "work")


def test_an_index_with_a_path_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path, {"train.py": b"x"})
    entry = IndexEntry(path="a", digest="00" * 32, size=1, key="00" * 32).model_copy(update={"path": "../a"})
    _swap_index(made, executable.seal_index(Index.model_construct(entries=(entry,)), made.keys.content_key))
    with pytest.raises(MalformedInput):
        executable.unpack(made.path, made.manifest, made.keys.content_key, tmp_path / "work")
    assert not (tmp_path / "a").exists()


def _swap_index(made: Made, sealed: bytes) -> None:
    """Write the executable anew with another section 0, as only the holder of the content key can make it."""
    sections = (executable.describe(sealed), *made.manifest.sections[1:])
    made.manifest = made.manifest.model_copy(update={"sections": sections})
    parts = [sealed, *made.layout.parts[2 : 1 + len(sections)]]
    runner = executable.load_runner(made.path.parent / "runner")
    executable.write(made.path, executable.layout(runner, parts, made.manifest, bytes(64)))
