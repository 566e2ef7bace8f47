"""What it costs to package one job, against freezing one executable a job: `python benchmarks/package.py`.

For each size of data: sealing at upload (once for a data set, whoever uses it), packaging (index, manifest, signature,
layout: what happens for every lease), sending the whole, and verifying it on the host. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from labapex import executable, sealing
from labapex.protocol.contract import Contract, ScriptFacts
from labapex.protocol.manifest import Index, IndexEntry, Manifest, Section
from labapex_runner.build import build

MB = 1_000_000
REPEATS = 7


def milliseconds(work: Callable[[], object]) -> float:
    """The median of some runs."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


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


def measure(runner: executable.Runner, folder: Path, size: int) -> dict[str, float]:
    """Milliseconds of each step for one script and `size` bytes of data."""
    files = {"train.py": secrets.token_bytes(10_000), "data/all.bin": secrets.token_bytes(size)}
    keys = {name: sealing.new_key() for name in files}
    blobs: dict[str, tuple[Path, sealing.Sealed]] = {}

    def seal() -> None:
        for number, (name, data) in enumerate(files.items()):
            path = folder / str(number)
            with path.open("wb") as file:
                blobs[name] = path, sealing.seal_stream(io.BytesIO(data), file, keys[name])

    private, public = sealing.new_signing_keys()
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
            runner=runner.digest, bootloader_size=runner.bootloader_size, archive_size=runner.archive_size,
            sections=(executable.describe(index), *sections), worker=worker, contract=contract(), expires_at=2**31,
        )  # fmt: skip
        parts: list[bytes | Path] = [index, *(path for path, _ in blobs.values())]
        made[:] = [executable.layout(runner, parts, manifest, sealing.sign(private, manifest))]

    whole = folder / "executable"
    return {
        "seal_once_ms": milliseconds(seal),
        "package_ms": milliseconds(package),
        "send_ms": milliseconds(lambda: executable.write(whole, made[0])),
        "verify_ms": milliseconds(lambda: executable.verify(whole, public, worker, 0.0)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runner", type=Path, default=Path("build/runner"), help="the cached build")
    options = parser.parse_args()
    build(options.runner.resolve())
    with tempfile.TemporaryDirectory() as name:
        cold = Path(name) / "cold"
        cold.mkdir()
        shutil.copytree(options.runner / "venv", cold / "venv", symlinks=True)  # PyInstaller alone, not the downloads
        began = time.perf_counter()
        build(cold)
        freeze = 1000 * (time.perf_counter() - began)
        began = time.perf_counter()
        build(cold)
        cached = 1000 * (time.perf_counter() - began)
        runner = executable.load_runner(cold)
        result: dict[str, object] = {"freeze_ms": round(freeze), "cached_build_ms": round(cached, 1)}
        result["runner_bytes"] = runner.bootloader_size + runner.archive_size
        for size in (MB, 100 * MB):
            figures = measure(runner, Path(name), size)
            figures["freezes_per_package"] = freeze / figures["package_ms"]
            result[f"{size // MB} MB"] = {key: round(value, 2) for key, value in figures.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
