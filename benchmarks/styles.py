"""The styles of scripts that work unchanged: each recorded whole and replayed from every window: `make bench-styles`.

Training seconds are those of the recorded run, with its recording; replay seconds hold the loading, restoring and digesting
of states, which weighs much in scripts as small as these. Names after `benchmarks/styles.py` choose styles. Lines that
begin with `{` are JSON; the exit status is 1 where a window was not reproduced bit for bit.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.test_styles import STYLES, Style

from labapex.proof.rules import replay_max_error


def measure(lab: laboratory.Lab, style: Style, folder: Path) -> dict[str, float]:
    """Record one style and replay all of it. Raises `SystemExit` where it cannot be recorded."""
    tried = lab.preflight(
        laboratory.SCRIPTS / f"{style.name}.py", folder, epochs=style.epochs, per_epoch=style.per_epoch
    )
    if tried.facts is None:
        raise SystemExit(f"{style.name}: {tried.problem}")
    recording = lab.record(laboratory.contract(tried.facts, epochs=style.epochs), folder)
    opening = laboratory.challenge(recording, segments=len(recording.leaves), ends=True)
    report = lab.replay(recording, opening)
    error = replay_max_error(laboratory.evidence(recording, opening, report))
    same = sum(segment.state == recording.leaves[segment.leaf + 1].state for segment in report.segments)
    steps = sum(segment.stop - segment.start for segment in report.segments)
    training = (recording.times[-1] - recording.times[0]) / (len(recording.times) - 1)
    return {
        "iterations": len(recording.losses),
        "windows": len(recording.leaves) - 1,
        "same": same,
        "error": float("inf") if error is None else error,
        "replay_seconds": sum(segment.seconds for segment in report.segments) / max(1, steps),
        "training_seconds": training,
    }


def main() -> None:
    chosen = [style for style in STYLES if len(sys.argv) == 1 or style.name in sys.argv[1:]]
    lab = laboratory.Lab()
    print("                                    windows               milliseconds a step")
    print("style                iterations  replayed  same  max error   replay  training", flush=True)
    failed = False
    try:
        for style in chosen:
            with tempfile.TemporaryDirectory(prefix="labapex-styles-") as folder:
                found = measure(lab, style, Path(folder))
            print(
                f"{style.name:20} {found['iterations']:10.0f}  {found['windows']:8.0f}  {found['same']:4.0f}  "
                f"{found['error']:9.1e}  {1e3 * found['replay_seconds']:7.1f}  {1e3 * found['training_seconds']:8.1f}"
            )
            print(json.dumps({"benchmark": "styles", "style": style.name, **found}), flush=True)
            failed = failed or found["same"] != found["windows"] or found["error"] != 0
    finally:
        lab.close()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
