"""The handles that an instrumented script's loops hold: they count turns, announce each loop's top, and can be sought."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any, Protocol

from torch.utils.data import DataLoader

from labapex.proof.frameworks import WRAPPERS
from labapex.proof.loaders import Numbering, Pass
from labapex.proof.nodes import class_name


class Watcher(Protocol):
    """Who is told of loops: the engine."""

    numbering: Numbering

    def top(self, loop: Loop) -> bool:
        """`loop` is about to begin its next turn, or to end. False: it is to end."""

    def left(self, loop: Loop) -> None:
        """`loop` ended, by whatever way."""

    def reseed(self, step: int) -> None:
        """Bring about the randomness that iteration `step` begins with."""


class Loop:
    """A loop that runs. `count` is the number of turns begun."""

    def __init__(self, watcher: Watcher, name: str, frame: FrameType) -> None:
        self.watcher = watcher
        self.name = name
        self.frame: FrameType | None = frame
        self.count = 0
        self.began: int | None = None  # the iteration that the first turn was, where turns are iterations
        self.passes: list[Pass] = []

    def exit(self) -> None:
        self.watcher.left(self)
        self.frame = None  # frame -> local variable -> loop -> frame would be a cycle
        self.passes.clear()

    def place(self) -> list[Any]:
        return [self.name, self.count, [p.place() for p in self.passes]]

    def seek(self, count: int, passes: list[list[Any]], began: int | None) -> bool:
        """Go on as if `count` turns had begun, the first of them as iteration `began`. False where only a fresh run can."""
        self.count, self.began = count, began
        return True


class Turns(Loop):
    """A `while` loop."""

    def turn(self) -> bool:
        if not self.watcher.top(self):
            return False
        self.count += 1
        return True


class Each(Loop):
    """A `for` loop."""

    def __init__(self, watcher: Watcher, name: str, frame: FrameType, iterable: Any) -> None:
        super().__init__(watcher, name, frame)
        self.iterable = iterable
        with _Collecting(self):
            self.iterator = iter(iterable)

    def exit(self) -> None:
        super().exit()
        self.iterator = iter(())  # lets go of a loader's worker processes

    def __iter__(self) -> Each:
        return self

    def __next__(self) -> Any:
        if not self.watcher.top(self):
            raise StopIteration
        with _Collecting(self):
            item = next(self.iterator)
        self.count += 1
        return item

    def seek(self, count: int, passes: list[list[Any]], began: int | None) -> bool:
        numbering = self.watcher.numbering
        again = renew(self.iterable)
        if not again and self.count and (count < self.count or passes or began != self.began):
            return False  # a generator cannot go back
        self.began = began
        kept = dict(numbering.passes)
        numbering.passes.update({stream: number for stream, number, _ in reversed(passes)})  # the first of each stream
        if again:
            self.passes.clear()
            with _Collecting(self):
                self.iterator = iter(self.iterable)
            self.count = 0
        numbering.skipping = _takes_placeholders(self.iterable)
        try:
            with _Collecting(self):
                while self.count < count:
                    if began is not None and not numbering.skipping:
                        self.watcher.reseed(began + self.count)  # the iterator may draw from it
                    next(self.iterator)
                    self.count += 1
        except StopIteration:
            return False
        finally:
            numbering.skipping = False
        if len(self.passes) != len(passes):
            return False
        for each, place in zip(self.passes, passes, strict=True):
            each.seek(*place)
        numbering.passes = kept
        return True


class Twin:
    """`enumerate(..)` or `zip(..)` that begins when it is first asked, and that can begin again."""

    def __init__(self, function: Any, *args: Any, **options: Any) -> None:
        self._begin = partial(function, *args, **options)
        self.iterables = args[:1] if function is builtins.enumerate else args
        self._running: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self._running is None:
            self._running = self._begin()
        return self._running

    def __next__(self) -> Any:
        return next(iter(self))

    def renew(self) -> None:
        self._running = None


def twin(function: Any) -> Any:
    """What stands for a function in a script: something that can be started again, where we have it."""
    return (
        partial(Twin, function) if any(function is known for known in (builtins.enumerate, builtins.zip)) else function
    )


class _Collecting:
    """While a loop's iterator is made or advanced, passes over loaders that are created belong to this loop."""

    stack: list[Loop] = []  # noqa: RUF012 - one for the process, on purpose: loops nest

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def __enter__(self) -> None:
        self.stack.append(self.loop)

    def __exit__(self, *exc: object) -> None:
        self.stack.pop()


def collect(each: Pass) -> str:
    """A pass was created: it belongs to the loop whose iterator is at work, if there is one. Returns that loop's name."""
    if not _Collecting.stack:
        return ""
    _Collecting.stack[-1].passes.append(each)
    return _Collecting.stack[-1].name


def collecting() -> Loop | None:
    """The loop whose iterator is at work right now."""
    return _Collecting.stack[-1] if _Collecting.stack else None


def _takes_placeholders(iterable: Any) -> bool:
    """Whether what stands between a loop and its loaders hands items on without looking at them."""
    return all(isinstance(i, range | list | tuple) or _is_loader(i) for i in _sources(iterable))


def renew(iterable: Any) -> bool:
    """Let the next `iter()` of it start anew. False where that cannot be: of an iterator that is not ours."""
    if isinstance(iterable, Twin):
        iterable.renew()
    return all(not isinstance(i, Iterator) for i in _sources(iterable)) and all(map(renew, _inner(iterable)))


def _sources(iterable: Any) -> list[Any]:
    """What is read in the end, where nothing between changes an item."""
    inner = _inner(iterable)
    return [source for each in inner for source in _sources(each)] if inner else [iterable]


def _inner(iterable: Any) -> tuple[Any, ...]:
    if isinstance(iterable, Twin):
        return iterable.iterables
    transparent = type(iterable).__module__ == "labapex.proof.declared" or type(iterable).__module__.startswith("tqdm")
    return (iterable.iterable,) if transparent else ()


def _is_loader(iterable: Any) -> bool:
    return type(iterable).__iter__ is DataLoader.__iter__ or class_name(iterable) in WRAPPERS


def active(loops: dict[int, list[Loop]], frame: FrameType | None) -> list[Loop]:
    """The loops that run right now as seen from `frame`, outermost first: those of the frames on the call stack."""
    found: list[Loop] = []
    while frame is not None:
        found[:0] = loops.get(id(frame), [])
        frame = frame.f_back
    return found


def caller(depth: int) -> FrameType:
    return sys._getframe(depth + 1)
