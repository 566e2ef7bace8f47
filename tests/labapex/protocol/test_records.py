from __future__ import annotations

import math
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from labapex.errors import MalformedInput
from labapex.protocol.packing import unpack
from labapex.protocol.records import MAX_NAME, MAX_RECORDS, MAX_SERIES, FrameBody, Leaf, Series, column, uncolumn
from labapex.sealing import open_frame, seal_frame


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


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=MAX_NAME).filter(str.isprintable)
points = st.dictionaries(st.integers(0, 2**53 - 1), st.floats(), min_size=1, max_size=20)


@given(st.dictionaries(names, points, max_size=8))
@settings(max_examples=30)
def test_series_come_out_of_a_frame_as_they_went_in(told: dict[str, dict[int, float]]) -> None:
    series = tuple(
        Series(name=name, iterations=tuple(sorted(each)), values=column([each[i] for i in sorted(each)]))
        for name, each in told.items()
    )
    sealed = seal_frame(bytes(32), lease=UUID(int=1), seq=0, first=0, prev=bytes(32), body=FrameBody(series=series))
    assert open_frame(bytes(32), sealed).series == series


def a_series(**changes: Any) -> dict[str, Any]:
    return {"name": "accuracy", "iterations": (3, 4), "values": column([0.5, math.nan]), **changes}


def body(series: list[dict[str, Any]]) -> FrameBody:
    """As it is read from what was sent."""
    return unpack(TypeAdapter(FrameBody), msgpack.packb({"series": series}), limit=1 << 20)


@pytest.mark.parametrize(
    "series",
    [
        [a_series(name="")],
        [a_series(name="x" * (MAX_NAME + 1))],
        [a_series(name="a\x1b[31m")],
        [a_series(name="right\u202eleft")],
        [a_series(name=b"\xff")],
        [a_series(iterations=(), values=b"")],
        [a_series(iterations=(4, 3))],
        [a_series(iterations=(4, 4))],
        [a_series(iterations=(-1, 3))],
        [a_series(iterations=(3, 2**53))],
        [a_series(values=column([0.5]))],
        [a_series(values=b"")],
        [a_series(iterations=tuple(range(MAX_RECORDS + 2)), values=bytes(8 * (MAX_RECORDS + 2)))],
        [a_series(unit="percent")],
        [a_series(), a_series()],
        [a_series(name=str(n)) for n in range(MAX_SERIES + 1)],
    ],
)  # fmt: skip
def test_a_series_that_is_none_is_malformed(series: list[dict[str, Any]]) -> None:
    assert body([a_series()]).series[0].iterations == (3, 4)
    with pytest.raises(MalformedInput):
        body(series)
