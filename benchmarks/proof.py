"""What a proof costs, and what a replay's error is: `make bench-proof` (QUICK=1 for a first look).

Everything is measured in this run, as CPU seconds of whole processes under one pinned thread, so that a busy machine
changes little; each figure that is computed from measured ones says so. Lines that begin with `{` are JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import CPU, Bench, terms

from labapex.proof import chunks, statefile
from labapex.proof.challenge import draw
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf
from labapex.protocol.replay import Distances

OTHER_KERNELS = {**CPU, "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX", "MKL_CBWR": "COMPATIBLE"}
EPOCHS, PER_EPOCH, AUDITED = 200, 390, 44  # CIFAR-10 as usual; 1 - 0.9^44 = 99 %
METRICS = ("l1", "l2", "linf", "cos")


def tell(**figures: Any) -> None:
    print(json.dumps({"benchmark": "proof", **figures}), flush=True)


# -- recording -------------------------------------------------------------------------------------------------------


def overhead(
    bench: Bench,
    title: str,
    model: str,
    batch: int,
    *,
    iterations: int,
    rounds: int,
    tens: bool,
    options: tuple[str, ...] = (),
) -> dict[str, float]:
    """Recording against the bare script and against `torch.save`, in turns, so that a slower minute meets all of them."""
    ones = max(4, iterations // 2)
    spent: dict[str, list[float]] = {"bare": []}
    leaves: list[float] = []
    saves: list[float] = []
    size = 0
    for turn in range(rounds):
        spent["bare"].append(_step(bench.bare(model, ones, batch, options=options)))
        for every in (1, 10) if tens else (1,):
            length = ones if every == 1 else iterations
            run = bench.record(model, length, batch, every, options=options)
            spent.setdefault(f"record {every}", []).append(_step(run.figures))
            leaves += [run.figures["leaf_seconds"]] if every == 1 else []
            size = run.figures["state_bytes"]
            shutil.rmtree(run.folder)
            if turn == 0:
                saved = bench.bare(model, length, batch, save_every=every, options=options)
                spent[f"save {every}"] = [_step(saved)]
                saves += [saved["save_seconds"]] if every == 1 else []
        spent["bare"].append(_step(bench.bare(model, ones, batch, options=options)))
    step, leaf, save = (statistics.median(values) for values in (spent["bare"], leaves, saves))
    print(f"\n{title}: batch {batch}, {1e3 * step:.0f} ms a step, state {size / 1e6:.1f} MB")
    print(f"  a leaf takes {1e3 * leaf:.1f} ms of CPU time, a naive torch.save {1e3 * save:.1f} ms")
    print("  CPU seconds with / without:   whole runs                 computed")
    print("      k                    torch.save  recorded      torch.save  recorded")
    for every in (1, 10, 100):
        whole = {
            n: statistics.median(spent[f"{n} {every}"]) / step for n in ("save", "record") if f"{n} {every}" in spent
        }
        computed = {n: 1 + cost / every / step for n, cost in (("save", save), ("record", leaf))}
        shown = [f"{whole[n]:.3f}" if n in whole else "-" for n in ("save", "record")]
        print(
            f"    {every:3d}                    {shown[0]:>10}  {shown[1]:>8}      "
            f"{computed['save']:10.4f}  {computed['record']:8.4f}"
        )
        tell(
            model=model,
            options=options,
            batch=batch,
            k=every,
            step_seconds=step,
            leaf_seconds=leaf,
            whole=whole,
            computed=computed,
        )
    print(
        "  computed = 1 + cost / (k x step), with the CPU time of the calls themselves; whole runs differ by their noise, too"
    )
    print(f"  1.02 at k = 1 takes steps of {leaf / 0.02:.2f} s or more, 1.005 at k = 10 of {leaf / 10 / 0.005:.2f} s")
    return {"step": step, "leaf": leaf, "size": size}


def _step(figures: dict[str, Any]) -> float:
    """CPU seconds of a step."""
    return float(figures["seconds"] / figures["steps"])


# -- verifying -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """What asking for a chunk costs, for one leaf, and what its contract needs for that."""

    contract: Contract
    entries: int  # of a state's tree
    bytes: float
    seconds: float  # of checking and measuring it


def ranking(bench: Bench, iterations: int, batch: int) -> Shown:
    """How well a single chunk ranks the updates of a real run, and what its check costs."""
    recorded = bench.record("resnet20", iterations, batch, 1)
    states = recorded.folder / "states"
    with (states / "0.safetensors").open("rb") as first:
        layout = statefile.layout(first).stretches()
    facts = recorded.contract.facts.model_copy(update={"layout": layout})
    contract = recorded.contract.model_copy(update={"facts": facts})
    trees = [(states / f"{n}.tree").read_bytes() for n in range(iterations + 1)]
    leaves = [
        Leaf.model_construct(index=n, state=digest, chunks=len(tree) // 32, update_norm=1.0)
        for n, (digest, tree) in enumerate(zip(recorded.figures["digests"], trees, strict=True))
    ]
    found: list[list[float]] = []
    size = 0
    answers = [_answer(states, trees, number) for number in range(chunks.count(layout))]
    began = time.process_time()
    for number, answer in enumerate(answers):
        measured = chunks.check(contract, leaves, number, io.BytesIO(answer))
        found.append([change.norm or 0.0 for change in measured.changes])
        size += len(answer)
    seconds = (time.process_time() - began) / len(answers) / len(leaves)
    norms = [math.hypot(*changes) for changes in zip(*found, strict=True)]
    ranks = sorted(_spearman(norms, each) for each in found)
    shown = Shown(contract, leaves[0].chunks, size / len(answers) / len(leaves), seconds)
    print(
        f"\nOne chunk of ResNet-20 ranks {iterations} updates (k = 1, batch {batch}), for each of its {len(found)} chunks:"
    )
    print(
        f"  Spearman's rho with the true norms: median {statistics.median(ranks):.3f}, a tenth below "
        f"{ranks[len(ranks) // 10]:.3f}, least {ranks[0]:.3f}"
    )
    print(f"  {shown.bytes:.0f} bytes and {1e3 * seconds:.2f} ms of CPU time a leaf")
    tell(model="resnet20", spearman=statistics.median(ranks), least=ranks[0], leaf_bytes=shown.bytes, seconds=seconds)
    shutil.rmtree(recorded.folder)
    return shown


def _answer(states: Path, trees: list[bytes], number: int) -> bytes:
    parts = []
    for index, tree in enumerate(trees):
        with (states / f"{index}.safetensors").open("rb") as state:
            parts.append(chunks.show(state, tree, number))
    return b"".join(parts)


def _spearman(one: list[float], other: list[float]) -> float:
    return statistics.correlation(_ranks(one), _ranks(other))


def _ranks(values: list[float]) -> list[int]:
    order = sorted(values)
    return [order.index(value) for value in values]


def verification(bench: Bench, unit: dict[str, float], shown: Shown, batch: int, run_length: int) -> None:
    """Unit costs from one real replay; then the sum for a whole job under challenges drawn by the platform's function."""
    recorded = bench.record("resnet20", run_length + 1, batch, run_length)
    _, start = bench.replay(recorded, ())
    report, seconds = bench.replay(recorded, (0, 1))  # of `run_length` steps and of one
    wall = sum(segment.seconds for segment in report.segments)
    long, short = (segment.seconds * (seconds - start) / wall for segment in report.segments)
    step = (long - short) / (run_length - 1)
    leaf = max(0.0, short - step)
    print(f"\nVerifying ResNet-20 at E = {EPOCHS}, S = {PER_EPOCH}: COMPUTED from units measured now:")
    print(
        f"  start of a replay {start:.1f} s (both seeds, once a job), a replayed step {1e3 * step:.0f} ms, "
        f"a segment besides its steps {1e3 * leaf:.0f} ms"
    )
    training = EPOCHS * PER_EPOCH * unit["step"]
    script = recorded.folder / "work" / "train.py"
    print(f"  {AUDITED} segments at random: f = 10 % of false segments are met with {1 - 0.9**AUDITED:.1%}")
    print(
        "      k   challenge                               segments    steps   seconds / training   bytes opened / all"
    )
    for every in (1, 10, 100):
        contract = terms(script, PER_EPOCH, batch, every, "a" * 64, EPOCHS)
        facts = contract.facts.model_copy(update={"layout": shown.contract.facts.layout})
        contract = contract.model_copy(update={"facts": facts})
        dice = random.Random(1)
        leaves = [
            Leaf.model_construct(index=n, step=s, update_norm=dice.uniform(1, 2), chunks=shown.entries)
            for n, s in enumerate(contract.leaf_steps())
        ]
        for name, top, percent, looked in (
            ("random, first, last", 0, 0.0, False),
            ("+ largest of 8 epochs and of all", 1, 0.0, False),
            ("+ PEV 10 % of three epochs", 1, 10.0, False),
            ("+ a chunk of every state", 1, 10.0, True),
        ):
            drawn = draw(
                contract,
                leaves,
                audit_segments=AUDITED,
                top_q=top,
                pev_percent=percent,
                random=random.Random(1),
                ends=False,
            )
            evaluated = sum(len(sample.iterations) for sample in drawn.evaluations) if percent else 0
            opened = {*drawn.segments, len(leaves) - 1, *(e.leaf for e in drawn.evaluations if percent)}
            steps = sum(leaves[n + 1].step - leaves[n].step for n in drawn.segments) + evaluated
            cost = (start + steps * step + len(opened) * leaf + looked * len(leaves) * shown.seconds) / training
            all_bytes = len(leaves) * unit["size"]
            sent = len(opened) * unit["size"] + looked * chunks.answer_size(contract, leaves, 0)
            print(
                f"    {every:3d}   {name:38}  {len(drawn.segments):8d}  {steps:7d}   {cost:18.2%}   {sent / all_bytes:18.2%}"
            )
            tell(model="resnet20", k=every, challenge=name, verification=cost, opened=sent / all_bytes, computed=True)
    shutil.rmtree(recorded.folder)


# -- reproducing -----------------------------------------------------------------------------------------------------


def reproduction(
    bench: Bench, *, iterations: int, batch: int, intervals: tuple[int, ...], hosts: dict[str, dict[str, Any]]
) -> None:
    """Table I of Jia et al.: the largest distance of a replayed from the recorded state over d_ref, that of two seeds' runs."""
    reference = _reference(bench, iterations, batch)
    print(f"\nReproduction error of ResNet-20 over d_ref (Jia et al., table I): {iterations} steps of batch {batch}")
    print(f"  {'k':>4}  {'replayed on':30}" + "".join(f"{metric:>11}" for metric in METRICS) + "   same digest")
    for every in intervals:
        recorded = bench.record("resnet20", iterations, batch, every)
        count = len(recorded.figures["digests"]) - 1
        segments = tuple(sorted({0, count // 3, 2 * count // 3, count - 1}))
        for host, options in hosts.items():
            report, _ = bench.replay(recorded, segments, **options)
            found = [segment.distances for segment in report.segments]
            errors = {
                m: max((getattr(d, m) or 0.0) / (getattr(reference, m) or 1.0) for d in found if d) for m in METRICS
            }
            same = sum(s.state == recorded.figures["digests"][s.leaf + 1] for s in report.segments)
            label = "T" if every == iterations else str(every)
            print(
                f"  {label:>4}  {host:30}"
                + "".join(f"{errors[m]:11.1e}" for m in METRICS)
                + f"   {same} of {len(segments)}"
            )
            tell(model="resnet20", k=every, host=host, same_digest=same, segments=len(segments), **errors)
        shutil.rmtree(recorded.folder)
    print("  the largest of up to four segments; a digest is over the whole state, the distances over the parameters")


def _reference(bench: Bench, iterations: int, batch: int) -> Distances:
    """How far apart the final parameters of two seeds are: the second run's states stand where the replayed ones would."""
    one, other = (bench.record("resnet20", iterations, batch, iterations, seed=seed * 64) for seed in "ab")
    script = "import json, sys\nfrom pathlib import Path\nfrom labapex.proof.state import State, distances\n"
    script += "one, other, start = (State.load(Path(p)) for p in sys.argv[1:])\n"
    script += "print(distances(claimed=one, replayed=other, start=start).model_dump_json())"
    paths = [
        one.folder / "states" / "1.safetensors",
        other.folder / "states" / "1.safetensors",
        one.folder / "states" / "0.safetensors",
    ]
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, paths)], stdout=subprocess.PIPE, text=True, check=True
    )
    shutil.rmtree(one.folder)
    shutil.rmtree(other.folder)
    return Distances.model_validate_json(ran.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller steps; the ratios are rough")
    quick = parser.parse_args().quick
    small = {"the same class": {}, "two threads": {"threads": 2}}
    with tempfile.TemporaryDirectory(prefix="labapex-bench-") as home:
        bench = Bench(Path(home))
        try:
            if quick:
                how = {"iterations": 5, "rounds": 1, "tens": False}
                resnet = overhead(bench, "ResNet-20, 32 x 32 images", "resnet20", 32, **how)
                overhead(bench, "GPT, 10.7 M parameters", "gpt", 4, **how)
                verification(bench, resnet, ranking(bench, 20, 32), 32, 5)
                reproduction(bench, iterations=10, batch=16, intervals=(1, 10), hosts=small)
            else:
                how = {"iterations": 21, "rounds": 2, "tens": True}
                resnet = overhead(bench, "ResNet-20, 32 x 32 images", "resnet20", 128, **how)
                overhead(bench, "GPT, 10.7 M parameters", "gpt", 8, **how)
                overhead(bench, "The same GPT, its head alone trained", "gpt", 8, options=("--head",), **how)
                verification(bench, resnet, ranking(bench, 100, 32), 128, 10)
                hosts = {**small, "other kernels": {"host": OTHER_KERNELS}}
                reproduction(bench, iterations=40, batch=32, intervals=(1, 10, 40), hosts=hosts)
        finally:
            bench.close()


if __name__ == "__main__":
    main()
