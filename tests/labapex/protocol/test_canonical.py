from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapex.errors import MalformedInput
from labapex.protocol.api import Login
from labapex.protocol.canonical import Message, canonical, digest, parse

_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-(2.0**53) + 1, 2.0**53 - 1)  # beyond, a whole float is spelled like an integer that JSON cannot carry
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
_documents = st.dictionaries(st.text(), _values, max_size=5)


class Blob(Message):
    data: bytes


@given(_documents)
def test_the_order_of_keys_does_not_change_the_bytes(document: dict[str, Any]) -> None:
    assert canonical(document) == canonical(dict(reversed(document.items())))


@given(_documents)
def test_canonical_bytes_are_json_that_reads_back(document: dict[str, Any]) -> None:
    data = canonical(document)
    assert json.loads(data) == document
    assert canonical(json.loads(data)) == data
    assert digest(document) == hashlib.sha256(data).hexdigest()


def test_the_rfc_8785_example_of_numbers_and_order() -> None:
    document = {"numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 1e-27], "literals": [None, True, False]}
    expected = b'{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27]}'
    assert canonical(document) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53 + 1])
def test_what_json_cannot_carry_is_refused(value: float) -> None:
    with pytest.raises(ValueError):
        canonical({"value": value})


@given(st.binary())
def test_bytes_travel_through_json(data: bytes) -> None:
    message = Blob(data=data)
    assert parse(Blob, message.model_dump_json(), limit=1 << 20) == message
    assert parse(Blob, canonical(message), limit=1 << 20) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed_input(data: bytes) -> None:
    with pytest.raises(MalformedInput, match="Login"):
        parse(Login, data, limit=1000)


def test_a_document_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(MalformedInput, match="11 bytes, at most 10"):
        parse(Login, b"x" * 11, limit=10)


def test_an_unknown_field_is_refused_and_the_input_is_not_echoed() -> None:
    data = b'{"username": "ada", "password": "hunter2", "admin": true}'
    with pytest.raises(MalformedInput, match="admin") as caught:
        parse(Login, data, limit=1000)
    assert "hunter2" not in str(caught.value)
