"""What a suspended frame will still read is never called dead."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labapex.proof.liveness import live_names

CASES = {
    "read after": ("a = 1\nmark()\nprint(a)", {"a"}, set()),
    "written before it is read": ("a = 1\nmark()\na = 2\nprint(a)", set(), {"a"}),
    "never read": ("a = 1\nmark()", set(), {"a"}),
    "read in one branch": ("a = b = 1\nmark()\nif b:\n    print(a)", {"a", "b"}, set()),
    "read in the next turn": ("a = 0\nfor i in (1, 2):\n    mark()\n    a += i", {"a"}, {"i"} - {"i"}),
    "left over from the last turn": ("for i in (1, 2):\n    mark()\n    a = i\n    print(a)", set(), {"a"}),
    "read by a handler": (
        "a = 1\ntry:\n    mark()\n    a2 = 1 // 0\nexcept ZeroDivisionError:\n    print(a)",
        {"a"},
        set(),
    ),
    "read by finally": ("a = 1\ntry:\n    mark()\nfinally:\n    print(a)", {"a"}, set()),
    "in a closure": ("a = 1\ndef g():\n    return a\nmark()", {"a"}, set()),
    "deleted": ("a = 1\nmark()\ndel a", {"a"}, set()),
    "in a comprehension": ("a = 1\nb = [1]\nmark()\nprint([a for x in b])", {"a", "b"}, set()),
    "far away": ("a = 1\nmark()\n" + "x = [0]\n" * 400 + "print(a)", {"a"}, {"x"}),
}


@pytest.mark.parametrize("in_function", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_analysis_knows_what_is_still_read(name: str, in_function: bool) -> None:
    source, live, dead = CASES[name]
    found = marked(source, in_function)
    assert live <= found
    if in_function:
        assert not dead & found


def marked(source: str, in_function: bool) -> frozenset[str]:
    seen: list[frozenset[str]] = []

    def mark() -> None:
        frame = sys._getframe(1)
        seen.append(live_names(frame.f_code, frame.f_lasti))

    if in_function:
        source = "def f():\n" + "".join(f"    {line}\n" for line in source.splitlines()) + "f()"
    exec(source, {"mark": mark, "print": lambda *_: None})
    return seen[-1]


NAMES = ["a", "b", "c"]
statement = st.builds(lambda t, v: f"{t} = {v} + 1", st.sampled_from(NAMES), st.sampled_from(NAMES))
body = st.lists(
    statement
    | st.builds(lambda c, s: f"if {c} % 2: {s}", st.sampled_from(NAMES), statement)
    | st.just("mark()")
    | st.builds(lambda s: f"for _ in range(2): {s}", statement)
    | st.builds(lambda s: f"try:\n    {s}\n    1 // (a % 3)\nexcept ZeroDivisionError:\n    a = c", statement),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(lines=body)
def test_forgetting_what_is_dead_changes_nothing(lines: list[str]) -> None:
    """A frame whose dead variables were overwritten goes on to the same result."""
    text = "\n".join(lines).splitlines()
    source = "def f(a, b, c):\n" + "".join(f"    {line}\n" for line in [*text, "return a, b, c"])
    code = compile(source, "f", "exec")
    plain: dict[str, Any] = {"mark": lambda: None}
    exec(code, plain)
    forgetful: dict[str, Any] = {"mark": lambda: overwrite(sys._getframe(1))}
    exec(code, forgetful)
    assert forgetful["f"](1, 2, 3) == plain["f"](1, 2, 3)


def overwrite(frame: FrameType) -> None:
    import ctypes

    live = live_names(frame.f_code, frame.f_lasti)
    names = frame.f_locals
    names.update({n: "forgotten" for n in names if n not in live})
    ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
