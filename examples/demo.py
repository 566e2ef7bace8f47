"""The main job from end to end on this machine: a platform, a worker, a client, and what each of them sees.

    python examples/demo.py [--example digits|chargpt] [--cheat NAME]

Starts the platform with its embedded defaults on a free port, enrols a worker, hands in the example with the command line
client and ends with the client's exit code: 0 verified, 104 rejected. Everything lies under `var/demo`, logs included.
With `--cheat` the worker is one of the dishonest hosts of `tests/attacks`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from labapex import sandbox
from labapex.client import Client

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "var" / "demo"
CHEATS = ("noop", "skip-epochs", "forged-loss", "other-seed", "half-batch")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", default="digits", choices=["digits", "chargpt"])
    parser.add_argument("--cheat", default="", choices=["", *CHEATS])
    chosen = parser.parse_args()
    example = ROOT / "examples" / chosen.example
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True, mode=0o700)
    if not (example / "data").exists():
        say(f"Preparing the data of {chosen.example}")
        subprocess.run([sys.executable, "prepare.py"], cwd=example, check=True)
    environment = dict(os.environ)
    reason = sandbox.available()
    if reason is not None:
        say(f"NO SANDBOX on this machine ({reason}). The demo runs its own examples without one.")
        environment[sandbox.UNCONFINED_SETTING] = "1"
    with platform(environment) as url:
        client = Client(url)
        name, password = (HOME / "platform" / "first-login").read_text().split()
        environment |= {"LABAPEX_URL": url, "LABAPEX_TOKEN": client.login(name, password).token}
        with worker(environment, url, chosen.cheat):
            command = [program("labapex"), "run", str(example / "labapex.yaml"), "--yes", "--json"]
            ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)
    print(ended.stdout.decode(), end="", flush=True)  # the summary, as the last line of all that was printed
    return ended.returncode


@contextlib.contextmanager
def platform(environment: dict[str, str]) -> Iterator[str]:
    """The platform on a free port; yields its address once it answers."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {"LABAPEX_HOME": str(HOME / "platform"), "LABAPEX_PUBLIC_URL": url, "LABAPEX_TRIAL_HOURS": "0"}
    command = [sys.executable, "manage.py", "serve", "--port", str(port)]
    with started("platform", command, environment | settings) as process:
        deadline = time.monotonic() + 600  # the first start freezes the runner
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/healthz", timeout=2, trust_env=False).is_success:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the platform did not start; see {HOME / 'platform.log'}")
            time.sleep(0.1)
        say(f"Platform at {url}; sign in with what stands in {HOME / 'platform' / 'first-login'}")
        yield url


@contextlib.contextmanager
def worker(environment: dict[str, str], url: str, cheat: str) -> Iterator[None]:
    """A worker that is enrolled and takes jobs; with `cheat`, one that lies."""
    home = HOME / "worker"
    code = Client(url, token=environment["LABAPEX_TOKEN"]).enrolment_code().code
    host = [program("labapex-worker")]
    enrol = [*host, "enrol", code, "--platform", url, "--name", cheat or "this-machine", "--home", str(home)]
    subprocess.run(enrol, env=environment, check=True, stderr=subprocess.DEVNULL)
    if cheat:
        say(f"The worker cheats: {cheat}")
        host = [sys.executable, str(ROOT / "tests" / "attacks" / "host.py"), cheat]
    with started("worker", [*host, "run", "--home", str(home)], environment):
        yield


@contextlib.contextmanager
def started(name: str, command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the background, its output in `var/demo/NAME.log`; it is ended when the block is left."""
    with (HOME / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def program(name: str) -> str:
    """A command of the environment that runs this."""
    return str(Path(sys.executable).with_name(name))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
