"""The work by which a worker's speed is measured: a chain of exact products of matrices, the same digest on every device.

    A    size x size entries from -30 to 30, from the seed          X_0 = the transpose of A
    X_t  = A times X_(t-1) with its rows rolled by s_t, modulo 61, as -30 to 30          s_t from the seed
    answer = SHA-256 over the entries of X_rounds

Every sum stays below 2^24, so float32 is exact in any order, tensor cores with TF32 included. Nobody can begin before the
seed is known. Whoever has X_rounds has done the products (the order of a product of square matrices saves nothing), while
checking it takes vectors alone: X_rounds r = A roll(.. A roll(A^T r)), for a random r (Freivalds 1977).
"""

from __future__ import annotations

import hashlib
import struct
from uuid import UUID

MODULUS, BOUND = 61, 30
LARGEST = 16384  # size * 30 * 30 < 2^24
SEED_BYTES = 32


def operations(size: int, rounds: int) -> int:
    """Additions and multiplications of the whole chain."""
    return 2 * size**3 * rounds


def entries(trial: UUID, seed: bytes, size: int) -> bytes:
    """A row by row, one byte an entry: the byte modulo 61, less 30, is the entry."""
    return hashlib.shake_256(b"labapex-trial-a1" + trial.bytes + seed).digest(size * size)


def rolls(trial: UUID, seed: bytes, size: int, rounds: int) -> tuple[int, ...]:
    """s_1 .. s_rounds: by how many places the rows go down."""
    drawn = hashlib.shake_256(b"labapex-trial-s1" + trial.bytes + seed).digest(4 * rounds)
    return tuple(1 + number % (size - 1) for number in struct.unpack(f">{rounds}I", drawn))
