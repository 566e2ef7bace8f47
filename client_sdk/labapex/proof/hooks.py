"""What torch tells of a script's training: losses, optimizers, gradients set to zero. Patches this process for good."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Listener(Protocol):
    """Whom torch's calls are told to."""

    optimizers: list[weakref.ref[Optimizer]]  # grows with each that is made

    def backward(self, loss: Tensor) -> None:
        """`loss`, detached and not scaled, is about to be propagated backwards."""

    def zeroed(self) -> None:
        """Some `zero_grad` is called."""

    def stepping(self, optimizer: Optimizer) -> None:
        """An optimizer's step begins; closures are evaluated within."""

    def stepped(self, optimizer: Optimizer) -> None:
        """An optimizer's step is complete."""


def install(listener: Listener) -> None:
    plain_backward, plain_init = Tensor.backward, Optimizer.__init__
    plain_scale = torch.amp.GradScaler.scale

    def backward(self: Tensor, *args: Any, **kwargs: Any) -> None:
        listener.backward(getattr(self, "_labapex_unscaled", self.detach()))
        plain_backward(self, *args, **kwargs)

    def scale(self: Any, outputs: Any) -> Any:
        scaled = plain_scale(self, outputs)
        if isinstance(outputs, Tensor):
            scaled._labapex_unscaled = outputs.detach()
        return scaled

    def init(self: Optimizer, *args: Any, **kwargs: Any) -> None:
        plain_init(self, *args, **kwargs)
        listener.optimizers.append(weakref.ref(self))

    def zeroing(plain: Any) -> Any:
        def zero_grad(self: Any, *args: Any, **kwargs: Any) -> None:
            listener.zeroed()
            plain(self, *args, **kwargs)

        return zero_grad

    Tensor.backward = backward
    torch.amp.GradScaler.scale = scale
    Optimizer.__init__ = init
    Optimizer.zero_grad = zeroing(Optimizer.zero_grad)
    nn.Module.zero_grad = zeroing(nn.Module.zero_grad)
    register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: listener.stepping(optimizer))
    register_optimizer_step_post_hook(lambda optimizer, args, kwargs: listener.stepped(optimizer))
