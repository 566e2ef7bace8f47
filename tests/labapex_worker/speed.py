"""The chain of a speed trial in 64-bit integers, as plain as can be: what a worker's float32 must come to."""

from __future__ import annotations

from uuid import UUID

import numpy

from labapex.trial import BOUND, MODULUS, entries, rolls


def chain(trial: UUID, seed: bytes, size: int, rounds: int, *, products: int | None = None) -> bytes:
    """X_rounds as bytes; `products`: stop after so many."""
    raw = numpy.frombuffer(entries(trial, seed, size), dtype=numpy.uint8).astype(numpy.int64)
    a = raw.reshape(size, size) % MODULUS - BOUND
    x = a.T
    for places in rolls(trial, seed, size, rounds)[:products]:
        x = (a @ numpy.roll(x, places, axis=0) + BOUND) % MODULUS - BOUND
    return (x + BOUND).astype(numpy.uint8).tobytes()
