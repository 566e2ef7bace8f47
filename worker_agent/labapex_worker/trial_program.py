"""What is run in the sandbox to measure this host's speed: `labapex.trial`, computed by the host's torch.

python trial_program.py TRIAL SIZE ROUNDS PATH..       PATHs are put on the import path
stdin    B seed (32 bytes)                             begin
         S number (1 byte)                             show the result of one's so-manieth seed
stdout   R                                             ready: torch is loaded, the device is warm
         D digest (32 bytes)                           the answer to B
         M entries (SIZE * SIZE bytes, each + 30)      the answer to S
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any, BinaryIO
from uuid import UUID


def main(arguments: list[str]) -> int:
    trial, size, rounds = UUID(arguments[0]), int(arguments[1]), int(arguments[2])
    sys.path += arguments[3:]
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.cuda.is_available() and _exact(torch, size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _chain(torch, device, trial, bytes(32), size, 1)
    ours, theirs = sys.stdout.buffer, sys.stdin.buffer
    kept: list[bytes] = []
    _say(ours, b"R")
    while command := theirs.read(1):
        if command == b"B":
            result = _chain(torch, device, trial, theirs.read(32), size, rounds)
            _say(ours, b"D" + hashlib.sha256(result).digest())
            kept.append(result)
        elif command == b"S":
            _say(ours, b"M" + kept[theirs.read(1)[0]])
        else:
            return 2
    return 0


def _chain(torch: Any, device: str, trial: UUID, seed: bytes, size: int, rounds: int) -> bytes:
    from labapex.trial import BOUND, MODULUS, entries, rolls

    raw = torch.frombuffer(bytearray(entries(trial, seed, size)), dtype=torch.uint8).to(device)
    a = ((raw.to(torch.int32) % MODULUS) - BOUND).to(torch.float32).reshape(size, size)
    x = a.t()
    for places in rolls(trial, seed, size, rounds):
        products = (a @ torch.roll(x, places, 0)).to(torch.int32)
        x = (torch.remainder(products + BOUND, MODULUS) - BOUND).to(torch.float32)
    found: bytes = (x + BOUND).to(torch.uint8).cpu().contiguous().numpy().tobytes()
    return found


def _exact(torch: Any, size: int) -> bool:
    """Whether this GPU's TF32 is exact for such entries, as it has to be: looked at, not trusted."""
    a = torch.full((256, size), 30.0, device="cuda") - torch.arange(size, device="cuda") % 2
    torch.backends.cuda.matmul.allow_tf32 = False
    exact = a @ a.t()
    torch.backends.cuda.matmul.allow_tf32 = True
    return bool(torch.equal(exact, a @ a.t()))


def _say(out: BinaryIO, data: bytes) -> None:
    out.write(data)
    out.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
