"""From a running script's variables to a `State`, and back into the variables of a fresh run.

The walk follows what belongs to training: tensors, modules, optimizers, schedulers, scalers, generators, containers,
numbers, and objects of the script's own classes. Whatever it cannot look into (files, loggers, data sets, functions
without closures) it leaves as it is: a fresh run of the script has made its own. Large things that nobody touched since the
first iteration (the data, as tensors or text) are left out too, by object identity, version counter or fingerprint.

A node of the structure is JSON: null, true, a string, an integer, or one of
    {"keep": 1}            leave what is there             {"ref": path}     the object met before at that path
    {"f": hex} {"i": dec}  float, large integer            {"t": path, ..}   tensor or array, under its path; "on": device
    {"b": hex}             bytes                           {"l"|"u"|"q": []} list, tuple (of "c"), deque
    {"d": [[k, v], ..]}    dictionary                      {"s": [..]}       set
    {"o": class, "a": {}}  object and its attributes       {"opt": class, ..} optimizer: state by parameter, groups
    {"fn": {}}             cells of a closure              {"pass": [..]}    position of a data loader's iterator
    {"dl": {}}             a data loader's parts
    {"rng": kind, ..}      a generator's state
The self-test at preflight decides whether this was enough for a script; the walk itself promises nothing.
"""

from __future__ import annotations

import hashlib
import marshal
import random
import sys
from collections import deque
from collections.abc import Callable
from types import CellType, FunctionType, ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from labapex.errors import MalformedInput
from labapex.proof.clock import Reading
from labapex.proof.instrument import HANDLE, LOOP_PREFIX
from labapex.proof.loaders import Pass
from labapex.proof.state import Buffers, State

KEEP: dict[str, Any] = {"keep": 1}
_LIBRARY_CLASSES = (
    "torch.optim.", "torch.amp.", "torch.cuda.amp.", "torch.nn.", "torch.utils.data.", "argparse", "types", "collections",
)  # fmt: skip
_HOOKS = (
    "_forward_", "_backward_", "_state_dict_", "_load_state_dict_", "_optimizer_", "_zero_grad_", "_is_full_backward",
)  # fmt: skip
_SKIPPED_ATTRIBUTES = {
    "_non_persistent_buffers_set", "_per_optimizer_states", "_compiled_call_impl", "_torchdynamo_wrapper_id", "defaults",
}  # fmt: skip
_LOADER_PARTS = ("dataset", "sampler", "batch_sampler")
_LARGE = 1024  # items from which a container that nobody touched is not stored
_SAFE_INTEGER = 2**53 - 1
_MAX_DEPTH = 200

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
        return State(structure, (buffers or Buffers()).copy(self.tensors), sorted(self.parameters))

    def variables(self, path: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Nodes of a namespace, those that are kept among them: a name that is not there is not bound."""
        return {name: self.node(f"{path}/{name}", value) for name, value in variables.items() if _is_variable(name)}

    def node(self, path: str, value: Any, within: bool = False) -> Any:
        """The node of one value. `within`: inside a module or optimizer, where every tensor is stored."""
        if path.count("/") > _MAX_DEPTH:
            return KEEP
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Reading):
            return KEEP
        kind = type(value)
        if kind is int:
            return value if abs(value) <= _SAFE_INTEGER else {"i": str(value)}
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
        if isinstance(value, tuple | frozenset):  # immutable: which of two equal ones it is makes no difference
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
            if isinstance(value, types):
                return handler
        module = type(value).__module__
        if hasattr(value, "__dict__") and (self.own(module) or f"{module}.".startswith(_LIBRARY_CLASSES)):
            return self._object
        return None

    def _handlers(self) -> tuple[tuple[Any, Handler], ...]:
        return (
            (Tensor, self._tensor),
            (np.ndarray, self._array),
            (torch.optim.Optimizer, self._optimizer),
            (nn.Module, self._object),
            (torch.utils.data.DataLoader, self._loader),
            (Pass, lambda p, v, w: {"pass": v.place()}),
            (dict, self._dict),
            (list, lambda p, v, w: {"l": self._items(p, v, w)}),
            (tuple, self._tuple),
            (deque, lambda p, v, w: {"q": self._items(p, v, w), "max": v.maxlen}),
            ((set, frozenset), self._set),
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
        named = {"c": _class_name(value)} if hasattr(value, "_fields") and self.own(type(value).__module__) else {}
        return {"u": self._items(path, value, within), **named}

    def _dict(self, path: str, value: dict[Any, Any], within: bool) -> Any:
        if not all(_plain_key(k) for k in value):
            return KEEP
        return {"d": [[_key(k), self.node(f"{path}/{k}", v, within)] for k, v in value.items()]}

    def _set(self, path: str, value: set[Any], within: bool) -> Any:
        if not all(_plain_key(v) for v in value):
            return KEEP
        return {"s": sorted((_key(v) for v in value), key=repr), "frozen": isinstance(value, frozenset)}

    def _object(self, path: str, value: Any, within: bool) -> Any:
        within = within or isinstance(value, nn.Module)
        attributes = {
            name: self.node(f"{path}/{name}", attribute, within)
            for name, attribute in value.__dict__.items()
            if name not in _SKIPPED_ATTRIBUTES and not name.startswith(_HOOKS)
        }
        return {"o": _class_name(value), "a": attributes}

    def _loader(self, path: str, value: torch.utils.data.DataLoader[Any], within: bool) -> Any:
        """A loader itself is made anew; a data set or sampler of the script's own may have been told something meanwhile."""
        return {"dl": {name: self.node(f"{path}/{name}", getattr(value, name)) for name in _LOADER_PARTS}}

    def _optimizer(self, path: str, value: torch.optim.Optimizer, within: bool) -> Any:
        states, groups = [], []
        for g, group in enumerate(value.param_groups):
            options = {k: v for k, v in group.items() if k != "params"}
            groups.append({k: self.node(f"{path}/group.{g}/{k}", v, True) for k, v in options.items()})
            for n, parameter in enumerate(group["params"]):
                where = f"{path}/{g}.{n}"
                known = value.state.get(parameter, {})
                slots = [[_key(k), self.node(f"{where}/{k}", v, True)] for k, v in known.items() if _plain_key(k)]
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
            return int(value) if abs(int(value)) <= _SAFE_INTEGER else {"i": str(int(value))}
        return value

    def _function(self, path: str, value: FunctionType, within: bool) -> Any:
        if not self.own(value.__module__ or "") or not value.__closure__:
            return KEEP
        cells = {}
        for name, cell in zip(value.__code__.co_freevars, value.__closure__, strict=True):
            if _filled(cell):
                cells[name] = self.node(f"{path}/{name}", cell.cell_contents)
        return {"fn": cells}


class Restore:
    """Puts a state's nodes back into the variables of a run. `node` returns what is to be bound in their place."""

    def __init__(self, state: State, own: Callable[[str], bool]) -> None:
        self.state = state
        self.own = own
        self.met: dict[str, Any] = {}

    def variables(self, nodes: dict[str, Any], path: str, current: dict[str, Any]) -> dict[str, Any]:
        """New bindings for a namespace."""
        if not all(map(_is_variable, nodes)):
            raise MalformedInput(f"state entry {path} names what is no variable of the script")
        return {name: self.node(node, f"{path}/{name}", current.get(name)) for name, node in nodes.items()}

    def node(self, node: Any, path: str, current: Any) -> Any:
        value = self._node(node, path, current)
        self.met[path] = value
        return value

    def _node(self, node: Any, path: str, current: Any) -> Any:
        if node is None or isinstance(node, bool | int | str):
            return node
        if not isinstance(node, dict) or not node:
            raise MalformedInput(f"state entry {path} is malformed")
        for key, handler in self._handlers.items():
            if key in node:
                return handler(self, node, path, current)
        raise MalformedInput(f"state entry {path} is of a kind that is not known")

    def _keep(self, node: dict[str, Any], path: str, current: Any) -> Any:
        return current

    def _ref(self, node: dict[str, Any], path: str, current: Any) -> Any:
        if node["ref"] not in self.met:
            raise MalformedInput(f"state entry {path} refers to {node['ref']}, which was not met before")
        return self.met[node["ref"]]

    def _tensor(self, node: dict[str, Any], path: str, current: Any) -> Any:
        stored = self.state.tensors[node["t"]]
        if "np" in node:
            kind = np.dtype(node["np"])
            if kind.kind not in "biufc":
                raise MalformedInput(f"state entry {path} is an array of {kind}")
            array = stored.numpy().astype(kind)
            if isinstance(current, np.ndarray) and current.shape == array.shape and current.flags.writeable:
                current[...] = array
                return current
            return array.copy()
        device = _device(node.get("on", "cpu"), path)
        with torch.no_grad():
            fits = (
                isinstance(current, Tensor)
                and current.shape == stored.shape
                and current.dtype == stored.dtype
                and current.device.type == device
                and (current.is_leaf or not current.requires_grad)
            )
            if fits:
                current.data.copy_(stored)
            else:
                current = stored.to(device, copy=True)
        if "p" in node:
            current.requires_grad_(True)
            current.grad = self.node(node["g"], f"{path}.grad", current.grad) if "g" in node else None
        elif isinstance(current, nn.Parameter):  # frozen
            current.requires_grad_(False)
            current.grad = None
        return current

    def _items(self, node: dict[str, Any], path: str, current: Any) -> Any:
        key, kind = next((k, t) for k, t in (("l", list), ("u", tuple), ("q", deque)) if k in node)
        there = list(current) if isinstance(current, kind) else []
        there += [None] * (len(node[key]) - len(there))
        items = [self.node(n, f"{path}/{i}", there[i]) for i, n in enumerate(node[key])]
        if kind is tuple:
            same = isinstance(current, tuple) and list(map(id, items)) == list(map(id, current))
            if same:
                return current
            return self._named(node["c"], path)(*items) if "c" in node else tuple(items)
        if isinstance(current, list | deque) and isinstance(current, kind):
            current.clear()
            current.extend(items)
            return current
        return items if kind is list else deque(items, maxlen=node["max"])

    def _dict(self, node: dict[str, Any], path: str, current: Any) -> Any:
        there = current if isinstance(current, dict) else {}
        items = [(_unkey(k), n) for k, n in node["d"]]
        values = {k: self.node(n, f"{path}/{k}", there.get(k)) for k, n in items}
        there.clear()
        there.update(values)
        return there

    def _set(self, node: dict[str, Any], path: str, current: Any) -> Any:
        values = {_unkey(v) for v in node["s"]}
        if node["frozen"]:
            return frozenset(values)
        if isinstance(current, set):
            current.clear()
            current.update(values)
            return current
        return values

    def _object(self, node: dict[str, Any], path: str, current: Any) -> Any:
        if _class_name(current) != node["o"]:
            current = object.__new__(self._class(node["o"], path))
        self.met[path] = current
        there = current.__dict__
        values = {name: self.node(n, f"{path}/{name}", there.get(name)) for name, n in node["a"].items()}
        for name in [n for n in there if n not in values and n not in _SKIPPED_ATTRIBUTES and not n.startswith(_HOOKS)]:
            del there[name]
        there.update(values)
        return current

    def _named(self, name: str, path: str) -> type:
        cls = self._class(name, path)
        if not issubclass(cls, tuple) or not hasattr(cls, "_fields"):
            raise MalformedInput(f"state entry {path} is of class {name}, which is no named tuple")
        return cls

    def _class(self, name: str, path: str) -> type:
        module, _, qualname = name.partition(":")
        if not (self.own(module) or f"{module}.".startswith(_LIBRARY_CLASSES)) or module not in sys.modules:
            raise MalformedInput(f"state entry {path} is of class {name}, which the script does not have")
        found: Any = sys.modules[module]
        for part in qualname.split("."):
            found = getattr(found, part, None)
        genuine = isinstance(found, type) and (found.__module__, found.__qualname__) == (module, qualname)
        if (
            not isinstance(found, type) or not genuine or hasattr(found, "__del__")
        ):  # nothing may run for an object's end
            raise MalformedInput(f"state entry {path} is of class {name}, which the script does not have")
        return found

    def _optimizer(self, node: dict[str, Any], path: str, current: Any) -> Any:
        if not isinstance(current, torch.optim.Optimizer) or type(current).__qualname__ != node["opt"]:
            raise MalformedInput(f"state entry {path} is an optimizer that the script does not have")
        sizes, there = node["sizes"], current.param_groups
        if sum(sizes) != len(node["state"]) or len(sizes) != len(node["groups"]):
            raise MalformedInput(f"state entry {path}: the optimizer's groups do not add up")
        del there[len(sizes) :]
        there.extend({"params": []} for _ in sizes[len(there) :])  # groups that the script added on its way
        places = [(g, n) for g, size in enumerate(sizes) for n in range(size)]
        before = [list(group["params"]) for group in there]
        for group in there:
            group["params"] = []
        for (g, n), (ours, slots) in zip(places, node["state"], strict=True):
            where = f"{path}/{g}.{n}"
            parameter = self.node(ours, f"{where}/param", before[g][n] if n < len(before[g]) else None)
            there[g]["params"].append(parameter)
            known = current.state.get(parameter, {})
            values = {_unkey(k): self.node(v, f"{where}/{k}", known.get(_unkey(k))) for k, v in slots}
            if values or parameter in current.state:
                current.state[parameter] = values
        for g, (group, nodes) in enumerate(zip(there, node["groups"], strict=True)):
            group.update({k: self.node(v, f"{path}/group.{g}/{k}", group.get(k)) for k, v in nodes.items()})
        return current

    def _generator(self, node: dict[str, Any], path: str, current: Any) -> Any:
        if node["rng"] == "torch":
            current = current if isinstance(current, torch.Generator) else torch.Generator()
            current.set_state(self.state.tensors[node["t"]])
        elif node["rng"] == "numpy":
            current.bit_generator.state = _unplain(node["state"])
        elif node["rng"] == "numpy-legacy":
            name, position, has_gauss, cached = node["rest"]
            keys = self.state.tensors[node["t"]].numpy().astype(np.uint32)
            current.set_state((name, keys, position, has_gauss, float.fromhex(cached["f"])))
        else:
            current.setstate(_unplain(node["state"]))
        return current

    def _function(self, node: dict[str, Any], path: str, current: Any) -> Any:
        if isinstance(current, FunctionType) and current.__closure__:
            cells = dict(zip(current.__code__.co_freevars, current.__closure__, strict=True))
            for name, inner in node["fn"].items():
                if name in cells:
                    there = cells[name].cell_contents if _filled(cells[name]) else None
                    cells[name].cell_contents = self.node(inner, f"{path}/{name}", there)
        return current

    def _loader(self, node: dict[str, Any], path: str, current: Any) -> Any:
        for name in _LOADER_PARTS:
            self.node(node["dl"][name], f"{path}/{name}", getattr(current, name))
        return current

    def _pass(self, node: dict[str, Any], path: str, current: Any) -> Any:
        if not isinstance(current, Pass):
            raise MalformedInput(f"state entry {path} is a loader's iterator that the script does not have yet")
        current.seek(*node["pass"])
        return current

    # A generator's node also has a "t"; so "rng" stands first.
    _handlers: ClassVar[dict[str, Callable[[Restore, dict[str, Any], str, Any], Any]]] = {
        "rng": _generator,
        "keep": _keep,
        "ref": _ref,
        "t": _tensor,
        "f": lambda self, node, path, current: float.fromhex(node["f"]),
        "i": lambda self, node, path, current: int(node["i"]),
        "n": lambda self, node, path, current: np.frombuffer(bytes.fromhex(node["b"]), node["n"])[0],
        "b": lambda self, node, path, current: bytes.fromhex(node["b"]),
        "l": _items,
        "u": _items,
        "q": _items,
        "d": _dict,
        "s": _set,
        "o": _object,
        "opt": _optimizer,
        "fn": _function,
        "pass": _pass,
        "dl": _loader,
    }


def _is_variable(name: str) -> bool:
    """Not one of Python's own names, nor of the instrumentation's."""
    return not (name.startswith("__") and name.endswith("__")) and not name.startswith(LOOP_PREFIX) and name != HANDLE


def stale(variables: dict[str, Any], nodes: dict[str, Any]) -> list[str]:
    """Variables that were not bound yet when the state was captured."""
    return [name for name in variables if name not in nodes and _is_variable(name)]


def _class_name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _device(name: str, path: str) -> str:
    """Where a tensor goes. A verifier without a GPU replays a GPU's run on its CPU."""
    if name not in ("cpu", "cuda"):
        raise MalformedInput(f"state entry {path} is on a device of a kind that is not known")
    return name if name == "cpu" or torch.cuda.is_available() else "cpu"


def _plain_key(key: Any) -> bool:
    return key is None or type(key) in (str, int, float, bool) or (type(key) is tuple and all(map(_plain_key, key)))


def _key(key: Any) -> Any:
    if type(key) is tuple:
        return {"u": [_key(k) for k in key]}
    if type(key) is float:
        return {"f": key.hex()}
    if type(key) is int and abs(key) > _SAFE_INTEGER:
        return {"i": str(key)}
    return key


def _unkey(key: Any) -> Any:
    return tuple(_unkey(k) for k in key["u"]) if isinstance(key, dict) and "u" in key else _number(key)


def _unplain(value: Any) -> Any:
    if isinstance(value, dict) and "d" in value:
        return {k: _unplain(v) for k, v in value["d"]}
    if isinstance(value, dict) and "u" in value:
        return tuple(_unplain(v) for v in value["u"])
    return _number(value)


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return float.fromhex(value["f"]) if "f" in value else int(value["i"])
    return value


def _filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True
