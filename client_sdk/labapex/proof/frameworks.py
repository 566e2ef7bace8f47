"""Training libraries that work without a word in the script: Accelerate, Fabric, the Trainers of Hugging Face and Lightning.

Their objects are looked into as the script's are, and a loop of theirs is instrumented: it is named by the module's path
("transformers/trainer.py:1880"), wherever the library is installed. The loaders that they wrap are read by generators, whose
position nobody can set: here each becomes a `Pass` that lends its batches to such a generator.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from labapex.proof.instrument import compile_script
from labapex.proof.loaders import Numbering, Pass

PACKAGES = ("accelerate", "transformers", "lightning", "lightning_fabric")
ASIDE = tuple(
    f"lightning.pytorch.{name}" for name in ("callbacks.progress", "callbacks.model_checkpoint", "loggers", "profilers")
)  # modules whose objects show or write down what happens, and decide nothing
LOOPS = {
    "transformers.trainer": frozenset({"epoch", "update_step"}),
    "lightning.pytorch.loops.fit_loop": frozenset({"while"}),
    "lightning.pytorch.loops.training_epoch_loop": frozenset({"while"}),
}  # modules, and what their training loops are: of these variables, or `while`
OTHER_NAMES = {"pytorch_lightning": "lightning.pytorch"}  # packages of the same code, that are not instrumented


@dataclass(frozen=True)
class Wrapper:
    """A library's class round a loader: the attribute that holds the loader, and how to take back that a pass was begun."""

    loader: str
    take_back: Callable[[Any], None]


def _uncount(wrapper: Any) -> None:
    wrapper._num_iter_calls -= 1


WRAPPERS = {
    "accelerate.data_loader:DataLoaderShard": Wrapper("base_dataloader", lambda wrapper: wrapper.end()),
    "accelerate.data_loader:DataLoaderDispatcher": Wrapper("base_dataloader", lambda wrapper: wrapper.end()),
    "lightning.fabric.wrappers:_FabricDataLoader": Wrapper("_dataloader", _uncount),
    "lightning_fabric.wrappers:_FabricDataLoader": Wrapper("_dataloader", _uncount),
}


def known(module: str) -> bool:
    """Whether a module is one of these libraries', and its objects are looked into."""
    return module.partition(".")[0] in PACKAGES and not module.startswith(ASIDE)


def other_name(frame: FrameType | None) -> tuple[str, str] | None:
    """The package at work at `frame` under a name that is not known, and the name that is, if there is one."""
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in OTHER_NAMES:
            return package, OTHER_NAMES[package]
        frame = frame.f_back
    return None


def length(frame: FrameType, iterable: Any) -> int | None:
    """The turns of an epoch of a library's loop over `iterable`; None where nothing tells them."""
    if not known(frame.f_globals.get("__name__", "")):
        return None
    if isinstance(iterable, range):
        return len(iterable)
    batches = getattr(getattr(frame.f_locals.get("self"), "trainer", None), "num_training_batches", None)
    return batches if isinstance(batches, int) else None


def lazy(loop: str) -> bool:
    """Whether the library makes objects in its loop's first turn, such as metrics, that no state can make."""
    return loop.startswith("lightning/")


class WrappedPass(Pass):
    """A pass over a wrapped loader. The library's generator may read ahead: what counts is what it hands out."""

    def __init__(self, wrapper: Any, kind: Wrapper, read: Callable[[Any], Iterator[Any]], numbering: Numbering) -> None:
        super().__init__(getattr(wrapper, kind.loader), numbering)
        self.wrapper = wrapper
        self._kind = kind
        self._read = read

    def _begin(self) -> Iterator[Any]:
        """The library's batches from `position` on.

        In the middle of a pass its generator begins a second time, one batch early: so it knows again whether it is at the end.
        """
        again = self.position > 0
        if again:
            self._kind.take_back(self.wrapper)
            self.position -= 1
        self.numbering.lent = self._batches_of_the_loader()
        batches = self._read(self.wrapper)
        if again:
            next(batches)
            self.position += 1
        return batches

    def _batches_of_the_loader(self) -> Iterator[Any]:
        yield from super()._begin()  # begins when first asked: by then the library has told the sampler which epoch it is


def install(numbering: Numbering) -> None:
    """Let these libraries' modules be hooked: those with loaders now, if they are there, and all when the script imports them."""
    sys.meta_path.insert(0, _Finder(numbering))
    for name in {place.partition(":")[0] for place in WRAPPERS} & set(sys.modules):
        _hook_all(sys.modules[name], numbering)


class _Finder:
    def __init__(self, numbering: Numbering) -> None:
        self.numbering = numbering
        self.wrappers = {name.partition(":")[0] for name in WRAPPERS}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in LOOPS and name not in self.wrappers:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path, self.numbering)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, numbering: Numbering) -> None:
        super().__init__(name, path)
        self.numbering = numbering

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:  # type: ignore[override]
        if self.name not in LOOPS:
            return super().source_to_code(data, path)
        return compile_script(data, Path(path), f"{self.name.replace('.', '/')}.py", LOOPS[self.name])

    def path_stats(self, path: Any) -> Any:
        if self.name in LOOPS:
            raise OSError("instrumented modules are always compiled from their source")
        return super().path_stats(path)

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _hook_all(module, self.numbering)


def _hook_all(module: ModuleType, numbering: Numbering) -> None:
    for place, kind in WRAPPERS.items():
        name, _, cls = place.partition(":")
        if name == module.__name__ and hasattr(module, cls):
            _hook(getattr(module, cls), kind, numbering)


def _hook(cls: Any, kind: Wrapper, numbering: Numbering) -> None:
    read = cls.__iter__
    cls.__iter__ = lambda self: WrappedPass(self, kind, read, numbering)
