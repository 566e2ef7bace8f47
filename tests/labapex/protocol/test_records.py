from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from labapex.errors import MalformedInput
from labapex.protocol.records import MAX_RECORDS, FrameBody, Leaf, column, uncolumn


@given(st.lists(st.floats(), max_size=50))
def test_a_column_keeps_every_bit_of_a_loss(values: list[float]) -> None:
    back = uncolumn(column(values))
    assert column(back) == column(values)
    assert len(back) == len(values)
    assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(values, back, strict=True))


def test_columns_of_different_length_are_malformed() -> None:
    with pytest.raises(MalformedInput, match="differ in length"):
        FrameBody(losses=column([1.0]), times=b"").count()
    assert FrameBody(losses=column([1.0]), times=column([2.0])).count() == 1


@pytest.mark.parametrize("data", [b"1234567", b"\x00" * (8 * MAX_RECORDS + 8)])
def test_a_column_is_whole_floats_and_bounded(data: bytes) -> None:
    with pytest.raises(ValidationError):
        FrameBody(losses=data, times=b"")


def test_a_leaf_is_bound_to_the_one_before() -> None:
    leaf = Leaf(
        index=0,
        step=0,
        state="0" * 64,
        size=1,
        chunks=1,
        settings="4" * 64,
        update_norm=None,
        batches="1" * 64,
        losses="2" * 64,
        prev="3" * 64,
    )
    other = leaf.model_copy(update={"prev": "4" * 64})
    assert leaf.digest() != other.digest()
    with pytest.raises(ValidationError):
        Leaf.model_validate({**leaf.model_dump(), "update_norm": math.nan})
