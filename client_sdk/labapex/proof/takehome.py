"""The weights that a client takes home: found in the variables of the script, as nobody declares what "the model" is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from labapex.proof.runtime import Engine


def weights(engine: Engine) -> dict[str, Tensor]:
    """At a boundary: the state dicts of the script's outermost modules that are trained, and prepared tensors, on the CPU.

    One module alone gives its own names; several are told apart by the variable that holds them.
    """
    trained = {id(p) for p in engine.trained()}
    spaces = [*engine.namespaces(), dict(engine.declared.models())]
    found: dict[str, nn.Module] = {}
    for space in spaces:
        for name, value in space.items():
            if isinstance(value, nn.Module) and any(id(p) in trained for p in value.parameters()):
                found.setdefault(name, value)
    parts = {id(m) for module in found.values() for m in module.modules() if m is not module}
    outer: dict[int, tuple[str, nn.Module]] = {}
    for name, module in found.items():
        if id(module) not in parts:
            outer.setdefault(id(module), (name, module))
    named = list(outer.values())
    alone = _alone(engine.declared.tensors(), spaces)
    prefix = len(named) + len(alone) > 1
    return alone | {
        (f"{name}.{key}" if prefix else key): _copy(tensor)
        for name, module in named
        for key, tensor in module.state_dict().items()
        if isinstance(tensor, Tensor)
    }


def _alone(tensors: dict[str, Tensor], spaces: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Trained tensors that no module holds, by the variable that does; by their place where none or another does."""
    found: dict[str, Tensor] = {}
    for place, tensor in {id(t): (place, t) for place, t in tensors.items()}.values():
        variable = next((name for space in spaces for name, value in space.items() if value is tensor), place)
        found[place if variable in found else variable] = _copy(tensor)
    return found


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
