"""From a `State` back into the variables of a fresh run. A state comes from a worker: what does not fit is refused."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from enum import Enum
from types import FunctionType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from labapex.errors import MalformedInput
from labapex.proof.clock import Reading
from labapex.proof.loaders import Pass
from labapex.proof.nodes import (
    LIBRARY_CLASSES,
    LOADER_PARTS,
    class_name,
    is_attribute,
    is_filled,
    is_variable,
    unkey,
    unplain,
)
from labapex.proof.state import State

_FILLED = {"t", "l", "q", "d", "s", "o"}  # kinds of nodes that are put into the object that is there


class Restore:
    """Puts a state's nodes back into the variables of a run. `node` returns what is to be bound in their place."""

    def __init__(self, state: State, own: Callable[[str], bool]) -> None:
        self.state = state
        self.own = own
        self.met: dict[str, Any] = {}
        self.taken: dict[int, Any] = {}  # by id: alive, so that it stays theirs

    def variables(self, nodes: dict[str, Any], path: str, current: dict[str, Any]) -> dict[str, Any]:
        """New bindings for a namespace."""
        if not all(map(is_variable, nodes)):
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
                return handler(self, node, path, self._free(current) if key in _FILLED else current)
        raise MalformedInput(f"state entry {path} is of a kind that is not known")

    def _free(self, current: Any) -> Any:
        """An object of the run that may be filled, or None where it was: what is one object now may have been two."""
        if id(current) in self.taken:
            return None
        self.taken[id(current)] = current
        return current

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
        items = [(unkey(k), n) for k, n in node["d"]]
        values = {k: self.node(n, f"{path}/{k}", there.get(k)) for k, n in items}
        there.clear()
        there.update(values)
        return there

    def _set(self, node: dict[str, Any], path: str, current: Any) -> Any:
        values = {unkey(v) for v in node["s"]}
        if node["frozen"]:
            return frozenset(values)
        if isinstance(current, set):
            current.clear()
            current.update(values)
            return current
        return values

    def _object(self, node: dict[str, Any], path: str, current: Any) -> Any:
        if class_name(current) != node["o"]:
            current = object.__new__(self._class(node["o"], path))
        self.met[path] = current
        there = current.__dict__
        values = {name: self.node(n, f"{path}/{name}", there.get(name)) for name, n in node["a"].items()}
        for name in [n for n in there if n not in values and is_attribute(n)]:
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
        if not (self.own(module) or f"{module}.".startswith(LIBRARY_CLASSES)) or module not in sys.modules:
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
            values = {unkey(k): self.node(v, f"{where}/{k}", known.get(unkey(k))) for k, v in slots}
            if values or parameter in current.state:
                current.state[parameter] = values
        for g, (group, nodes) in enumerate(zip(there, node["groups"], strict=True)):
            group.update({k: self.node(v, f"{path}/group.{g}/{k}", group.get(k)) for k, v in nodes.items()})
        return current

    def _generator(self, node: dict[str, Any], path: str, current: Any) -> Any:
        if node["rng"] == "torch":
            current = current if isinstance(current, torch.Generator) else torch.Generator()
            current.set_state(self.state.tensors[node["t"]].clone())  # torch reads it as words, which must be aligned
        elif node["rng"] == "numpy":
            current.bit_generator.state = unplain(node["state"])
        elif node["rng"] == "numpy-legacy":
            name, position, has_gauss, cached = node["rest"]
            keys = self.state.tensors[node["t"]].numpy().astype(np.uint32)
            current.set_state((name, keys, position, has_gauss, float.fromhex(cached["f"])))
        else:
            current.setstate(unplain(node["state"]))
        return current

    def _dtype(self, node: dict[str, Any], path: str, current: Any) -> Any:
        found = getattr(torch, str(node["dtype"]), None)
        if not isinstance(found, torch.dtype):
            raise MalformedInput(f"state entry {path} is of a type that torch does not have")
        return found

    def _member(self, node: dict[str, Any], path: str, current: Any) -> Any:
        cls = self._class(node["e"], path)
        if not issubclass(cls, Enum):
            raise MalformedInput(f"state entry {path} is of class {node['e']}, which is no enumeration")
        return cls[node["name"]]

    def _function(self, node: dict[str, Any], path: str, current: Any) -> Any:
        if isinstance(current, FunctionType) and current.__closure__:
            cells = dict(zip(current.__code__.co_freevars, current.__closure__, strict=True))
            for name, inner in node["fn"].items():
                if name in cells:
                    there = cells[name].cell_contents if is_filled(cells[name]) else None
                    cells[name].cell_contents = self.node(inner, f"{path}/{name}", there)
        return current

    def _loader(self, node: dict[str, Any], path: str, current: Any) -> Any:
        if type(current) is not DataLoader:
            current = object.__new__(
                DataLoader
            )  # made in the run: kept for what refers to it, too bare to be read again
        there = current.__dict__
        parts = {name: self.node(node["dl"][name], f"{path}/{name}", there.get(name)) for name in LOADER_PARTS}
        current.__dict__.update(parts, _iterator=None)  # processes that live on know the former data set
        return current

    def _pass(self, node: dict[str, Any], path: str, current: Any) -> Any:
        if not isinstance(current, Pass):
            raise MalformedInput(f"state entry {path} is a loader's iterator that the script does not have yet")
        current.seek(*node["pass"])
        loader = self.node(node["of"], f"{path}/of", current.loader)
        if not isinstance(loader, DataLoader):
            raise MalformedInput(f"state entry {path} reads what is no data loader")
        current.loader = loader
        return current

    # A generator's node also has a "t"; so "rng" stands first.
    _handlers: ClassVar[dict[str, Callable[[Restore, dict[str, Any], str, Any], Any]]] = {
        "rng": _generator,
        "keep": _keep,
        "clock": lambda self, node, path, current: current if isinstance(current, Reading) else Reading(),
        "ref": _ref,
        "t": _tensor,
        "f": lambda self, node, path, current: float.fromhex(node["f"]),
        "i": lambda self, node, path, current: int(node["i"]),
        "n": lambda self, node, path, current: np.frombuffer(bytes.fromhex(node["b"]), node["n"])[0],
        "b": lambda self, node, path, current: bytes.fromhex(node["b"]),
        "device": lambda self, node, path, current: torch.device(_device(str(node["device"]), path)),
        "dtype": _dtype,
        "e": _member,
        "r": lambda self, node, path, current: range(*node["r"]),
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


def stale(variables: dict[str, Any], nodes: dict[str, Any]) -> list[str]:
    """Variables that were not bound yet when the state was captured."""
    return [name for name in variables if name not in nodes and is_variable(name)]


def _device(name: str, path: str) -> str:
    """Where a tensor goes. A verifier without a GPU replays a GPU's run on its CPU."""
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise MalformedInput(f"state entry {path} is on a device of a kind that is not known")
    return name if name == "cpu" or torch.cuda.is_available() else "cpu"
