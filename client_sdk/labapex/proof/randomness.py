"""All randomness of a run is a function of the lease's seed, a stream's name and a position. Nothing random is stored.

So there is nothing to grind and nothing to forge: the verifier derives what the worker had to draw. A script's own
`manual_seed(x)` is mixed in rather than obeyed; a recorded run is another, equally valid draw.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_MASK32 = (1 << 32) - 1
_torch_seed = torch.default_generator.manual_seed
_cuda_seed = torch.cuda.manual_seed_all
_random_seed = random.seed


def derive(seed: str, *parts: object) -> int:
    """A 63-bit seed for the stream named by `parts`, as SHA-256 over the lease's seed and the parts."""
    text = "\x1f".join([seed, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(value: int) -> None:
    """Seed the global generators of torch (CPU and CUDA), numpy and `random`."""
    _torch_seed(value)
    if torch.cuda.is_available():
        _cuda_seed(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.mtrand._rand.seed([value & _MASK32, value >> 32])
    _random_seed(value)


class Stream:
    """A random stream of its own, swapped in for the global generators while it is entered."""

    def __init__(self, value: int) -> None:
        self._value: int | None = value
        self._mine: Any = None

    def __enter__(self) -> None:
        self._outside = _globals()
        if self._value is not None:
            seed_everything(self._value)
            self._value = None
        else:
            _set_globals(self._mine)

    def __exit__(self, *exc: object) -> None:
        self._mine = _globals()
        _set_globals(self._outside)


@contextmanager
def keyed(value: int) -> Iterator[None]:
    """Run a block with the global generators seeded by `value`, and put them back afterwards."""
    outside = _globals()
    seed_everything(value)
    try:
        yield
    finally:
        _set_globals(outside)


def _globals() -> tuple[Any, Any, Any, Any]:
    numpy = sys.modules.get("numpy")
    return (
        torch.default_generator.get_state(),
        torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,
        numpy.random.mtrand._rand.get_state() if numpy is not None else None,
        random.getstate(),
    )


def _set_globals(state: tuple[Any, Any, Any, Any]) -> None:
    torch_state, cuda_state, numpy_state, random_state = state
    torch.default_generator.set_state(torch_state)
    if cuda_state is not None:
        torch.cuda.set_rng_state_all(cuda_state)
    if numpy_state is not None:
        sys.modules["numpy"].random.mtrand._rand.set_state(numpy_state)
    random.setstate(random_state)


def mix_in(lease: str) -> None:
    """Make the script's own seeding calls draw from the `lease`'s seed: `manual_seed(x)` becomes f(lease, x)."""
    import numpy as np

    def torch_manual_seed(seed: int) -> torch.Generator:
        mixed = derive(lease, "torch", int(seed))
        if torch.cuda.is_available():
            _cuda_seed(mixed)
        return _torch_seed(mixed)

    def cuda_manual_seed(seed: int) -> None:
        if torch.cuda.is_available():
            _cuda_seed(derive(lease, "torch", int(seed)))

    def unseeded(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        drawn = 0

        def wrapper(value: Any = None, *args: Any, **kwargs: Any) -> Any:
            nonlocal drawn
            if value is None:  # would read the operating system's entropy
                drawn += 1
                value = derive(lease, name, drawn)
            return make(value, *args, **kwargs)

        return wrapper

    torch.manual_seed = torch.random.manual_seed = torch_manual_seed
    torch.cuda.manual_seed = torch.cuda.random.manual_seed = cuda_manual_seed
    torch.cuda.manual_seed_all = torch.cuda.random.manual_seed_all = cuda_manual_seed
    torch.seed = torch.random.seed = lambda: int(torch_manual_seed(0).initial_seed())
    np.random.seed = lambda seed=None: np.random.mtrand._rand.seed(derive(lease, "numpy", seed) & _MASK32)
    random.seed = lambda a=None, version=2: _random_seed(derive(lease, "random", a))
    np.random.default_rng = unseeded("default_rng", np.random.default_rng)
