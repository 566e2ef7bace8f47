"""What a run's initial parameters are, beside those of a fresh start of the same script under another seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from labapex.proof.block import raw_bytes
from labapex.proof.origins import SMALLEST, ks_p_value
from labapex.proof.state import State
from labapex.protocol.contract import Parent
from labapex.protocol.replay import StartReport

_NAMES = 20
_NAME = 300
_LARGEST = 1 << 20  # entries of one tensor that are tested: of more, so many at even distances


def compare(own: State, fresh: State, *, committed: State | None, parents: Iterable[Parent], work: Path) -> StartReport:
    """Compare the start under the run's seed, `own`, with that under another one.

    `committed` is the first state that the run itself shows, which the statistical test looks at; `own` where there is none.
    The parents' files lie below `work`; one that the script has written over is no parent's any more."""
    given = [n for n in own.parameters if _same(own.tensors[n], fresh.tensors.get(n)) and not _constant(own.tensors[n])]
    certified = set().union(*(_contents(work / p.path, p.weights) for p in parents)) if given else set()
    unproven = [n for n in given if _content(own.tensors[n]) not in certified]
    tested = {
        name: p
        for name in own.parameters
        if (p := _p_value((committed or own).tensors.get(name), fresh.tensors.get(name))) is not None
    }
    least = min(tested, key=lambda name: tested[name], default=None)
    return StartReport(
        tensors=len(own.parameters),
        given=len(given),
        unproven=len(unproven),
        names=tuple(name[:_NAME] for name in unproven[:_NAMES]),
        tested=len(tested),
        least_p=tested[least] if least is not None else None,
        least_name=least[:_NAME] if least is not None else None,
    )


def ks_gap(one: Tensor, other: Tensor) -> int:
    """n sup |F - G| of the values of two tensors of n entries each: a whole number."""
    a, b = one.reshape(-1).to(torch.float64).sort().values, other.reshape(-1).to(torch.float64).sort().values
    places = torch.cat([a, b])
    below = torch.searchsorted(a, places, right=True) - torch.searchsorted(b, places, right=True)
    return int(below.abs().max()) if places.numel() else 0


def _p_value(one: Tensor | None, other: Tensor | None) -> float | None:
    """None for what is too small, of a single value, or not to be compared."""
    if one is None or other is None or one.shape != other.shape or one.numel() < SMALLEST or one.is_complex():
        return None
    if _constant(one) and _constant(other):
        return None
    apart = -(-one.numel() // _LARGEST)
    a, b = one.reshape(-1)[::apart], other.reshape(-1)[::apart]
    return ks_p_value(ks_gap(a, b), a.numel())


def _same(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(raw_bytes(one) == raw_bytes(other))


def _constant(tensor: Tensor) -> bool:
    flat = tensor.reshape(-1)
    return flat.numel() == 0 or bool((flat == flat[0]).all())


def _content(tensor: Tensor) -> tuple[str, str]:
    return str(tensor.dtype), hashlib.sha256(raw_bytes(tensor.contiguous())).hexdigest()


def _contents(file: Path, digest: str) -> set[tuple[str, str]]:
    """Type and digest of each tensor of a parent's file; none where it is not that file."""
    try:
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                return set()
        with safetensors.safe_open(file, framework="pt") as opened:
            return {_content(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError):
        return set()
