from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.labapex_server.gateway.stage import a_state

from labapex_server.lib.errors import Refused
from labapex_server.verification.openings import check_header


def laid_out(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def check(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    check_header(path)


def test_a_state_as_safetensors_writes_it_is_accepted(tmp_path: Path) -> None:
    entries = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "U8", "shape": [0], "data_offsets": [8, 8]},
    }
    check(tmp_path, laid_out({"__metadata__": {"step": "1"}, **entries}, bytes(8)))
    check(tmp_path, a_state(128))


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\x00\x00",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        laid_out(b"[]"),
        laid_out(b"{" * 100_000),
        laid_out(b'{"a": 1}'),
        laid_out({}, b"rest"),
        laid_out({"a": GOOD}, bytes(7)),
        laid_out({"a": GOOD}, bytes(9)),
        laid_out({"a": {**GOOD, "dtype": "F31"}}, bytes(8)),
        laid_out({"a": {**GOOD, "shape": [3]}}, bytes(8)),
        laid_out({"a": {**GOOD, "shape": [-1, -2]}}, bytes(8)),
        laid_out({"a": {**GOOD, "shape": [True, 2]}}, bytes(8)),
        laid_out({"a": {**GOOD, "data_offsets": [0, 8, 8]}}, bytes(8)),
        laid_out({"a": {**GOOD, "pickle": "x"}}, bytes(8)),
        laid_out({"a": GOOD, "b": GOOD}, bytes(8)),
        laid_out({"a": {**GOOD, "data_offsets": [8, 16]}}, bytes(16)),
    ],
)
def test_anything_else_is_refused_without_loading_it(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Refused):
        check(tmp_path, content)


@given(content=st.binary(max_size=200))
def test_no_bytes_make_it_stumble(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("state")
    try:
        check(folder, content)
    except Refused:
        return
