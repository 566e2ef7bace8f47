"""The console: whole lines, in order, within bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from labapex.protocol.records import MAX_CONSOLE, Console
from labapex_runner.console import CHUNK, IDLE_SECONDS, TRUNCATED, Allowance, Stream


def text(records: list[Console]) -> str:
    return "".join(record.text for record in records)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=300), st.lists(st.integers(1, 7)))
def test_nothing_is_lost_however_the_bytes_are_cut(said: str, cuts: list[int]) -> None:
    stream, records, data = Stream("stdout", Allowance()), [], said.encode()
    for size in [*cuts, len(data) + 1]:
        records += stream.feed(data[:size], 0.0)
        data = data[size:]
    assert text(records + stream.close(0.0)) == said


def test_only_whole_lines_are_passed_on_until_a_line_waits_too_long() -> None:
    stream = Stream("stderr", Allowance())
    assert text(stream.feed(b"one\ntwo\nthr", 0.0)) == "one\ntwo\n"
    assert stream.idle(IDLE_SECONDS / 2) == []
    assert stream.idle(IDLE_SECONDS) == [Console(stream="stderr", text="thr")]
    assert text(stream.feed(b"50%\r", 2.0)) == "50%\r"


def test_a_line_without_end_is_cut_and_fits_into_a_record() -> None:
    stream = Stream("stdout", Allowance())
    records = stream.feed(b"x" * (5 * CHUNK), 0.0)
    assert text(records) == "x" * (5 * CHUNK)
    assert max(len(record.text) for record in records) <= MAX_CONSOLE


def test_more_than_the_allowance_is_cut_with_a_notice_and_the_next_minute_is_heard_again() -> None:
    allowance = Allowance(per_minute=100)
    out, err = Stream("stdout", allowance), Stream("stderr", allowance)
    assert text(out.feed(b"a" * 89 + b"\n", 0.0)) == "a" * 89 + "\n"
    assert text(err.feed(b"b" * 20 + b"\n", 1.0)) == TRUNCATED
    assert out.feed(b"c\n", 2.0) == []
    assert text(out.feed(b"d\n", 60.0)) == "d\n"


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert text(Stream("stdout", Allowance()).feed(b"\xff\n", 0.0)) == "\ufffd\n"
