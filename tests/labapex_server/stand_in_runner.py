"""Plays the frozen runner: a real program with its command line, which takes its behaviour from the job's script.

A script of this test suite is one line, for example `problem: it raised`. An honest state file hashes to what
`telemetry.executable.Executable` commits to.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

ENVIRONMENT = {"python": "3.11", "torch": "2.13", "device": "cpu: test", "capability": "AVX2", "threads": 1}
FACTS = {
    "loop": "train.py:9",
    "iterations_per_epoch": 7,
    "has_loader": True,
    "gradients_are_state": False,
    "parameters": 10,
    "state_bytes": 100,
}


def main() -> None:
    mode, folder = sys.argv[1], Path(sys.argv[2])
    request = json.loads((folder / "request.json").read_bytes())
    script = request["contract"]["script"] if mode == "replay" else request["script"]
    word, _, rest = (folder / "work" / script).read_text().strip().partition(": ")
    if word == "crash":
        sys.stderr.write("Killed by its own hand\n")
        os._exit(7)
    if word == "linger":
        time.sleep(float(rest))
    if word == "hoard":
        hoard = bytearray(int(rest))
        hoard[::4096] = bytes([1]) * len(hoard[::4096])
        time.sleep(3600)
    if word == "hang":
        time.sleep(3600)
    if word == "link":
        (folder / "report.json").symlink_to("/etc/passwd")
        return
    if word == "flood":
        (folder / "report.json").write_bytes(b" " * (65 << 20))
        return
    if word == "look":
        seen = {"environment": sorted(os.environ), "secret": Path(rest).exists()}
        report: dict[str, object] = {"problem": json.dumps(seen)}
    elif word == "packages":
        report = {"problem": " ".join(sorted(p.name for p in Path(os.environ["LABAPEX_PACKAGES"]).iterdir()))}
    elif mode == "preflight":
        report = preflight(word, rest)
    else:
        report = replay(request, folder)
    temporary = folder / "report.json.new"
    temporary.write_text(json.dumps(report))
    temporary.rename(folder / "report.json")


def preflight(word: str, rest: str) -> dict[str, object]:
    if word == "problem":
        return {"problem": rest, "console": "Traceback"}
    named = [rest] if word == "stolen" else []
    seconds = float(rest) if word == "slow" else 0.01
    per_epoch = int(rest) if word == "long" else 7
    return {
        "facts": {**FACTS, "iterations_per_epoch": per_epoch},
        "environment": ENVIRONMENT,
        "initial_state": "11" * 32,
        "start": {"tensors": 4, "given": len(named), "unproven": len(named), "names": named},
        "iteration_seconds": seconds,
        "replay_max_error": 0.0,
        "console": "epoch 1\n",
    }


def replay(request: dict[str, dict[str, object]], folder: Path) -> dict[str, object]:
    """Every segment ends in the state that an honest worker commits to. No leaf of this suite has a true batch digest."""
    script = (folder / "work" / str(request["contract"]["script"])).read_text()
    if script.startswith("true: "):
        return truth(request, json.loads(script.removeprefix("true: ")), folder)
    states = sorted(int(path.stem) for path in (folder / "states").iterdir())
    if sorted(map(int, request["digests"])) != states:
        return {"problem": "states and digests do not belong together"}
    (folder / "weights.safetensors").write_bytes(b"weights of the final state")
    segments = [
        {
            "leaf": leaf,
            "start": 0,
            "stop": 1,
            "state": hashlib.sha256(f"state {leaf + 1}".encode()).hexdigest(),
            "chunks": 3,
            "settings": "5e" * 32,
            "batches": "ba" * 32,
            "losses": "",
            "seconds": 0.1,
        }
        for leaf in request["segments"]
    ]
    return {
        "environment": ENVIRONMENT,
        "initial_state": hashlib.sha256(b"state 0").hexdigest(),
        "segments": segments,
        "seconds": 0.5,
    }


def truth(request: dict[str, Any], told: dict[str, Any], folder: Path) -> dict[str, object]:
    """What a replay finds in a run whose states, steps and losses the script tells; from each state that is not there it goes
    back to one that is, and reports what it passes."""
    (folder / "weights.safetensors").write_bytes(b"weights of the final state")
    (folder / "made").mkdir()
    (folder / "made" / "initial.safetensors").write_bytes(a_state(0))
    for index in request["make"]:
        made = base64.b64decode(told["files"][index]) if "files" in told else a_state(index)
        (folder / "made" / f"{index}.safetensors").write_bytes(made)
    here = sorted(int(path.stem) for path in (folder / "states").iterdir())
    passed: dict[int, int] = {}
    for wanted in request["segments"]:
        origin = max(index for index in here if index <= wanted)
        passed |= dict.fromkeys(range(origin, wanted + 1), origin)
    steps, losses = told["steps"], told["losses"]
    segments = [
        {
            "leaf": leaf,
            "origin": origin if origin < leaf else None,
            "start": steps[leaf],
            "stop": steps[leaf + 1],
            "state": os.urandom(32).hex() if leaf == told.get("wobble") else told["states"][leaf + 1],
            "chunks": 3,
            "settings": "5e" * 32,
            "batches": "ba" * 32,
            "losses": base64.b64encode(
                b"".join(struct.pack("<d", loss) for loss in losses[steps[leaf] : steps[leaf + 1]])
            ).decode(),
            "update_norm": 0.5,
            "seconds": 0.1,
        }
        for leaf, origin in sorted(passed.items())
    ]
    return {
        "environment": ENVIRONMENT,
        "initial_state": told["states"][0],
        "initial_chunks": 3,
        "initial_settings": "5e" * 32,
        "segments": segments,
        "seconds": 0.5,
    }


def a_state(index: int) -> bytes:
    """As `gateway.stage.a_true_state`, which a confined child cannot import."""
    metadata = {"structure": json.dumps({"step": index}), "parameters": json.dumps(["w"])}
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"__metadata__": metadata, "w": entry}).ljust(256).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", index)


if __name__ == "__main__":
    main()
