"""Which frames, modules and variables of this process are the script's own, and which of them are still read.

The script's are those whose code lies in its folder; of training libraries (`frameworks`) the functions that run its loop.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from labapex.proof import frameworks
from labapex.proof.liveness import live_names


class Scope:
    """`root` is the script's folder; modules in `further` count as the script's when objects are looked into."""

    def __init__(self, root: Path, further: set[str]) -> None:
        self.root = root
        self._further = further
        self._places: dict[str, bool] = {}  # file names, and whether they are in the script's folder
        self._loaded: dict[
            str, ModuleType
        ] = {}  # as they were looked through: thousands, of which few are the script's
        self._names: list[str] = []  # of those that are the script's

    def calls(self, frame: FrameType | None) -> list[str]:
        """Where the functions that led to a frame were called, outermost first, of the script and of libraries."""
        own = [f"{f.f_code.co_qualname}:{f.f_lineno}" for f in _outwards(frame and frame.f_back) if self._ours(f)]
        return own[::-1]

    def frames(self, frame: FrameType | None) -> list[FrameType]:
        """Functions of the script and of training libraries from `frame` outwards, outermost first; module code is none."""
        return [f for f in _outwards(frame) if self._ours(f) and f.f_code.co_name != "<module>"][::-1]

    def modules(self, frame: FrameType | None) -> dict[str, dict[str, Any]]:
        """Globals of the script's modules; of one whose own code is running, up from `frame`, only those that are still read."""
        running = {
            id(f.f_globals): live_names(f.f_code, f.f_lasti) for f in _outwards(frame) if f.f_code.co_name == "<module>"
        }
        if sys.modules != self._loaded:
            self._loaded = dict(sys.modules)
            self._names = [name for name, module in self._loaded.items() if module is not None and self._own(name)]
        found: dict[str, dict[str, Any]] = {}
        for name in self._names:
            variables = self._loaded[name].__dict__
            live = running.get(id(variables))
            found[name] = {k: v for k, v in variables.items() if live is None or k in live}
        return found

    def known(self, module: str) -> bool:
        """Whether objects of this module's classes are looked into."""
        return self._own(module) or frameworks.known(module) or module in self._further

    def _own(self, module: str) -> bool:
        file = getattr(sys.modules.get(module), "__file__", None)
        return file is not None and self._inside(file)

    def _ours(self, frame: FrameType) -> bool:
        return self._inside(frame.f_code.co_filename) or frameworks.known(frame.f_globals.get("__name__", ""))

    def _inside(self, file: str) -> bool:
        """Asked for each module at each boundary; a path is taken apart only once."""
        if file not in self._places:
            self._places[file] = Path(file).is_relative_to(self.root)
        return self._places[file]


def live(frame: FrameType) -> dict[str, Any]:
    """The local variables that a suspended frame will still read."""
    names = live_names(frame.f_code, frame.f_lasti)
    return {name: value for name, value in frame.f_locals.items() if name in names}


def bind(frame: FrameType, values: dict[str, Any], unbound: list[str]) -> None:
    """Assign local variables of a frame that is suspended in a call, cells included, and unbind others."""
    names = frame.f_locals  # each access reads the frame anew
    names.update(values)
    for name in unbound:
        del names[name]
    ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(1))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
