"""What it costs to package and to start one job, against two baselines: `make bench-package`, or with `--quick` up to 100 MB.

Baselines, in the same run: freezing one executable a job (PyInstaller, cold, with its packages installed already), and the
usual place for a payload, the end of the file, through which the bootloader has to look for its archive.

For each size of data: sealing at upload (once for a data set, whoever uses it), packaging (index, manifest, signature, layout:
what happens for every lease), sending the whole, verifying it on the host, and starting it, up to its first own line. A line
of JSON each: medians of wall clock in milliseconds, CPU of packaging and of a start likewise, and the ratios to the baselines.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.labapex.authority import Authority

from labapex import executable, sealing
from labapex.protocol.contract import Contract, ScriptFacts
from labapex.protocol.manifest import Index, IndexEntry, Manifest, Section
from labapex_runner.build import build

MB = 1_000_000
SIZES, QUICK = (1, 100, 1000), (1, 100)
REPEATS = 5
USAGE = 2  # the exit status of a runner that is asked for something it does not know


def measured(work: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    """(wall clock, CPU) in milliseconds, medians of some runs; CPU of this process and of what it started."""
    walls, cpus = [], []
    for _ in range(repeats):
        began, busy = time.perf_counter(), _cpu()
        work()
        walls.append(1000 * (time.perf_counter() - began))
        cpus.append(1000 * (_cpu() - busy))
    return statistics.median(walls), statistics.median(cpus)


def _cpu() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def contract() -> Contract:
    facts = ScriptFacts(
        loop="train.py:1",
        iterations_per_epoch=1,
        has_loader=True,
        gradients_are_state=False,
        parameters=1,
        state_bytes=1,
    )
    return Contract(
        job=uuid4(), lease=uuid4(), seed=secrets.token_hex(32), code="c0" * 32, data="da" * 32, script="train.py", args=(),
        epochs=1, checkpoint_every=1, threads=1, facts=facts,
    )  # fmt: skip


def start(path: Path) -> None:
    """Start an executable and let it say how it is used: its bootloader's work and Python's, and nothing of a job's."""
    line, nothing = [str(path), "dance"], subprocess.DEVNULL
    if (code := subprocess.run(line, env={}, stderr=nothing, check=False).returncode) != USAGE:
        raise SystemExit(f"{path.name} did not start: exit status {code}")


def measure(runner: executable.Runner, folder: Path, size: int) -> dict[str, float]:
    """Milliseconds of each step for one script and `size` bytes of data."""
    plain = {"train.py": folder / "train.py", "data/all.bin": folder / "data"}
    _fill(plain["train.py"], 10_000)
    _fill(plain["data/all.bin"], size)
    keys = {name: sealing.new_key() for name in plain}
    blobs: dict[str, tuple[Path, sealing.Sealed]] = {}

    def seal() -> None:
        for number, (name, source) in enumerate(plain.items()):
            path = folder / str(number)
            with source.open("rb") as given, path.open("wb") as file:
                blobs[name] = path, sealing.seal_stream(given, file, keys[name])

    authority = Authority()
    content_key, worker = sealing.new_key(), uuid4()
    made: list[executable.Layout] = []

    def package() -> None:
        entries = (
            IndexEntry(path=name, digest=sealed.digest_plain, size=sealed.size, key=keys[name].hex())
            for name, (_, sealed) in blobs.items()
        )
        index = executable.seal_index(Index(entries=tuple(entries)), content_key)
        sections = [Section(digest=sealed.sealed_digest, size=sealed.sealed_size) for _, sealed in blobs.values()]
        manifest = Manifest(
            key=authority.manifest_key, release=authority.release(runner),
            bootloader_size=runner.bootloader_size, archive_size=runner.archive_size,
            sections=(executable.describe(index), *sections), worker=worker, contract=contract(), expires_at=2**31,
        )  # fmt: skip
        parts: list[bytes | Path] = [index, *(path for path, _ in blobs.values())]
        made[:] = [executable.layout(runner, parts, manifest, authority.sign(manifest))]

    whole, appended = folder / "executable", folder / "appended"
    found = {"seal_once_ms": measured(seal, 1)[0]}
    found["package_ms"], found["package_cpu_ms"] = measured(package, 9)
    found["send_ms"] = measured(lambda: executable.write(whole, made[0]), 1)[0]
    found["verify_ms"] = measured(lambda: executable.verify(whole, authority.trust, worker, 0.0), 1)[0]
    found["start_ms"], found["start_cpu_ms"] = measured(lambda: start(whole))
    whole.unlink()
    with appended.open("wb") as file:
        for part in (runner.bootloader, runner.archive, *(path for path, _ in blobs.values())):
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, MB)
    appended.chmod(0o700)
    found["start_appended_ms"], found["start_appended_cpu_ms"] = measured(lambda: start(appended))
    appended.unlink()
    return found


def _fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for left in range(size, 0, -MB):
            file.write(os.urandom(min(MB, left)))


def say(**figures: object) -> None:
    print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in figures.items()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runner", type=Path, default=Path("build/runner"), help="the cached build")
    parser.add_argument("--quick", action="store_true", help="without 1 GB of data, which takes 3 GB of disk")
    options = parser.parse_args()
    build(options.runner.resolve())
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        cold = Path(name) / "cold"
        cold.mkdir()
        shutil.copytree(options.runner / "venv", cold / "venv", symlinks=True)  # PyInstaller alone, not the downloads
        freeze, freeze_cpu = measured(lambda: build(cold), 1)
        cached, _ = measured(lambda: build(cold), 1)
        runner = executable.load_runner(cold)
        say(
            what="a cold build", wall_ms=freeze, cpu_ms=freeze_cpu, cached_build_ms=cached,
            runner_bytes=runner.bootloader_size + runner.archive_size,
        )  # fmt: skip
        for size in QUICK if options.quick else SIZES:
            figures = measure(runner, Path(name), size * MB)
            say(
                what=f"{size} MB of data",
                **figures,
                packages_per_cold_build=freeze / figures["package_ms"],
                start_appended_per_start=figures["start_appended_ms"] / figures["start_ms"],
            )


if __name__ == "__main__":
    main()
