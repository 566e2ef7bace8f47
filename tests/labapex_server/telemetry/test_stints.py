"""Logs of several hosts put together: each iteration once, wherever frames end and hosts were lost."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis import given

from labapex.protocol.records import column, uncolumn
from labapex_server.telemetry.stints import cut


def frames(begin: int, logged: int, sizes: Sequence[int]) -> list[tuple[int, bytes]]:
    """Iterations `begin` .. `logged` - 1 in frames of these sizes; each loss is its iteration's number."""
    made, at = [], begin
    for size in [*sizes, logged]:
        stop = min(logged, at + size)
        made.append((at, column([float(n) for n in range(at, stop)])))
        at = stop
    return made


@given(data=st.data(), total=st.integers(1, 200))
def test_logs_cut_where_another_host_went_on_have_each_iteration_once(data: st.DataObject, total: int) -> None:
    stops = [*sorted(data.draw(st.sets(st.integers(1, total), max_size=5)) - {total}), None]
    begin, losses = 0, list[float]()
    for stop in stops:
        logged = total if stop is None else data.draw(st.integers(stop, total))  # what is beyond is superseded
        sizes = data.draw(st.lists(st.integers(0, 30), max_size=20))
        for stretch in cut(frames(begin, logged, sizes), stop):
            losses += uncolumn(stretch)
        begin = stop or total
    assert losses == list(range(total))
