"""Where initial weights come from: the rules about it, and the success rate of a chain of proofs. No tensors here.

Source: JIA = Jia et al., "Proof-of-Learning: Definitions and Practice", IEEE S&P 2021, sections V-3 and V-4. What the rules
look at was measured by `starts`, in the process that ran the script.
"""

from __future__ import annotations

import math

from labapex.proof.evidence import Evidence, Outcome, passes
from labapex.protocol.contract import Contract
from labapex.protocol.replay import StartReport
from labapex.protocol.verdict import Origin, unproven_words

SHARE = 0.1  # of false segments, for which probabilities of detection are stated
SIGNIFICANCE = 0.01  # JIA V-4, of one test
SMALLEST = 32  # entries of a tensor from which on it is tested
_NEGLIGIBLE = 40.0  # a term of exp(-40) changes no sum
_SHOWN = 5


def caught(drawn: int, segments: int) -> float:
    """P(at least one false segment is drawn) where one in ten of `segments` is false: 1 - 0.9^drawn; 1 where all are."""
    return 1.0 if drawn >= segments else 1.0 - (1.0 - SHARE) ** drawn


def origin(contract: Contract, start: StartReport | None, *, drawn: int, segments: int) -> Origin:
    """What a verdict says of a model's origin.

    JIA V-3: a proof that begins with another's result is worth no more than that other one, so success rates multiply along
    the chain. A parent's rate has its own parents' in it; one that is reached by two ways counts twice, which errs on the
    side of doubt."""
    own = caught(drawn, segments)
    words = f"(1 - 0.9^{drawn})" if drawn < segments else f"1 (all {segments} segments)"
    words += "".join(f" x {parent.success:.6g} (of {parent.certificate[:16]})" for parent in contract.parents)
    return Origin(
        tensors=start.tensors if start else None,
        unproven=start.unproven if start else None,
        success=math.prod((parent.success for parent in contract.parents), start=own),
        formula=words,
    )


def mark(start: StartReport) -> str:
    """An unproven start in words; empty where all is explained."""
    if not start.unproven:
        return ""
    shown = ", ".join(start.names[:_SHOWN])
    more = f" and {start.unproven - _SHOWN} more" if start.unproven > _SHOWN else ""
    return f"{unproven_words(start.unproven, start.tensors)}: {shown}{more}"


def provenance(evidence: Evidence) -> Outcome:
    """JIA V-3. Every trained tensor's initial value follows from the seed or is, byte for byte, in a certified parent's file.

    A tensor with more than one value that is the same under another seed follows from the code or the data. Value: such
    tensors that no parent has; limit 0. Informs: a client may start where he likes, and his worker is not at fault. Marks a
    structured start (an identity, sinusoids) that is trained, too. Cannot see weights that were put in with noise added
    or permuted, or after the first iteration began: only the code tells."""
    start = evidence.replay.start if evidence.replay is not None else None
    if start is None:
        return None, 0.0, "not-applicable", "the script's start under another seed is not known"
    said = mark(start)
    if not said and start.given:
        said = f"{start.given} of {start.tensors} parameter tensors are those of certified models"
    return float(start.unproven), 0.0, passes(not start.unproven), said


def initialisation_ks(evidence: Evidence) -> Outcome:
    """JIA V-4, the statistical test: two-sample Kolmogorov-Smirnov of each tensor of the first committed state against a fresh
    start under another seed. Value: the smallest p of m tensors; limit: 0.01 / m (Bonferroni).

    It would decide where a proof has no seed. Ours always has one, so `initialisation` compares exactly and this informs. It
    accepts a model after 10 steps of training, and a stolen one whose values are mapped by rank onto fresh draws; without
    the division by m it refuses 18 % of honest ResNet-20s, with it 0.5 %."""
    start = evidence.replay.start if evidence.replay is not None else None
    if start is None or start.least_p is None or not start.tested:
        return None, None, "not-applicable", f"no trained tensor has {SMALLEST} entries or more of different values"
    limit = SIGNIFICANCE / start.tested
    return start.least_p, limit, passes(start.least_p >= limit), f"of {start.tested} tensors, {start.least_name}"


def ks_p_value(gap: int, n: int) -> float:
    """P(sup |F - G| >= gap / n) for the empirical distributions of two samples of n entries each from one continuous one.

    Exact, for samples of equal size: 2 sum_j (-1)^(j+1) C(2n, n - j gap) / C(2n, n), j = 1 .. n / gap (Gnedenko and
    Korolyuk, "On the maximum discrepancy between two empirical distributions", 1951). Equal values make it too large."""
    if gap <= 0:
        return 1.0
    total, whole = 0.0, 2 * math.lgamma(n + 1)
    for j in range(1, n // gap + 1):
        exponent = whole - math.lgamma(n - j * gap + 1) - math.lgamma(n + j * gap + 1)
        if exponent < -_NEGLIGIBLE and j > 1:
            break
        total += math.exp(exponent) * (1 if j % 2 else -1)
    return min(1.0, max(0.0, 2 * total))
