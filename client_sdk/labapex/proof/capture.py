"""From a running script's variables to a `State`. What the nodes mean stands in `nodes`."""

from __future__ import annotations

import hashlib
import marshal
import random
from collections import deque
from collections.abc import Callable
from enum import Enum
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labapex.proof.block import Buffers
from labapex.proof.clock import Reading
from labapex.proof.loaders import Pass
from labapex.proof.nodes import (
    KEEP,
    LIBRARY_CLASSES,
    LOADER_PARTS,
    SAFE_INTEGER,
    class_name,
    in_order,
    is_attribute,
    is_filled,
    is_plain_key,
    is_variable,
    key_node,
)
from labapex.proof.state import State

_LARGE = 1024  # items from which a container that nobody touched is not stored
_MAX_DEPTH = 200
_IMMUTABLE = (tuple, frozenset, range, torch.device, torch.dtype, Enum)

Handler = Callable[[str, Any, bool], Any]


class Memory:
    """What was there at the first iteration, so that what nobody touched since is not stored again and again.

    `changed` is the set of paths that once differed. It only grows, so that a replay that starts from a stored state
    stores the same entries as the run that it repeats.
    """

    def __init__(self, gradients: bool) -> None:
        self.gradients = gradients  # .grad is part of the state
        self.baseline: dict[str, Any] | None = None
        self.changed: set[str] = set()
        self._fresh: dict[str, Any] = {}

    def unchanged(self, path: str, value: Any) -> bool:
        """Whether a large value at `path` is the one that was there at the first capture."""
        if self.baseline is None:
            self._fresh[path] = _token(value)
            return True
        if path in self.changed:
            return False
        if path in self.baseline and _same(self.baseline[path], value):
            return True
        self.changed.add(path)
        return False

    def captured(self) -> None:
        if self.baseline is None:
            self.baseline = self._fresh


def _token(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value, value._version
    if isinstance(value, np.ndarray):
        return value, _fingerprint(value)
    return value if isinstance(value, str | bytes) else _content(value)


def _same(token: Any, value: Any) -> bool:
    if isinstance(value, Tensor):
        return isinstance(token, tuple) and token[0] is value and token[1] == value._version
    if isinstance(value, np.ndarray):
        return isinstance(token, tuple) and token[0] is value and token[1] == _fingerprint(value)
    if not isinstance(value, str | bytes):
        return token is not None and token == _content(value)
    return token is value or (type(token) is type(value) and token == value)


def _content(container: Any) -> bytes | None:
    """A digest of a container's plain values; None where it holds others: then it is walked each time."""
    try:
        return hashlib.sha256(
            marshal.dumps(container if type(container) in (list, dict, set) else list(container), 2)
        ).digest()
    except ValueError:
        return None


def _fingerprint(array: np.ndarray[Any, Any]) -> bytes:
    """A digest of an array; of a sample of its rows where it is large (nothing tells numpy's writes)."""
    if array.nbytes > 1 << 20:
        array = array.reshape(-1)[:: max(1, array.size // 65536)]
    return hashlib.sha256(np.ascontiguousarray(array).tobytes() if array.dtype != object else b"object").digest()


class Capture:
    """One walk over the roots. `state` holds the result after `finish`."""

    def __init__(self, memory: Memory, own: Callable[[str], bool]) -> None:
        self.memory = memory
        self.own = own  # whether a module, by name, belongs to the script
        self.tensors: dict[str, Tensor] = {}
        self.parameters: list[str] = []
        self.seen: dict[int, str] = {}
        self.alive: list[Any] = []  # ids are unique only while their objects live
        self._by_type = self._handlers()
        self._of_type: dict[type, Handler | None] = {}

    def finish(self, structure: dict[str, Any], buffers: Buffers | None = None) -> State:
        """Close the walk: tensors are copied to contiguous CPU memory that the script cannot touch."""
        self.memory.captured()
        self.alive.clear()  # this walk is a cycle of its own handlers: what it met must not wait for the garbage collector
        parameters = sorted(self.parameters)
        return State(structure, (buffers or Buffers()).copy(self.tensors, parameters), parameters)

    def variables(self, path: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Nodes of a namespace, those that are kept among them: a name that is not there is not bound."""
        return {name: self.node(f"{path}/{name}", value) for name, value in in_order(variables, is_variable)}

    def node(self, path: str, value: Any, within: bool = False) -> Any:
        """The node of one value. `within`: inside a module or optimizer, where every tensor is stored."""
        if value is None or value is True or value is False:
            return value
        kind = type(value)
        if kind is int:
            return value if abs(value) <= SAFE_INTEGER else {"i": str(value)}
        if path.count("/") > _MAX_DEPTH:
            return KEEP
        if isinstance(value, Reading):
            return {"clock": 1}
        if kind is float:
            return {"f": value.hex()}
        if kind is str:
            return KEEP if self.memory.unchanged(path, value) else value
        if kind is bytes:
            return KEEP if self.memory.unchanged(path, value) else {"b": value.hex()}
        if isinstance(value, np.generic):
            return self._scalar(path, value)
        if id(value) in self.seen:
            return {"ref": self.seen[id(value)]}
        handler = self._handler(value)
        if handler is None:
            return KEEP
        if isinstance(value, list | dict | set | deque) and len(value) >= _LARGE and self.memory.unchanged(path, value):
            return KEEP
        if isinstance(value, _IMMUTABLE):  # which of two equal ones it is makes no difference
            return handler(path, value, within)
        self.seen[id(value)] = path
        self.alive.append(value)
        node = handler(path, value, within)
        if node == KEEP:
            del self.seen[id(value)]  # a later alias must not refer to what a restore does not visit
        return node

    def _handler(self, value: Any) -> Handler | None:
        kind = type(value)
        if kind not in self._of_type:
            self._of_type[kind] = self._handler_of(value)
        return self._of_type[kind]

    def _handler_of(self, value: Any) -> Handler | None:
        for types, handler in self._by_type:
            if issubclass(type(value), types):  # wrappers pass themselves off as what they wrap
                return handler
        module = type(value).__module__
        if hasattr(value, "__dict__") and (self.own(module) or f"{module}.".startswith(LIBRARY_CLASSES)):
            return self._object
        return None

    def _handlers(self) -> tuple[tuple[Any, Handler], ...]:
        return (
            (Tensor, self._tensor),
            (np.ndarray, self._array),
            (torch.optim.Optimizer, self._optimizer),
            (nn.Module, self._object),
            (torch.utils.data.DataLoader, self._loader),
            (Pass, lambda p, v, w: {"pass": v.place(), "of": self.node(f"{p}/of", v.loader)}),
            (dict, self._dict),
            (list, lambda p, v, w: {"l": self._items(p, v, w)}),
            (tuple, self._tuple),
            (deque, lambda p, v, w: {"q": self._items(p, v, w), "max": v.maxlen}),
            ((set, frozenset), self._set),
            (Enum, self._member),
            (torch.device, lambda p, v, w: {"device": str(v)}),
            (torch.dtype, lambda p, v, w: {"dtype": str(v).removeprefix("torch.")}),
            (range, lambda p, v, w: {"r": [v.start, v.stop, v.step]}),
            (torch.Generator, lambda p, v, w: self._store(p, v.get_state(), {"rng": "torch"})),
            (np.random.Generator, lambda p, v, w: {"rng": "numpy", "state": self._plain(v.bit_generator.state)}),
            (np.random.RandomState, self._random_state),
            (random.Random, lambda p, v, w: {"rng": "python", "state": self._plain(v.getstate())}),
            (FunctionType, self._function),
            ((ModuleType, type), lambda p, v, w: KEEP),
        )

    def _store(self, path: str, tensor: Tensor, extra: dict[str, Any] | None = None) -> dict[str, Any]:
        self.tensors[path] = tensor
        return {"t": path, **(extra or {})}

    def _tensor(self, path: str, value: Tensor, within: bool) -> Any:
        parameter = isinstance(value, nn.Parameter)
        if not (within or parameter) and self.memory.unchanged(path, value):
            return KEEP
        if value.layout != torch.strided or value.is_quantized:
            return KEEP
        node = self._store(path, value)
        if value.device.type != "cpu":
            node["on"] = value.device.type
        if value.requires_grad and value.is_leaf:
            self.parameters.append(path)
            node["p"] = 1
            if self.memory.gradients:
                node["g"] = self.node(f"{path}.grad", value.grad, within=True)
        return node

    def _array(self, path: str, value: np.ndarray[Any, Any], within: bool) -> Any:
        if value.dtype == object or value.dtype.kind in "USV" or (not within and self.memory.unchanged(path, value)):
            return KEEP
        return self._store(path, torch.from_numpy(np.ascontiguousarray(value).copy()), {"np": str(value.dtype)})

    def _scalar(self, path: str, value: np.generic) -> Any:
        return {"n": value.dtype.str, "b": value.tobytes().hex()} if value.dtype.kind in "biufc" else KEEP

    def _items(self, path: str, value: Any, within: bool) -> list[Any]:
        return [self.node(f"{path}/{n}", item, within) for n, item in enumerate(value)]

    def _tuple(self, path: str, value: tuple[Any, ...], within: bool) -> Any:
        named = {"c": class_name(value)} if hasattr(value, "_fields") and self.own(type(value).__module__) else {}
        return {"u": self._items(path, value, within), **named}

    def _dict(self, path: str, value: dict[Any, Any], within: bool) -> Any:
        if not all(is_plain_key(k) for k in value):
            return KEEP
        return {"d": [[key_node(k), self.node(f"{path}/{k}", v, within)] for k, v in value.items()]}

    def _set(self, path: str, value: set[Any], within: bool) -> Any:
        if not all(is_plain_key(v) for v in value):
            return KEEP
        return {"s": sorted((key_node(v) for v in value), key=repr), "frozen": isinstance(value, frozenset)}

    def _object(self, path: str, value: Any, within: bool) -> Any:
        within = within or isinstance(value, nn.Module)
        attributes = {
            name: self.node(f"{path}/{name}", attribute, within)
            for name, attribute in in_order(value.__dict__, is_attribute)
        }
        return {"o": class_name(value), "a": attributes}

    def _loader(self, path: str, value: torch.utils.data.DataLoader[Any], within: bool) -> Any:
        """What decides the batches: a loader may be another one in each epoch, and be told something meanwhile."""
        return {"dl": {name: self.node(f"{path}/{name}", getattr(value, name)) for name in LOADER_PARTS}}

    def _optimizer(self, path: str, value: torch.optim.Optimizer, within: bool) -> Any:
        states, groups = [], []
        for g, group in enumerate(value.param_groups):
            options = {k: v for k, v in group.items() if k != "params"}
            groups.append({k: self.node(f"{path}/group.{g}/{k}", v, True) for k, v in in_order(options)})
            for n, parameter in enumerate(group["params"]):
                where = f"{path}/{g}.{n}"
                known = value.state.get(parameter, {})
                slots = [[key_node(k), self.node(f"{where}/{k}", v, True)] for k, v in known.items() if is_plain_key(k)]
                states.append([self.node(f"{where}/param", parameter, True), slots])
        sizes = [len(group["params"]) for group in value.param_groups]
        return {"opt": type(value).__qualname__, "state": states, "groups": groups, "sizes": sizes}

    def _random_state(self, path: str, value: np.random.RandomState, within: bool) -> Any:
        name, keys, position, has_gauss, cached = value.get_state(legacy=True)
        node = self._store(path, torch.from_numpy(np.asarray(keys, dtype=np.int64)), {"rng": "numpy-legacy"})
        return {**node, "rest": [name, int(position), int(has_gauss), {"f": float(cached).hex()}]}

    def _plain(self, value: Any) -> Any:
        """Nested plain values of a generator's state, without memory: they are always stored."""
        if isinstance(value, dict):
            return {"d": [[k, self._plain(v)] for k, v in value.items()]}
        if isinstance(value, tuple | list):
            return {"u": [self._plain(v) for v in value]}
        if isinstance(value, float):
            return {"f": value.hex()}
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            return int(value) if abs(int(value)) <= SAFE_INTEGER else {"i": str(int(value))}
        return value

    def _member(self, path: str, value: Enum, within: bool) -> Any:
        return {"e": class_name(value), "name": value.name} if self.own(type(value).__module__) else KEEP

    def _function(self, path: str, value: FunctionType, within: bool) -> Any:
        if not self.own(value.__module__ or "") or not value.__closure__:
            return KEEP
        cells = {}
        for name, cell in in_order(dict(zip(value.__code__.co_freevars, value.__closure__, strict=True))):
            if is_filled(cell):
                cells[name] = self.node(f"{path}/{name}", cell.cell_contents)
        return {"fn": cells}
