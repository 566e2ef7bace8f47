"""What a script tells TensorBoard, Weights & Biases or MLflow is heard: their scalars, by name.

A script imports them whether they are there or not. One that came with the job's packages is left as it is, but that it is
heard, and told to stay off the network; for one that is not there a stand-in takes the calls. What a host happens to have
installed does not count: a script must meet the same logger where it is tried, trained and replayed.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from labapex.proof import packages
from labapex.proof.scalars import Scalars
from labapex.proof.standins import STAND_INS, StandIn

NEEDS = {"torch.utils.tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""The modules that scripts import, and the package without which there is none."""

HEARD: dict[str, dict[str, Callable[..., None]]] = {
    "torch.utils.tensorboard.writer": {
        "SummaryWriter.add_scalar": lambda scalars, writer, tag, scalar_value, *_, **__: scalars.one(tag, scalar_value),
        "SummaryWriter.add_scalars": lambda scalars, writer, main_tag, tag_scalar_dict, *_, **__: scalars.each(
            tag_scalar_dict, str(main_tag), "/"
        ),
    },
    "wandb.sdk.wandb_run": {"Run.log": lambda scalars, run, data, *_, **__: scalars.each(data)},
    "mlflow.tracking.fluent": {
        "log_metric": lambda scalars, key, value, *_, **__: scalars.one(key, value),
        "log_metrics": lambda scalars, metrics, *_, **__: scalars.each(metrics),
    },
}
"""Where the loggers themselves take scalars in, and what is heard of a call there."""


def install(told: Callable[[str, float], None]) -> None:
    """Let the loggers that the script will import be heard: `told` gets each scalar's name and value. For good."""
    os.environ["WANDB_MODE"] = "offline"
    sys.meta_path.insert(0, _Finder(Scalars(told)))


class _Finder:
    def __init__(self, scalars: Scalars) -> None:
        self._scalars = scalars
        self._there: dict[str, bool] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        logger = next((each for each in NEEDS if f"{name}.".startswith(f"{each}.")), None)
        if logger is None:
            return None
        if not self._is_there(NEEDS[logger]):
            return importlib.machinery.ModuleSpec(name, _StandIns(self._scalars), is_package=True)
        if name not in HEARD:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Hearing(name, spec.loader.path, self._scalars)
        return spec

    def _is_there(self, package: str) -> bool:
        if package not in self._there:
            spec = importlib.machinery.PathFinder.find_spec(package)
            file = None if spec is None else spec.origin  # a mere folder of that name, of runs, has none
            self._there[package] = file is not None and not packages.of_host(file)
        return self._there[package]


class _StandIns(importlib.abc.Loader):
    """Makes stand-ins for a logger and for whatever is imported from below it."""

    def __init__(self, scalars: Scalars) -> None:
        self._scalars = scalars

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return STAND_INS.get(spec.name, StandIn)(spec.name, self._scalars)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Hearing(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, scalars: Scalars) -> None:
        super().__init__(name, path)
        self._scalars = scalars

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        for place, hear in HEARD[self.name].items():
            owner, _, name = place.rpartition(".")
            _hook(getattr(module, owner) if owner else module, name, hear, self._scalars)


def _hook(owner: Any, name: str, hear: Callable[..., None], scalars: Scalars) -> None:
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def heard(*args: Any, **options: Any) -> Any:
        result = plain(*args, **options)  # first: it says what is wrong with a call
        hear(scalars, *args, **options)
        return result

    setattr(owner, name, heard)
