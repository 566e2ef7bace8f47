"""The pipe from trainer to supervisor: what goes in comes out, and nonsense is refused."""

from __future__ import annotations

import math
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapex.errors import MalformedInput
from labapex.protocol.records import Leaf
from labapex_runner.events import MAX_EVENT, Committed, Done, EventReader, EventWriter, Iteration, Scalars

LEAF = Leaf(
    index=0,
    step=0,
    state="ab" * 32,
    size=8,
    chunks=2,
    settings="57" * 32,
    update_norm=None,
    batches="cd" * 32,
    losses="ef" * 32,
    prev="01" * 32,
)


def written() -> bytes:
    out, into = os.pipe()
    writer = EventWriter(into)
    writer.iteration(0, math.inf, 1.5)
    writer.leaf(LEAF)
    writer.scalars({"accuracy": 0.5})
    writer.send(Done())
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        return pipe.read()


@given(st.lists(st.integers(1, 100)))
def test_events_come_out_as_they_went_in_however_the_pipe_cuts_them(cuts: list[int]) -> None:
    data, reader, events = written(), EventReader(), []
    for size in [*cuts, len(data) + 1]:
        events += list(reader.feed(data[:size]))
        data = data[size:]
    assert events == [
        Iteration(step=0, loss=math.inf, at=1.5),
        Committed(leaf=LEAF),
        Scalars(values={"accuracy": 0.5}),
        Done(),
    ]


@given(st.binary(min_size=4))
def test_nonsense_on_the_pipe_is_waited_for_or_refused_but_never_believed(data: bytes) -> None:
    reader = EventReader()
    try:
        assert list(reader.feed(data)) == []
    except MalformedInput:
        return


def test_an_event_that_is_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(MalformedInput):
        list(EventReader().feed(struct.pack(">I", MAX_EVENT + 1)))
