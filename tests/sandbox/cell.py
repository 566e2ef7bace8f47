"""Runs probe and bombs as one program that meets foreign code, in a process of any user: `cell.py worker|verifier FOLDER`.

Genuine throughout: the worker's start of a frozen job, with keys and log; the platform's frozen preflight. Prints JSON.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).resolve().parents[2]
RUNNER = ROOT / "build" / "runner"
PROBE = Path(__file__).with_name("probe.py").read_bytes()
MIB = 1 << 20
BOMBS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory bomb": "import os, time\nfor _ in range(3): os.fork()\nhoard = b'x' * (48 << 20)\ntime.sleep(99)",
    "disk bomb": "import time\nfor n in range(64): open(f'{n}', 'wb').write(bytes(1 << 20))\ntime.sleep(99)",
}
BYSTANDER = "import time; time.sleep(2.5)"


def worker(folder: Path, given: bytes) -> tuple[str, Any]:
    """What the probe printed as a job of a worker, and the confinement of such jobs."""
    from tests.labapex_runner import jobs

    from labapex import executable
    from labapex_worker import supervisor
    from labapex_worker.config import Config, Home, own_site_packages

    home, lease = Home(folder / "home"), uuid4()
    home.create()
    place = supervisor.Folder(home.lease(lease))
    place.create()
    made = jobs.make(
        place.path,
        {"train.py": PROBE, "data/probe.json": given},
        runner=executable.load_runner(RUNNER),
        terms=jobs.contract().model_copy(update={"lease": lease}),
    )
    made.path.chmod(0o755)
    config = Config(
        platform="http://127.0.0.1", worker=made.worker, name="cell", root=made.trust.root,
        site_packages=own_site_packages(), processes=256,
    )  # fmt: skip
    agent = jobs.Agent(place.socket, made)
    place.socket.chmod(0o666)
    agent.start()
    process = supervisor.start(lease, home, config, threads=1)
    process.wait(timeout=120)
    agent.close()
    if agent.error is not None:
        raise agent.error
    said = agent.received.console("stdout") or (place.path / "output").read_text() + agent.received.console("stderr")
    return said, supervisor.confinement(config, folder, see=(), threads=1)


def verifier(folder: Path, given: bytes) -> tuple[str, Any]:
    """What the probe printed in the platform's preflight, and the confinement of its children."""
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "labapex_server.settings",
        "LABAPEX_HOME": str(folder / "home"),
        "LABAPEX_RUNNER_DIR": str(RUNNER),
        "LABAPEX_CHILD_PROCESSES": "256",
    }
    from labapex.protocol.replay import PreflightReport, PreflightRequest
    from labapex_server.lib import childprocess

    request = PreflightRequest(
        script="train.py", args=(), epochs=1, iterations_per_epoch=None, checkpoint_every=1, threads=1, seed="00" * 32
    )
    with childprocess.private_folder("cell") as place:
        (place / "work" / "data").mkdir(parents=True)
        (place / "work" / "train.py").write_bytes(PROBE)
        (place / "work" / "data" / "probe.json").write_bytes(given.replace(b"FOLDER", place.name.encode()))
        report = childprocess.run(
            "preflight", place, request=request, report=PreflightReport, threads=1, seconds=120, beat=lambda: None
        )
    return report.console + (report.problem or ""), childprocess._confinement(folder, 1, [])


def bombs(folder: Path, confinement: Any) -> dict[str, str | None]:
    """The limit that each bomb was ended by, None where it was not; all at once, and with a bystander."""
    from labapex import sandbox, watch

    running = {}
    for name, script in {**BOMBS, "a bystander": BYSTANDER}.items():
        place = folder / name.replace(" ", "-")
        place.mkdir()
        box = replace(
            confinement,
            folder=place,
            read_only=(*sandbox.python_paths(),),
            total_memory_bytes=128 * MIB if name == "memory bomb" else confinement.total_memory_bytes,
            disk_bytes=32 * MIB if name == "disk bomb" else confinement.disk_bytes,
        )
        running[name] = sandbox.popen([sys.executable, "-I", "-c", script], box, stderr=subprocess.PIPE)
    ends: dict[str, str | None] = {}
    for name, process in running.items():
        said = process.communicate(timeout=60)[1].decode()
        last = said.strip().splitlines()[-1] if said.strip() else ""
        ends[name] = last if process.returncode == watch.EXCEEDED else None
        if name == "a bystander" and process.returncode != 0:
            ends[name] = last or f"ended with {process.returncode}"
    return ends


def main(role: str, folder: Path) -> None:
    secret, docker = folder / "secret", folder / "docker.sock"
    secret.write_text("the host's")
    with socket.create_server(("127.0.0.1", 0)) as port, socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(docker))
        docker.chmod(0o666)
        daemon.listen()
        given = {
            "secret": str(secret), "docker": str(docker), "port": port.getsockname()[1], "folders": ["job", "FOLDER"],
        }  # fmt: skip
        said, confinement = {"worker": worker, "verifier": verifier}[role](folder, json.dumps(given).encode())
    found = next((line for line in said.splitlines() if line.startswith('{"refused"')), None)
    if found is None:
        raise SystemExit(f"the probe did not come to its end: {said}")
    print(json.dumps({**json.loads(found), "bombs": bombs(folder, confinement)}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
