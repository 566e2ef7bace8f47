"""How a state is spelled: the nodes of its structure, which `capture` writes and `restore` reads.

A capture follows what belongs to training: tensors, modules, optimizers, schedulers, scalers, generators, containers,
numbers, and objects of the script's own classes. Whatever it cannot look into (files, loggers, data sets, functions
without closures) it leaves as it is: a fresh run of the script has made its own. Large things that nobody touched since the
first iteration (the data, as tensors or text) are left out too, by object identity, version counter or fingerprint.

A node of the structure is JSON: null, true, a string, an integer, or one of
    {"keep": 1}            leave what is there             {"ref": path}     the object met before at that path
    {"clock": 1}           a reading of the clock, of no value
    {"f": hex} {"i": dec}  float, large integer            {"t": path, ..}   tensor or array, under its path; "on": device
    {"b": hex}             bytes                           {"l"|"u"|"q": []} list, tuple (of "c"), deque
    {"d": [[k, v], ..]}    dictionary                      {"s": [..]}       set
    {"r": [a, b, c]}       range
    {"o": class, "a": {}}  object and its attributes       {"opt": class, ..} optimizer: state by parameter, groups
    {"e": class, "name": ..} member of an enumeration         {"device"|"dtype": name}
    {"fn": {}}             cells of a closure              {"pass": [..], "of": ..} position in a data loader
    {"dl": {}}             a data loader's parts
    {"rng": kind, ..}      a generator's state
The self-test at preflight decides whether this was enough for a script; the capture itself promises nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CellType
from typing import Any, TypeVar

from labapex.proof.instrument import HANDLE, LOOP_PREFIX

T = TypeVar("T")
KEEP: dict[str, Any] = {"keep": 1}
LIBRARY_CLASSES = (
    "torch.optim.", "torch.amp.", "torch.cuda.amp.", "torch.nn.", "torch.utils.data.", "argparse", "types", "collections",
)  # fmt: skip
LOADER_PARTS = ("dataset", "sampler", "batch_sampler", "batch_size", "drop_last")
SAFE_INTEGER = 2**53 - 1
_HOOKS = (
    "_forward_", "_backward_", "_state_dict_", "_load_state_dict_", "_optimizer_", "_zero_grad_", "_is_full_backward",
)  # fmt: skip
_SKIPPED_ATTRIBUTES = {
    "_non_persistent_buffers_set", "_per_optimizer_states", "_compiled_call_impl", "_torchdynamo_wrapper_id", "defaults",
    "_dataloader_references_ref",
}  # fmt: skip


def is_attribute(name: str) -> bool:
    """Whether an object's attribute is state: hooks are functions, and some of torch's notes name ids of this process."""
    return name not in _SKIPPED_ATTRIBUTES and not name.startswith(_HOOKS)


def is_variable(name: str) -> bool:
    """Not one of Python's own names, nor of the instrumentation's."""
    return not (name.startswith("__") and name.endswith("__")) and not name.startswith(LOOP_PREFIX) and name != HANDLE


def in_order(names: Mapping[str, T], wanted: Callable[[str], bool] | None = None) -> list[tuple[str, T]]:
    """Items by name as canonical JSON sorts them, in UTF-16: who reads a state meets its objects as who wrote it did."""
    return [(name, names[name]) for name in _order(tuple(names), wanted)]


@lru_cache(maxsize=4096)
def _order(names: tuple[str, ...], wanted: Callable[[str], bool] | None) -> list[str]:
    """Objects have the same attributes at each leaf, and most of them those of their neighbours."""
    return sorted(
        filter(wanted, names) if wanted else names, key=lambda name: name.encode("utf-16-be", "surrogatepass")
    )


def class_name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def is_plain_key(key: Any) -> bool:
    return key is None or type(key) in (str, int, float, bool) or (type(key) is tuple and all(map(is_plain_key, key)))


def key_node(key: Any) -> Any:
    if type(key) is tuple:
        return {"u": [key_node(k) for k in key]}
    if type(key) is float:
        return {"f": key.hex()}
    if type(key) is int and abs(key) > SAFE_INTEGER:
        return {"i": str(key)}
    return key


def unkey(key: Any) -> Any:
    return tuple(unkey(k) for k in key["u"]) if isinstance(key, dict) and "u" in key else number(key)


def unplain(value: Any) -> Any:
    if isinstance(value, dict) and "d" in value:
        return {k: unplain(v) for k, v in value["d"]}
    if isinstance(value, dict) and "u" in value:
        return tuple(unplain(v) for v in value["u"])
    return number(value)


def number(value: Any) -> Any:
    if isinstance(value, dict):
        return float.fromhex(value["f"]) if "f" in value else int(value["i"])
    return value


def is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True
