"""Whether cheating pays: what a host saves by a lie, against what it loses when that is found.

    P x (deposit + pay) > work saved,    P = 1 - C(n - m, c) / C(n, c)

m of n segments are false, and c are drawn. Nobody trains at a loss, so the work that was saved is worth at most its share of the
pay. Where it is the false segments that were not trained, that share is m / n; P is m / n at least as soon as one is drawn, so
no such lie pays at any rate of audit. It is another matter where one false segment makes all that follow cheaper: the draw
alone would need a deposit against that, and the searches of `labapex.proof.doubts` stand in for one.
"""

from __future__ import annotations

import math
from fractions import Fraction


def caught(*, drawn: int, false: int, segments: int) -> Fraction:
    """The probability that one of `false` segments is among `drawn` of all, drawn uniformly."""
    drawn = min(drawn, segments)
    return 1 - Fraction(math.comb(segments - false, drawn), math.comb(segments, drawn))


def gain(*, caught: Fraction, saved: Fraction, pay: int, deposit: int = 0) -> Fraction:
    """What a lie that saves the share `saved` of the work brings on average, over honest work: micro-credits.

    The whole `pay` of the run is forfeited with the `deposit` when it is found. Segments that are replayed in any case, the
    first, the last and the largest, add to the risk and are left out."""
    return saved * pay - caught * (pay + deposit)


def deposit_needed(*, caught: Fraction, saved: Fraction, pay: int) -> int:
    """The smallest deposit at which the lie brings nothing, in micro-credits. `caught` must be above 0."""
    return max(0, math.ceil(saved * pay / caught - pay))
