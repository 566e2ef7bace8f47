"""What a GPU does with the proof engine: `make gpu-check`, on a machine that has one, under its own torch.

Bit-equality of replays, the error between the GPU and the CPU, the cost of recording, and a run as NVML sees it; all of it is
written to docs/benchmarks/gpu.md. `--device cpu` lets the CPU stand for the GPU, to try the command itself.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from bench import Bench, Recorded

    from labapex.protocol.records import Sample

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "gpu.md"
NEEDS = {
    "torch": ("torch", "trains and replays"),
    "numpy": ("numpy", "torch's arrays"),
    "safetensors": ("safetensors", "states as files"),
    "pydantic": ("pydantic", "contracts and reports"),
    "rfc8785": ("rfc8785", "canonical JSON, which is hashed"),
    "pynvml": ("nvidia-ml-py", "readings of the GPU"),
    "psutil": ("psutil", "readings of the CPU"),
}
PYTHONS = ((3, 11), (3, 12))  # whose bytecode the engine reads
TITLES = {"resnet20": "ResNet-20", "gpt": "GPT, 10.7 M"}
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # characters of a drawn curve
PERIOD = 1.0  # seconds between two readings


class Meter(Protocol):
    def read(self) -> Sample | None: ...


@dataclass(frozen=True)
class Plan:
    """How much is measured: steps of a batch, and the lengths of runs for each k."""

    equal: dict[str, tuple[int, int]]  # steps, batch: replays on the same device
    across: dict[str, tuple[int, int]]  # steps, batch: replays on the other one
    intervals: tuple[int, ...]  # k of the replays on the other device
    cost: tuple[tuple[str, int], ...]  # workload, batch
    lengths: dict[int, int]  # k -> steps of the run whose cost is taken
    trace: tuple[int, int, int]  # epochs, steps of each, batch


FULL = Plan(
    equal={"resnet20": (20, 128), "gpt": (20, 32)},
    across={"resnet20": (20, 32), "gpt": (20, 8)},
    intervals=(1, 10),
    cost=(("resnet20", 128), ("gpt", 8), ("gpt", 1024)),
    lengths={1: 21, 10: 101, 100: 201},
    trace=(8, 390, 128),
)
QUICK = Plan(
    equal={"resnet20": (3, 4)},
    across={"resnet20": (2, 4)},
    intervals=(1,),
    cost=(("resnet20", 4),),
    lengths={1: 3},
    trace=(2, 2, 4),
)


def missing() -> list[str]:
    """What this interpreter lacks, in sentences."""
    said = []
    if sys.version_info[:2] not in PYTHONS:
        names = " and ".join(".".join(map(str, p)) for p in PYTHONS)
        said.append(f"Python {names} are read by the engine, and this is {sys.version.split()[0]}.")
    for module, (package, use) in NEEDS.items():
        if find_spec(module) is None:
            said.append(f"{package} is missing ({use}): {sys.executable} -m pip install {package}")
    return said


# -- what is measured --------------------------------------------------------------------------------------------------


def equality(bench: Bench, plan: Plan) -> list[str]:
    """Segments recorded and replayed on the device, each replay in a process of its own: are they the same bits?"""
    rows = []
    for model, (steps, batch) in plan.equal.items():
        for amp in (False, True):
            every = max(1, steps // 4)
            recorded = bench.record(model, steps, batch, every, options=("--amp",) if amp else ())
            leaves = len(recorded.figures["digests"])
            found = _replayed(bench, recorded, tuple(range(leaves - 1)), host=None)
            name = f"{TITLES[model]}, batch {batch}{', AMP' if amp else ''}"
            rows.append(f"| {name} | {every} | {found['same']} of {leaves - 1} | {found['error']} |")
            shutil.rmtree(recorded.folder)
    return ["| | k | equal digests | largest error |", "| --- | --- | --- | --- |", *rows]


def across(bench: Bench, plan: Plan, elsewhere: dict[str, str]) -> list[str]:
    """Segments of the device replayed on the CPU, and the reverse."""
    rows = []
    for model, (steps, batch) in plan.across.items():
        for every in plan.intervals:
            cells = []
            for here, there in ((None, elsewhere), (elsewhere, None)):
                recorded = bench.record(model, steps, batch, every, host=here)
                last = len(recorded.figures["digests"]) - 2
                segments = tuple(sorted({0, last // 2, last}))
                cells.append(_replayed(bench, recorded, segments, host=there)["error"])
                shutil.rmtree(recorded.folder)
            rows.append(f"| {TITLES[model]}, batch {batch} | {every} | {cells[0]} | {cells[1]} |")
    return [
        "| | k | recorded on the device, replayed on the CPU | the reverse |",
        "| --- | --- | --- | --- |",
        *rows,
    ]


def _replayed(
    bench: Bench, recorded: Recorded, segments: tuple[int, ...], *, host: dict[str, str] | None
) -> dict[str, Any]:
    """How many digests are the same, and the largest relative error, as words; or why there is none."""
    from labapex.errors import TrainingFailed

    try:
        report, _ = bench.replay(recorded, segments, host=host)
    except TrainingFailed as error:
        return {"same": 0, "error": f"no replay: {str(error).strip().splitlines()[-1][:200]}"}
    errors = [s.distances.relative if s.distances else None for s in report.segments]
    known = [e for e in errors if e is not None]
    return {
        "same": sum(s.state == recorded.figures["digests"][s.leaf + 1] for s in report.segments),
        "error": f"{max(known):.1g}" if len(known) == len(segments) else "not finite",
    }


def cost(bench: Bench, plan: Plan) -> list[str]:
    """Recorded over bare, on the device's clock and in CPU seconds, in turns."""
    names = "".join(f" | k = {every}" for every in plan.lengths)
    rows = [f"| | state, a step | deterministic alone{names} |", "| --- | --- | --- |" + " --- |" * len(plan.lengths)]
    for model, batch in plan.cost:
        longest = max(plan.lengths.values())
        before = bench.bare(model, longest, batch)
        settled = bench.bare(model, longest, batch, deterministic=True)
        runs = {}
        size = 0
        for every, steps in plan.lengths.items():
            recorded = bench.record(model, steps, batch, every)
            runs[every] = recorded.figures
            size = recorded.figures["state_bytes"]
            shutil.rmtree(recorded.folder)
        bare = [before, bench.bare(model, longest, batch)]
        device, cpu = (statistics.mean(f[key] / f["steps"] for f in bare) for key in ("device_seconds", "seconds"))
        ratios = [
            f"{f['device_seconds'] / f['steps'] / device:.3f}, {f['seconds'] / f['steps'] / cpu:.3f}"
            for f in (settled, *runs.values())
        ]
        what = f"{size / 1e6:.1f} MB, {1e3 * device:.1f} ms, {1e3 * cpu:.1f} ms CPU"
        rows.append(f"| {TITLES[model]}, batch {batch} | {what} | {' | '.join(ratios)} |")
    return rows


# -- a run as the device sees it ---------------------------------------------------------------------------------------


class Watch:
    """Reads a meter every `PERIOD` seconds in a thread, and once more when it is left."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.samples: list[Sample] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        self._read()

    def _follow(self) -> None:
        self._read()
        while not self._ended.wait(PERIOD):
            self._read()

    def _read(self) -> None:
        sample = self.meter.read()
        if sample is not None:
            self.samples.append(sample)


def trace(bench: Bench, plan: Plan, meter: Meter) -> list[str]:
    epochs, steps, batch = plan.trace
    with Watch(meter) as watch:
        recorded = bench.record("resnet20", steps, batch, steps, epochs=epochs)
    shutil.rmtree(recorded.folder)
    what = f"ResNet-20, batch {batch}, {epochs} epochs of {steps} steps, a leaf at each epoch's end."
    return [what, "", "```", *drawn(recorded.figures["losses"], watch.samples), "```"]


def drawn(losses: list[float], samples: list[Sample]) -> list[str]:
    """Loss against iterations, utilisation and memory against time, a line each: name, least, largest, curve."""
    curves = [("loss", "", losses)]
    if samples:
        curves += [
            ("utilisation", " %", [s.utilisation for s in samples]),
            ("memory", " MiB", [s.memory / 2**20 for s in samples]),
        ]
    lines = [f"{n:12} {min(v):8.4g} to {max(v):6.4g}{unit:4}  {curve(v)}" for n, unit, v in curves]
    said = f"{len(samples)} readings by {samples[0].source}, {PERIOD:.0f} s apart" if samples else "no readings"
    return [*lines, f"{said}; the loss against {len(losses)} iterations"]


def curve(values: list[float]) -> str:
    """A line of at most `WIDTH` characters, each the mean of its stretch, between the least and the largest value."""
    width = min(WIDTH, len(values))
    means = [statistics.fmean(values[n * len(values) // width : (n + 1) * len(values) // width]) for n in range(width)]
    least, largest = min(values), max(values)
    span = (largest - least) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int(len(BARS) * (mean - least) / span))] for mean in means)


# -- the page ----------------------------------------------------------------------------------------------------------

WORDS = {
    "Bit-equality": [
        "Recorded, and replayed in fresh processes on the same device under deterministic algorithms. The error is that of the",
        "parameters over the segment's own update.",
    ],
    "Between the GPU and the CPU": [
        "The largest relative error of three segments: the first, one in the middle, the last. 1 is what doing nothing has.",
        "Dropout draws other numbers on a GPU than on a CPU, so the GPT is another training there.",
    ],
    "What recording costs": [
        "Time with / without recording: on the device's clock, and in CPU seconds of the whole process. *Deterministic alone*",
        "is the bare script under deterministic algorithms, which a recorded run on a GPU has too.",
    ],
    "A run as its device sees it": [
        "As figure 2 of the Lab Apex paper: each curve from its least to its largest value."
    ],
}


def driver() -> str:
    """What NVML calls the driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError as error:
        return f"no NVIDIA driver ({error})"
    return f"driver {version.decode() if isinstance(version, bytes) else version}"


def page(host: dict[str, Any], parts: dict[str, list[str]]) -> str:
    environment = host["environment"]
    versions = [
        driver(), f"CUDA {host['cuda']}", f"cuDNN {host['cudnn']}", f"torch {environment['torch']}",
        f"Python {environment['python']}",
    ]  # fmt: skip
    now = datetime.datetime.now(datetime.UTC)
    lines = [
        "# On a GPU",
        "",
        f"Measured by `make gpu-check` on {now:%Y-%m-%d} (UTC) on",
        f"**{environment['device']}** (capability {environment['capability']}): {', '.join(versions)}.",
        "One CPU thread.",
    ]
    for title, words in WORDS.items():
        lines += ["", f"## {title}", "", *words, "", *parts[title]]
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="so little that the figures say nothing")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    options = parser.parse_args()
    lacking = missing()
    if lacking:
        print("\n".join(lacking), file=sys.stderr)
        return 1
    plan = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="labapex-gpu-") as folder:
        return check(options.device, plan, options.out, Path(folder))


def check(device: str, plan: Plan, out: Path, home: Path) -> int:
    from bench import CPU, Bench

    from labapex.protocol.contract import Environment
    from labapex_runner.samples import meter

    bench = Bench(home, CPU if device == "cpu" else {})
    try:
        host = bench.run("host", bench.folder("resnet20"), {})
        environment = Environment.model_validate(host["environment"])
        if not environment.device.startswith(device):
            print(
                f"No GPU: torch {environment.torch} sees none on this machine ({environment.device}). Nothing was measured, "
                f"and {out.name} is as it was.",
                file=sys.stderr,
            )
            return 1
        print(environment.device, flush=True)
        measures: list[Callable[[], list[str]]] = [
            lambda: equality(bench, plan),
            lambda: across(bench, plan, CPU),
            lambda: cost(bench, plan),
            lambda: trace(bench, plan, meter(environment, 1, os.getpid())),
        ]
        parts: dict[str, list[str]] = {}
        for title, measure in zip(WORDS, measures, strict=True):
            parts[title] = measure()
            print(f"\n{title}\n" + "\n".join(parts[title]), flush=True)
    finally:
        bench.close()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(host, parts))
    print(f"\n{out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
