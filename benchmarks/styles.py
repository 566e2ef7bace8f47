"""The styles of scripts that work unchanged, through the commands that people type: `make bench-styles`.

Every script of `tests/scripts/` is recorded (`labapex record`), its proof verified with every window replayed (`labapex
verify`), and two windows replayed each by itself (`labapex replay`): one in the middle, and the last. Names after
`benchmarks/styles.py` choose scripts. Verification seconds hold the start of a Python with torch, which weighs much in
scripts as small as these. Lines that begin with `{` are JSON; the exit status is 1 where a script could not be recorded,
was not verified, or a window was not reproduced bit for bit.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.labapex.proof.lab import SCRIPTS
from tests.labapex.proof.test_session import DECLARED, INSTALLED
from tests.labapex.proof.test_styles import FRAMEWORKS, STYLES, Style

from labapex.proof import folder

LABAPEX = Path(sys.executable).with_name("labapex")
EVERY = 3
SEED = "5"
EVERY_WINDOW = 10_000
AT_ONCE = min(4, os.cpu_count() or 1)


class Failed(Exception):
    """A command refused; its last lines say why."""


def styles() -> Iterator[Style]:
    """All scripts of `tests/scripts/`. Raises `SystemExit` where one is not listed, so that none is forgotten."""
    listed = [*STYLES, *FRAMEWORKS, *(Style(name, per_epoch=declared) for name, declared in DECLARED.items())]
    if missing := {path.stem for path in SCRIPTS.glob("*.py")} - {style.name for style in listed}:
        raise SystemExit(f"not listed among the styles: {', '.join(sorted(missing))}")
    for style in listed:
        if style.missing:
            raise SystemExit(f"{style.name} needs {style.needs}: make setup")
        yield style


def labapex(*words: str | Path) -> dict[str, Any]:
    """What a command prints as JSON. Raises `Failed`."""
    done = subprocess.run([LABAPEX, *words, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"`labapex {words[0]}` ended with exit code {done.returncode}: {done.stderr[-1000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(style: Style) -> dict[str, Any]:
    """Record, verify and replay one script. Raises `Failed`."""
    with tempfile.TemporaryDirectory(prefix="labapex-styles-") as place:
        script, proof = Path(place, f"{style.name}.py"), Path(place, "proof")
        shutil.copy(SCRIPTS / script.name, script)
        if style.name == "session_library":
            shutil.copy(INSTALLED / "handloop.py", place)
        terms = ["--epochs", str(style.epochs), "--every", str(EVERY), "--seed", SEED]
        if style.per_epoch is not None:
            terms += ["--iterations-per-epoch", str(style.per_epoch)]
        recorded = labapex("record", script, "--out", proof, *terms)
        verdict = labapex("verify", proof, "--script", script, "--audit", str(EVERY_WINDOW))
        steps = [leaf.step for leaf in folder.read(proof).leaves]
        same = 0
        for at in (len(steps) // 2, len(steps) - 1):
            start, stop = steps[at - 1], steps[at]
            alone = labapex("replay", proof, "--script", script, "--from", str(start), "--steps", str(stop - start))
            same += alone["digest_equal"] and alone["one_class"]
    return {
        "verdict": verdict["verdict"],
        "iterations": recorded["iterations"],
        "windows": len(steps) - 1,
        "replayed": verdict["cost"]["segments_replayed"],
        "error": verdict["replay_max_error"],
        "alone_same": same,
        "verify_seconds": verdict["cost"]["verify_seconds"],
        "train_seconds": recorded["train_seconds"],
    }


def tried(style: Style) -> dict[str, Any] | Failed:
    try:
        return measure(style)
    except Failed as failed:
        return failed


def holds(found: dict[str, Any]) -> bool:
    """Whether every window was reproduced bit for bit."""
    asked = {"verdict": "verified", "error": 0, "replayed": found["windows"], "alone_same": 2}
    return all(found[name] == value for name, value in asked.items())


def main() -> None:
    chosen = [style for style in styles() if len(sys.argv) == 1 or style.name in sys.argv[1:]]
    print("                                            windows                            seconds")
    print("script               verdict   iterations  replayed  of  by itself  max error  verify  train", flush=True)
    right = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for style, found in zip(chosen, pool.map(tried, chosen), strict=True):
            if isinstance(found, Failed):
                print(f"{style.name:20} {found}", flush=True)
                continue
            print(
                f"{style.name:20} {found['verdict']:9} {found['iterations']:10}  {found['replayed']:8}  "
                f"{found['windows']:2}  {found['alone_same']:>4} of 2  {found['error']:9.1e}  "
                f"{found['verify_seconds']:6.1f}  {found['train_seconds']:5.2f}"
            )
            print(json.dumps({"benchmark": "styles", "style": style.name, **found}), flush=True)
            right += holds(found)
    print(f"{right} of {len(chosen)} scripts verified, every window the same bit for bit")
    sys.exit(0 if right == len(chosen) else 1)


if __name__ == "__main__":
    main()
