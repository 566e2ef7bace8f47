"""Rules over what a host says of its device and its clock. Its owner can make both say anything: they suspect, none decides.

LAB = "Ensuring Verifiable and Secure Outsourced Training of Deep Neural Networks" (Lab Apex, 2023).
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from itertools import pairwise

from labapex.proof.evidence import Evidence, Outcome, passes

ALPHA = 0.4  # LAB 2.1: share of utilisation samples above their mean
UTILISATION_FLOOR = 5.0  # percent: below this mean a device idles
SATURATED = 90.0  # percent: a device at its limit all the time has no samples above its mean
MEMORY_STEP = 0.05  # LAB 2.1, "approximately 0": largest late change as a share of the peak
FEWEST_SAMPLES = 8
FASTER = 20.0  # times: what a host may be faster than a preflight on another machine of its class, which others shared
FASTER_CLASS = 1000.0  # times: what a GPU may be faster than the CPU on which a script had its preflight
WINDOW = 10.0  # seconds: two readers of one driver look at different instants, and agree on average
FEWEST_IN_WINDOW = 3
APART = 20.0  # percent of utilisation between the averages of a window
MEMORY_APART = 0.05  # of the larger
DISAGREEING = 0.1  # share of windows
OWN_LOAD = 0.5  # share of the device's load that is the job's
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


def gpu_agreement(evidence: Evidence) -> Outcome:
    """Ours. Share of windows of 10 s in which the executable's samples and the agent's readings of the GPU differ: by more
    than 20 points of utilisation or 5 % of memory, each averaged; limit 10 %. Fails where they name two devices.

    Both readers are on the owner's host and ask one driver: it finds a lie that was told to one of them only."""
    ours = [s for s in evidence.samples if s.source == "nvml"]
    theirs = evidence.observations
    if not ours or not theirs:
        return None, DISAGREEING, "not-applicable", f"{len(ours)} samples and {len(theirs)} readings of a GPU"
    inside, outside = {s.uuid for s in ours if s.uuid}, {o.device for o in theirs}
    if inside and inside != outside:
        return "two devices", DISAGREEING, "fail", f"read inside: {_names(inside)}; by the agent: {_names(outside)}"
    windows: dict[int, tuple[list[tuple[float, int]], list[tuple[float, int]]]] = defaultdict(lambda: ([], []))
    for s in ours:
        windows[int(s.at // WINDOW)][0].append((s.utilisation, s.memory))
    for o in theirs:
        windows[int(o.at // WINDOW)][1].append((o.utilisation, o.memory))
    full = [both for both in windows.values() if min(map(len, both)) >= FEWEST_IN_WINDOW]
    if not full:
        return None, DISAGREEING, "not-applicable", "no window of 10 s has enough readings of both"
    apart = [_apart(*both) for both in full]
    share = sum(points > APART or memory > MEMORY_APART for points, memory in apart) / len(full)
    most = max(points for points, _ in apart)
    words = f"{len(full)} windows of 10 s, utilisation at most {most:.0f} points apart"
    return share, DISAGREEING, passes(share <= DISAGREEING), words


def gpu_load(evidence: Evidence) -> Outcome:
    """Ours. Share of the GPU's load that is the job's own processes', as the agent sees it; limit one half.

    Cannot see a job's load that is made up inside the job, nor a driver that lies to the agent. Where the driver does not tell
    what each process takes, nothing is said."""
    told = [
        (o.job_utilisation, o.other_utilisation, o.others or 0)
        for o in evidence.observations
        if o.job_utilisation is not None and o.other_utilisation is not None
    ]
    if len(told) < FEWEST_SAMPLES:
        return (
            None,
            OWN_LOAD,
            "not-applicable",
            f"{len(told)} readings of processes, at least {FEWEST_SAMPLES} are needed",
        )
    job, others = statistics.fmean(t[0] for t in told), statistics.fmean(t[1] for t in told)
    if job + others < 1:
        return 0.0, OWN_LOAD, "fail", "no process did anything on the GPU"
    share = job / (job + others)
    words = f"the job's processes kept it busy {job:.0f} % of the time, up to {max(t[2] for t in told)} others {others:.0f} %"
    return share, OWN_LOAD, passes(share >= OWN_LOAD), words


def pace(evidence: Evidence) -> Outcome:
    """Ours. Seconds an iteration in the fastest epoch, by the worker's clock; limit: the preflight's median on the platform
    over `FASTER` (`FASTER_CLASS` where the classes differ). Fails too where times are no times, go back, or where a leaf
    arrived before its last iteration is said to have ended.

    Cannot see an invented run that bides its time: the times are claims, and a late arrival is nobody's fault. So it
    suspects."""
    times = evidence.times
    if not all(map(math.isfinite, times)):
        return "not finite", None, "fail", "a time is not a number"
    seams = {handover.leaf.step for handover in evidence.contract.handovers}  # there another host's clock begins
    back = next((n for n, (a, b) in enumerate(pairwise(times)) if b < a - CLOCK_BACK and n + 1 not in seams), None)
    if back is not None:
        return times[back + 1] - times[back], -CLOCK_BACK, "fail", f"time goes back after iteration {back}"
    for leaf, received in zip(evidence.leaves, evidence.leaf_received_at, strict=False):
        if 0 < leaf.step <= len(times) and received < times[leaf.step - 1] - CLOCK_AHEAD:
            early = received - times[leaf.step - 1]
            return early, -CLOCK_AHEAD, "fail", f"leaf {leaf.index} came before what it commits to took place"
    per_epoch = evidence.contract.facts.iterations_per_epoch
    ends = [e * per_epoch - 1 for e in range(1, len(times) // per_epoch + 1)]
    whole = [(a, b) for a, b in pairwise([0, *ends]) if b > a and not any(a < seam <= b for seam in seams)]
    spans = [(times[b] - times[a], b - a) for a, b in whole]
    if not spans or not evidence.iteration_seconds:
        return None, None, "not-applicable", "no epoch to time" if not spans else "no preflight to compare with"
    fastest = min(seconds / count for seconds, count in spans)
    limit = evidence.iteration_seconds / (FASTER if evidence.one_class else FASTER_CLASS)
    detail = f"seconds an iteration in the fastest epoch; {evidence.iteration_seconds:.3g} in the preflight"
    return fastest, limit, passes(fastest >= limit), detail


def _apart(ours: list[tuple[float, int]], theirs: list[tuple[float, int]]) -> tuple[float, float]:
    """Points of utilisation, and share of the larger memory, between two averages."""
    (a, m), (b, n) = ([statistics.fmean(column) for column in zip(*side, strict=True)] for side in (ours, theirs))
    return abs(a - b), abs(m - n) / max(m, n, 1)


def _names(devices: set[str]) -> str:
    return ", ".join(sorted(devices)[:3])


def _source(evidence: Evidence) -> str:
    return "GPU, by NVML" if any(s.source == "nvml" for s in evidence.samples) else "CPU: the host has no NVIDIA driver"
