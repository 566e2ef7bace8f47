"""docs/protocol.md says what the code does: every message, every field, every byte string."""

from __future__ import annotations

import re
import typing
import uuid
from pathlib import Path

import pytest

from labapex.protocol import frames
from labapex.protocol.frames import fin_bytes, frame_header, hello_bytes

TEXT = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()
MESSAGES = {
    *typing.get_args(typing.get_args(frames.FromAgent)[0]),
    *typing.get_args(typing.get_args(frames.ToAgent)[0]),
}


@pytest.mark.parametrize("message", sorted(MESSAGES, key=str), ids=lambda message: message.__name__)
def test_every_message_stands_in_the_table_with_every_field(message: type[frames.Message]) -> None:
    name = message.model_fields["type"].default
    row = re.search(rf"^\| `{name}` \|.*$", TEXT, re.MULTILINE)
    assert row is not None, f"{name} is missing"
    assert [field for field in message.model_fields if field != "type" and f"`{field}`" not in row[0]] == []


def test_the_table_names_no_message_that_is_not_spoken() -> None:
    table = TEXT[TEXT.index("| type |") : TEXT.index("## Bytes")]
    named = set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE))
    assert named == {message.model_fields["type"].default for message in MESSAGES}


def test_the_byte_strings_are_spelled_as_in_the_code() -> None:
    lease = uuid.uuid4()
    header = frame_header(lease=lease, seq=1, first=2, n=3, prev=b"p" * 32)
    written = b"labapex-frame-01" + lease.bytes + bytes(7) + b"\1" + bytes(7) + b"\2" + bytes(3) + b"\3" + b"p" * 32
    assert header == written
    assert f"header of a frame ({len(header)} bytes)" in TEXT
    for data in (header, fin_bytes(lease=lease, seq=1, total=2, head=bytes(32)), hello_bytes(worker=lease, nonce=b"")):
        assert f"`{data[:16].decode()}`" in TEXT
    assert f"{frames.MAX_MESSAGE:,} bytes" in TEXT
    assert f"{frames.MAX_PAYLOAD:,} bytes" in TEXT
