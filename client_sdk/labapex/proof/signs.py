"""Rules over what a host says of its device and its clock. Its owner can make both say anything: they suspect, none decides.

LAB = "Ensuring Verifiable and Secure Outsourced Training of Deep Neural Networks" (Lab Apex, 2023).
"""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

from labapex.proof.evidence import Evidence, Outcome, passes

ALPHA = 0.4  # LAB 2.1: share of utilisation samples above their mean
UTILISATION_FLOOR = 5.0  # percent: below this mean a device idles
SATURATED = 90.0  # percent: a device at its limit all the time has no samples above its mean
MEMORY_STEP = 0.05  # LAB 2.1, "approximately 0": largest late change as a share of the peak
FEWEST_SAMPLES = 8
FASTER = 20.0  # times: what a host may be faster than a preflight on another machine of its class, which others shared
FASTER_CLASS = 1000.0  # times: what a GPU may be faster than the CPU on which a script had its preflight
CLOCK_BACK = 1.0  # seconds: an honest clock is set back by no more in one go
CLOCK_AHEAD = 120.0  # seconds: what an honest host's clock may be ahead of the platform's


def gpu_utilisation(evidence: Evidence) -> Outcome:
    """LAB 2.1. Share of utilisation samples above their mean >= alpha = 0.4, with a floor on the mean.

    The share alone is scale-free: it refuses a saturated device and passes an idle one that flickers. So saturation
    passes, and a mean under 5 % fails. Can be made up by whoever owns the host: it only raises suspicion."""
    readings = [s.utilisation for s in evidence.samples]
    if len(readings) < FEWEST_SAMPLES:
        return None, ALPHA, "not-applicable", f"{len(readings)} samples, at least {FEWEST_SAMPLES} are needed"
    mean = statistics.fmean(readings)
    share = sum(u > mean for u in readings) / len(readings)
    good = mean >= UTILISATION_FLOOR and (share >= ALPHA or mean >= SATURATED)
    return share, ALPHA, passes(good), f"mean {mean:.0f} % of the {_source(evidence)}"


def gpu_memory(evidence: Evidence) -> Outcome:
    """LAB 2.1. Memory rises steeply at first, then stays: |m_{i+1} - m_i| ~ 0 for large i.

    Value: the largest change between samples of the run's second half, as a share of the peak; limit 5 %. Memory may be
    allocated and not used: it only raises suspicion."""
    used = [s.memory for s in evidence.samples]
    if len(used) < FEWEST_SAMPLES or max(used) == 0:
        return None, MEMORY_STEP, "not-applicable", f"{len(used)} samples, at least {FEWEST_SAMPLES} are needed"
    late = used[len(used) // 2 :]
    change = max((abs(b - a) for a, b in pairwise(late)), default=0) / max(used)
    rose = max(used[: len(used) // 2]) >= used[0]
    return change, MEMORY_STEP, passes(rose and change <= MEMORY_STEP), f"memory of the {_source(evidence)}"


def pace(evidence: Evidence) -> Outcome:
    """Ours. Seconds an iteration in the fastest epoch, by the worker's clock; limit: the preflight's median on the platform
    over `FASTER` (`FASTER_CLASS` where the classes differ). Fails too where times are no times, go back, or where a leaf
    arrived before its last iteration is said to have ended.

    Cannot see an invented run that bides its time: the times are claims, and a late arrival is nobody's fault. So it
    suspects."""
    times = evidence.times
    if not all(map(math.isfinite, times)):
        return "not finite", None, "fail", "a time is not a number"
    back = next((n for n, (a, b) in enumerate(pairwise(times)) if b < a - CLOCK_BACK), None)
    if back is not None:
        return times[back + 1] - times[back], -CLOCK_BACK, "fail", f"time goes back after iteration {back}"
    for leaf, received in zip(evidence.leaves, evidence.leaf_received_at, strict=False):
        if 0 < leaf.step <= len(times) and received < times[leaf.step - 1] - CLOCK_AHEAD:
            early = received - times[leaf.step - 1]
            return early, -CLOCK_AHEAD, "fail", f"leaf {leaf.index} came before what it commits to took place"
    per_epoch = evidence.contract.facts.iterations_per_epoch
    ends = [e * per_epoch - 1 for e in range(1, len(times) // per_epoch + 1)]
    spans = [(times[b] - times[a], b - a) for a, b in pairwise([0, *ends]) if b > a]
    if not spans or not evidence.iteration_seconds:
        return None, None, "not-applicable", "no epoch to time" if not spans else "no preflight to compare with"
    fastest = min(seconds / count for seconds, count in spans)
    limit = evidence.iteration_seconds / (FASTER if evidence.one_class else FASTER_CLASS)
    detail = f"seconds an iteration in the fastest epoch; {evidence.iteration_seconds:.3g} in the preflight"
    return fastest, limit, passes(fastest >= limit), detail


def _source(evidence: Evidence) -> str:
    return "GPU, by NVML" if any(s.source == "nvml" for s in evidence.samples) else "CPU: the host has no NVIDIA driver"
