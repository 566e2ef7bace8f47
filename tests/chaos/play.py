"""Jobs through a platform, its pipeline and hosts of which nothing is spared: `make chaos SECONDS=600 SEED=1`.

Real processes on PostgreSQL and RabbitMQ: web, pipeline, two hosts with the real agent and the real executable. While jobs run,
`schedule` is carried out: programs are killed with -9 and started again, connections to the database and the broker are cut,
and the line of each host does to messages of the log what `line` can. Then all is let be, every job has to come to its end,
and `oracle` looks whether the books say what they must. The last line is JSON; the exit status is 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in (".", "client_sdk", "worker_agent", "platform")]

import psycopg  # noqa: E402
from tests.chaos.line import Line  # noqa: E402
from tests.chaos.schedule import ON_MESSAGES, Fault, Kind, schedule  # noqa: E402
from tests.e2e import scripts  # noqa: E402
from tests.e2e.services import own_database, own_queue, own_redis  # noqa: E402
from tests.e2e.stack import Process, Stack, Worker  # noqa: E402
from tests.e2e.wire import State, Wire  # noqa: E402

from labapex.errors import LabApexError, PlatformUnreachable  # noqa: E402
from labapex.protocol.states import JobState  # noqa: E402

HOSTS = 3
DOWN_SECONDS = 0.5  # before what was killed is started again
CALM_SECONDS = 420.0  # after the last fault, within which every job that was begun must come to its end
KEPT = ROOT / "test-artefacts" / "chaos"


class Play:
    def __init__(
        self, stack: Stack, workers: Sequence[Worker], lines: Sequence[Line], broker: Wire, database: str
    ) -> None:
        self.stack, self.workers, self.lines, self.broker, self.database = stack, workers, lines, broker, database
        self.applied: Counter[Kind] = Counter()
        self._later: list[tuple[float, Process | None]] = []  # when what is to be brought back; None: the broker's line

    def run(self, faults: Sequence[Fault], seconds: float) -> None:
        begin = time.monotonic()
        for fault in faults:
            self._wait(begin + fault.at)
            self._do(fault)
        self._wait(begin + seconds)
        for line in self.lines:
            line.calm()
            self.applied += line.applied
        while self._later:
            self._wait(time.monotonic() + 0.1)

    def _wait(self, until: float) -> None:
        while True:
            now = time.monotonic()
            for due in [due for due in self._later if due[0] <= now]:
                self._later.remove(due)
                if due[1] is None:
                    self.broker.set(State.WHOLE)
                else:
                    due[1].start()
            if now >= until:
                return
            time.sleep(min(0.05, until - now))

    def _do(self, fault: Fault) -> None:
        worker = self.workers[fault.host]
        match fault.kind:
            case kind if kind in ON_MESSAGES or kind is Kind.CUT:
                self.lines[fault.host].do(fault)
                return
            case Kind.KILL_AGENT:
                done = self._kill(worker)
            case Kind.KILL_WEB:
                done = self._kill(self.stack.platform)
            case Kind.KILL_PIPELINE:
                assert self.stack.pipeline is not None
                done = self._kill(self.stack.pipeline)
            case Kind.KILL_EXECUTABLE:
                leases = sorted(worker.leases())
                done = bool(leases)
                if leases:
                    worker.kill_executable(leases[fault.draw % len(leases)])
            case Kind.DROP_DATABASE:
                with psycopg.connect(self.database, autocommit=True) as connection:
                    others = "pid <> pg_backend_pid() AND datname = current_database()"
                    query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
                    done = bool(connection.execute(query).fetchall())
            case Kind.CUT_BROKER:
                self.broker.set(State.CUT)
                self._later.append((time.monotonic() + 1 + fault.draw % 1000 / 1000, None))
                done = True
        self.applied[fault.kind] += done

    def _kill(self, process: Process) -> bool:
        """False where it is down already."""
        if any(waiting is process for _, waiting in self._later):
            return False
        process.kill()
        self._later.append((time.monotonic() + DOWN_SECONDS, process))
        return True


def states(stack: Stack) -> dict[uuid.UUID, str]:
    """Of all jobs; empty while the platform does not answer."""
    try:
        return {job.id: job.state.value for job in stack.client.all_jobs()}
    except LabApexError as error:
        if error.exit_code not in (LabApexError.exit_code, PlatformUnreachable.exit_code):
            raise  # a token that counts no more is no platform that was killed
        return {}


def finish(stack: Stack) -> dict[uuid.UUID, str]:
    """Stop the jobs that wait for a host, and wait for the others; what became of all."""
    stack.until("the platform answers again", lambda: bool(states(stack)))
    for job in stack.client.all_jobs():
        if job.state.value in ("submitted", "packaging", "queued"):
            stack.client.stop(job.id)
    give_up = time.monotonic() + CALM_SECONDS
    while True:
        found = states(stack)
        if found and not any(not JobState(state).ended for state in found.values()):
            return found
        if time.monotonic() > give_up:
            return found  # the oracle says which are stuck
        time.sleep(1)


@contextmanager
def marketplace(folder: Path) -> Iterator[tuple[Play, Stack]]:
    queue = f"labapex-chaos-{uuid.uuid4()}"
    with ExitStack() as ends:
        database = ends.enter_context(own_database())
        cache = ends.enter_context(own_redis())
        rabbitmq = ends.enter_context(own_queue(queue))
        broker = ends.enter_context(Wire(urlsplit(rabbitmq).port or 5672).strung())
        parts = urlsplit(rabbitmq)
        login = f"{parts.username}:{parts.password}@" if parts.username else ""
        settings = {
            "LABAPEX_DATABASE_URL": database,
            "LABAPEX_CHANNEL_URL": cache,
            "LABAPEX_BROKER_URL": urlunsplit(parts._replace(netloc=f"{login}127.0.0.1:{broker.port}")),
            "LABAPEX_QUEUE": queue,
            "LABAPEX_CLAIM_SECONDS": "5",
            "LABAPEX_LEASE_SECONDS": "20",
            "LABAPEX_MAX_ATTEMPTS": "1000",  # what gives a job up for good is not what is tried here
            "LABAPEX_HANDOVER_SECONDS": "5",
        }
        stack = Stack(folder, settings=settings, pipeline=True)
        ends.callback(stack.end)
        stack.start()
        lines = [ends.enter_context(Line(stack.port).strung()) for _ in range(HOSTS)]
        workers = [stack.enrol(f"host-{number}", through=line.url) for number, line in enumerate(lines)]
        yield Play(stack, workers, lines, broker, database), stack


def chaos(seed: int, seconds: float, folder: Path) -> dict[str, Any]:
    faults = schedule(seed, seconds, HOSTS)
    planned = Counter(fault.kind.value for fault in faults)
    print(f"seed {seed}: {len(faults)} faults in {seconds:.0f} s: {dict(planned)}", flush=True)
    dice = random.Random(seed)
    with marketplace(folder) as (play, stack):
        for number in range(2 + int(seconds / 20)):
            stack.submit(
                scripts.job(
                    folder / f"job-{number}",
                    pause=dice.uniform(0.02, 0.06),
                    epochs=60,
                    checkpoint_every=20,
                    audit_segments=2,
                )
            )
        for worker in play.workers:
            worker.start()
        stack.until("a job runs", lambda: "running" in states(stack).values())
        began = time.monotonic()
        play.run(faults, seconds)
        calm = time.monotonic()
        finish(stack)
        ended = time.monotonic()
        for program in (*play.workers, stack.platform, stack.pipeline):
            if program is not None:
                program.kill()  # what is looked at does not change meanwhile
        acknowledged = [
            (str(lease), seq, head.hex()) for line in play.lines for (lease, seq), head in line.acknowledged.items()
        ]
        told = folder / "acknowledged.json"
        told.write_text(json.dumps(acknowledged))
        oracle = [sys.executable, str(Path(__file__).with_name("oracle.py")), str(told)]
        paths = {"PYTHONPATH": ":".join(str(ROOT / each) for each in ("client_sdk", "platform"))}
        said = subprocess.run(
            oracle, env=play.stack.platform.environment | paths, capture_output=True, text=True, check=False
        )
        if said.returncode:
            raise SystemExit(said.stderr)
        found: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
        if any(found["wrong"].values()):
            shutil.rmtree(KEPT, ignore_errors=True)
            KEPT.mkdir(parents=True)
            for log in folder.glob("*.log"):
                shutil.copy(log, KEPT)
            print(f"the programs' logs are kept in {KEPT}")
    applied = {kind.value: count for kind, count in sorted(play.applied.items(), key=lambda item: item[0].value)}
    return {
        "seed": seed,
        "seconds": round(calm - began),
        "calm_seconds": round(ended - calm),
        "faults": sum(applied.values()),
        "by_kind": applied,
        "acknowledged": len(acknowledged),
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    with tempfile.TemporaryDirectory(prefix="labapex-chaos-") as folder:
        result = chaos(seed, options.seconds, Path(folder))
    for kind, found in result["wrong"].items():
        for each in found:
            print(f"WRONG {kind}: {each}")
    print(json.dumps(result))
    sys.exit(any(result["wrong"].values()))


if __name__ == "__main__":
    main()
