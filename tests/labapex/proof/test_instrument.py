# ruff: noqa: E501 - programs on one line each
"""Instrumented programs do what they did before, and say so with the same line numbers."""

from __future__ import annotations

import asyncio
import contextlib
import io
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labapex.proof.instrument import HANDLE, LOOP_PREFIX, compile_script
from labapex.proof.loaders import Numbering
from labapex.proof.loops import Each, Loop, Turns, caller, twin


class Observer:
    """Stands where the engine stands and only listens."""

    twin = staticmethod(twin)

    def __init__(self) -> None:
        self.numbering = Numbering("0" * 64)
        self.tops: list[tuple[str, int]] = []
        self.open: list[Loop] = []

    def each(self, name: str, iterable: Any) -> Each:
        self.open.append(loop := Each(self, name, caller(1), iterable))
        return loop

    def turns(self, name: str) -> Turns:
        self.open.append(loop := Turns(self, name, caller(1)))
        return loop

    def top(self, loop: Loop) -> bool:
        self.tops.append((loop.name, loop.count))
        return True

    def left(self, loop: Loop) -> None:
        self.open.remove(loop)

    def reseed(self, step: int) -> None:
        raise AssertionError("nobody seeks here")


def run(source: str) -> tuple[dict[str, Any], str, Observer]:
    """Globals, output and what was observed. Output holds the traceback of an error."""
    observer = Observer()
    names: dict[str, Any] = {"__name__": "script", HANDLE: observer}
    return *execute(compile_script(source, Path("script.py"), "script.py"), names), observer


def execute(code: Any, names: dict[str, Any]) -> tuple[dict[str, Any], str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            exec(code, names)
        except Exception as error:  # noqa: BLE001 - whatever a program raises is compared
            places = [
                (f.lineno, f.name) for f in traceback.extract_tb(error.__traceback__) if f.filename == "script.py"
            ]
            print(type(error).__name__, error, places)
    ours = {n: v for n, v in names.items() if not n.startswith((LOOP_PREFIX, "__")) and isinstance(v, int | list | str)}
    return ours, out.getvalue()


def plainly(source: str) -> tuple[dict[str, Any], str]:
    return execute(compile(source, "script.py", "exec"), {"__name__": "script"})


PROGRAMS = {
    "for with else": "for i in range(3):\n    print(i)\nelse:\n    print('done', i)\n",
    "break skips else": "for i in range(9):\n    if i == 2:\n        break\nelse:\n    print('no')\nprint(i)\n",
    "continue": "for i in range(5):\n    if i % 2:\n        continue\n    print(i)\n",
    "while with else": "n = 0\nwhile n < 3:\n    n += 1\nelse:\n    print('else', n)\n",
    "while with a walrus": "items = [3, 2, 0, 1]\nwhile (x := items.pop(0)):\n    print(x)\nprint(items)\n",
    "nested": "for i in range(3):\n    for j in range(i):\n        while j:\n            j -= 1\n            print(i, j)\n",
    "break of the inner": "for i in range(3):\n    for j in range(9):\n        if j == i:\n            break\n    print(i, j)\n",
    "return from a loop": "def f():\n    for i in range(9):\n        if i == 4:\n            return i\nprint(f(), f())\n",
    "error in a body": "for i in range(3):\n    x = 1\n    print(1 // (1 - i))\n",
    "error in a head": "for i in [1, 2,\n          1 // 0]:\n    pass\n",
    "error in a condition": "n = 2\nwhile 1 // n:\n    n -= 1\n",
    "caught inside": "for i in range(3):\n    try:\n        1 // i\n    except ZeroDivisionError as e:\n        print(e)\n",
    "finally": "def f():\n    for i in range(3):\n        try:\n            return i\n        finally:\n            print('f')\nf()\n",
    "generator": "def g(n):\n    for i in range(n):\n        got = yield i\n        print(got)\nx = g(3)\nprint(next(x), x.send(7), next(x))\nx.close()\n",
    "generator left open": "def g():\n    while True:\n        yield 1\nx = g()\nprint(next(x))\nx.close()\n",
    "yield from": "def g():\n    for i in 'ab':\n        yield from (c for c in i * 2)\nprint(list(g()))\n",
    "a list that grows": "items = [1]\nfor i in items:\n    if i < 5:\n        items.append(i + 1)\nprint(items)\n",
    "enumerate from one": "for n, x in enumerate('ab', start=1):\n    print(n, x)\n",
    "enumerate of zip": "for n, (a, b) in enumerate(zip('ab', [1, 2, 3])):\n    print(n, a, b)\n",
    "enumerate that is kept": "e = enumerate('abcd')\nprint(next(e))\nfor n, x in e:\n    break\nfor n, x in e:\n    print(n, x)\nprint(next(e, None))\n",
    "enumerate within a call": "for n, x in iter(enumerate(iterable='ab', start=2)):\n    print(n, x)\n",
    "zip of one iterator with itself": "i = iter('abcdef')\nfor pair in list(zip(i, i)):\n    print(pair)\n",
    "strict zip": "for a, b in zip('ab', 'abc', strict=True):\n    print(a, b)\n",
    "a dictionary": "for k, v in {'a': 1}.items():\n    print(k, v)\n",
    "starred target": "for a, *b in ['abc', 'de']:\n    print(a, b)\n",
    "an attribute as target": "class A: pass\na = A()\nfor a.x in range(3):\n    pass\nprint(a.x)\n",
    "class body": "class A:\n    total = 0\n    for i in range(3):\n        total += i\n    def f(self):\n        for i in range(2):\n            yield i\nprint(A.total, list(A().f()), sorted(n for n in vars(A) if n[:2] != '__'))\n",
    "comprehensions": "print([i for i in range(3)], {i: j for i, j in zip('ab', 'cd')}, sum(i for i in (1, 2)))\n",
    "recursion": "def f(n):\n    for i in range(n):\n        f(n - 1)\n        print(n, i)\nf(3)\n",
    "nonlocal": "def f():\n    n = 0\n    def g():\n        nonlocal n\n        while n < 3:\n            n += 1\n    g()\n    return n\nprint(f())\n",
    "globals": "n = 0\ndef f():\n    global n\n    for n in range(3):\n        pass\nf()\nprint(n)\n",
    "not iterable": "for i in 5:\n    pass\n",
    "own iterator": "class I:\n    def __init__(s): s.n = 0\n    def __iter__(s): return s\n    def __next__(s):\n        s.n += 1\n        if s.n > 3: raise StopIteration\n        return s.n\nfor i in I():\n    print(i)\n",
    "del of the variable": "for i in range(2):\n    del i\nprint('i' in globals())\n",
    "future and docstring": "'''doc'''\nfrom __future__ import annotations\nfor i in range(2):\n    x: int = i\nprint(x, __doc__)\n",
    "shadowed enumerate": "def enumerate(x):\n    return [(9, v) for v in x]\nfor n, v in enumerate('a'):\n    print(n, v)\n",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_does_what_it_did_before(name: str) -> None:
    source = PROGRAMS[name]
    *got, observer = run(source)
    assert tuple(got) == plainly(source)
    assert observer.open == []  # every loop was left, by whatever way


def test_asynchronous_programs_are_left_alone() -> None:
    source = (
        "import asyncio\nasync def numbers():\n    for i in range(3):\n        yield i\n"
        "async def main():\n    async for i in numbers():\n        await asyncio.sleep(0)\n        print(i)\nasyncio.run(main())\n"
    )
    asyncio.set_event_loop(None)
    assert run(source)[1] == plainly(source)[1] == "0\n1\n2\n"


def test_every_turn_is_announced_with_the_loops_line() -> None:
    _, _, observer = run("for i in range(2):\n    n = 1\n    while n:\n        n -= 1\n")
    inner = [("script.py:3", 0), ("script.py:3", 1)]
    assert observer.tops == [("script.py:1", 0), *inner, ("script.py:1", 1), *inner, ("script.py:1", 2)]


def test_a_syntax_error_is_the_scripts_own() -> None:
    with pytest.raises(SyntaxError) as caught:
        compile_script("x = 1\nfor in y:\n", Path("script.py"), "script.py")
    assert caught.value.lineno == 2


def indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


simple = st.sampled_from(
    ["n += 1", "print(n)", "if n % 3 == 0:\n    break", "if n % 2:\n    continue", "k = n", "n = n * 2 % 7"]
)


def loop(body: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    heads = st.sampled_from(["for i in range(4):", "for j, i in enumerate((3, 1, 2)):", "for i, j in zip('ab', 'cd'):"])
    tails = st.sampled_from([[], ["else:", "    print('else', n)"]])
    bounded = st.builds(lambda h, b, t: [h, *indented(b), *t], heads, body, tails)
    return bounded | st.builds(
        lambda b, t: ["t@ = iter((1, 2, 3))", "while next(t@, None):", *indented(b), *t], body, tails
    )


blocks = st.recursive(
    st.lists(simple, min_size=1, max_size=3).map(lambda parts: [line for p in parts for line in p.split("\n")]),
    lambda inner: st.lists(loop(inner), min_size=1, max_size=2).map(lambda parts: [line for p in parts for line in p]),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(body=loop(blocks))
def test_random_programs_do_what_they_did_before(body: list[str]) -> None:
    source = "\n".join(["n = 1", "k = 0", *body, "print(n, k)", ""])
    for number in range(source.count("t@") // 2):  # each `while` ends by a variable of its own
        source = source.replace("t@", f"t{number}", 2)
    *got, observer = run(source)
    assert tuple(got) == plainly(source)
    assert observer.open == []
