"""Stand-ins for loggers that are not there: they take every call, keep the scalars, and say once what they do not keep."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from labapex.proof.scalars import Scalars

_HARMLESS = {
    "_label", "close", "define_metric", "flush", "log_param", "log_params", "login", "set_experiment", "set_tag", "set_tags",
    "set_tracking_uri",
}  # fmt: skip
"""Calls with which no figure is lost."""


class Quiet:
    """Stands for anything of a logger's that is not kept: may be called, entered, indexed, gone through, derived from."""

    def __init__(self, name: str, scalars: Scalars) -> None:
        self._labapex_name = name
        self._labapex_scalars = scalars

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_labapex"):  # derived from, and not initialized
            raise AttributeError(name)
        return _quiet(self._labapex_name, name, self._labapex_scalars)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if len(args) == 1 and not options and isinstance(args[0], FunctionType | type):
            return args[0]  # it decorates
        return self

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __getitem__(self, key: Any) -> Quiet:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return ()

    def __instancecheck__(self, other: Any) -> bool:
        return False


def _quiet(owner: str, name: str, scalars: Scalars) -> Quiet:
    if name.startswith("__"):  # what Python asks objects for
        raise AttributeError(name)
    if name not in _HARMLESS:
        scalars.say(f"{owner}.{name}", f"{owner}.{name} does nothing here: only scalars are kept")
    return Quiet(f"{owner}.{name}", scalars)


class StandIn(ModuleType):
    """A module of a logger of which nothing is kept."""

    __version__ = "0"

    def __init__(self, name: str, scalars: Scalars) -> None:
        super().__init__(name)
        self._labapex_scalars = scalars

    def __getattr__(self, name: str) -> Any:
        return _quiet(self.__name__, name, self._labapex_scalars)


class Config(dict[str, Any]):
    """Settings of a run, as items and as attributes: the script reads them back."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the run's config has no '{name}'") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def update(self, settings: Any = (), allow_val_change: bool | None = None, **more: Any) -> None:  # type: ignore[override]
        """`settings`: a dictionary, or parsed arguments."""
        super().update(vars(settings) if isinstance(settings, Namespace) else settings, **more)

    def setdefaults(self, settings: Mapping[str, Any]) -> None:
        super().update({**settings, **self})


class TensorBoard(StandIn):
    def __init__(self, name: str, scalars: Scalars) -> None:
        super().__init__(name, scalars)

        class SummaryWriter(Quiet):
            def __init__(self, log_dir: Any = None, *args: Any, **options: Any) -> None:
                super().__init__("tensorboard.SummaryWriter", scalars)
                self.log_dir = str(log_dir or "runs")

            def add_scalar(self, tag: Any, scalar_value: Any, *args: Any, **options: Any) -> None:
                scalars.one(tag, scalar_value)

            def add_scalars(self, main_tag: Any, tag_scalar_dict: Any, *args: Any, **options: Any) -> None:
                scalars.each(tag_scalar_dict, str(main_tag), "/")

        self.SummaryWriter = SummaryWriter


class WeightsAndBiases(StandIn):
    def __init__(self, name: str, scalars: Scalars) -> None:
        super().__init__(name, scalars)
        self.config = Config()
        self.summary: dict[str, Any] = {}
        self.run: Run | None = None

    def init(self, *args: Any, config: Any = None, **options: Any) -> Run:
        if isinstance(config, str):
            self._labapex_scalars.say("config", "wandb.init reads no file for its config here")
        elif config is not None:
            self.config.update(config)
        self.run = Run(self, **options)
        return self.run

    def log(self, data: Any, *args: Any, **options: Any) -> None:
        self._labapex_scalars.each(data)

    def finish(self, *args: Any, **options: Any) -> None:
        self.run = None


class Run(Quiet):
    """What `wandb.init` gives back."""

    def __init__(self, wandb: WeightsAndBiases, **options: Any) -> None:
        super().__init__("wandb.run", wandb._labapex_scalars)
        self.config, self.summary, self.log, self.finish = wandb.config, wandb.summary, wandb.log, wandb.finish
        self.project, self.entity = options.get("project"), options.get("entity")
        self.name, self.id = options.get("name") or "labapex", options.get("id") or "labapex"
        self.dir, self.url = ".", None

    def __exit__(self, *error: object) -> None:
        self.finish()


class MLflow(StandIn):
    def __init__(self, name: str, scalars: Scalars) -> None:
        super().__init__(name, scalars)
        self._active: ActiveRun | None = None

    def log_metric(self, key: Any, value: Any, *args: Any, **options: Any) -> None:
        self._labapex_scalars.one(key, value)

    def log_metrics(self, metrics: Any, *args: Any, **options: Any) -> None:
        self._labapex_scalars.each(metrics)

    def start_run(self, *args: Any, **options: Any) -> ActiveRun:
        self._active = ActiveRun(self)
        return self._active

    def active_run(self) -> ActiveRun | None:
        return self._active

    def end_run(self, *args: Any, **options: Any) -> None:
        self._active = None


class ActiveRun(Quiet):
    """What `mlflow.start_run` gives back."""

    def __init__(self, mlflow: MLflow) -> None:
        super().__init__("mlflow.run", mlflow._labapex_scalars)
        self._end = mlflow.end_run
        self.info = ModuleType("info")
        vars(self.info).update(run_id="labapex", run_name="labapex", experiment_id="0", status="RUNNING")

    def __exit__(self, *error: object) -> None:
        self._end()


STAND_INS: Mapping[str, Callable[[str, Scalars], StandIn]] = {
    "torch.utils.tensorboard": TensorBoard,
    "torch.utils.tensorboard.writer": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
