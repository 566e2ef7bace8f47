"""How many loss records a second one process stores and acknowledges: `python benchmarks/ingest.py`.

Sealed frames of 50 records from several leases go to the log's writer, and every acknowledgement is waited for. The
baseline is the same code in the same run with a transaction for each frame. CPU is that of the whole process, so it
holds hashing, decryption, validation and SQL. The last line is JSON. `--database-url` takes PostgreSQL instead of SQLite
(which is run with synchronous=FULL, as in service); it makes and drops a database of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.labapex_server.gateway.stage import Run

    from labapex_server.telemetry.writer import Submission

ROOT = Path(__file__).resolve().parents[1]
RECORDS = 50


def measure(runs: list[Run], feed: Callable[[list[Submission]], None]) -> dict[str, float]:
    """Feed all frames of these runs, in turn as connections would, and wait for all acknowledgements."""
    from labapex.protocol.frames import Ack
    from labapex_server.telemetry.writer import Answer, Submission

    done = threading.Semaphore(0)
    answers: list[Answer] = []

    def answer(said: Answer) -> None:
        answers.append(said)
        done.release()

    turns = zip(*(run.executable.frames for run in runs), strict=True)
    submissions = [
        Submission(run.host.worker.pk, frame, answer)
        for frames in turns
        for run, frame in zip(runs, frames, strict=True)
    ]
    wall, cpu = time.perf_counter(), time.process_time()
    feed(submissions)
    for _ in submissions:
        done.acquire()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert all(isinstance(said, Ack) for said in answers)
    records = sum(frame.n for run in runs for frame in run.executable.frames)
    return {
        "frames": len(submissions),
        "records": records,
        "records_per_second": round(records / wall),
        "cpu_us_per_frame": round(1e6 * cpu / len(submissions), 1),
    }


def benchmark(leases: int, iterations: int) -> dict[str, Any]:
    from tests.labapex_server.gateway.stage import a_host, a_run, queued_job

    from labapex_server.accounts import services as accounts
    from labapex_server.ledger import services as ledger
    from labapex_server.telemetry.models import Frame
    from labapex_server.telemetry.writer import Writer

    owner = accounts.create_user("bench", password="a long password for the bench")
    ledger.top_up(ledger.account_of(owner), amount=10**12, memo="bench")

    def runs(name: str, count: int, length: int) -> list[Run]:
        made = []
        for number in range(count):
            job = queued_job(owner, epochs=1, per_epoch=length, every=length // 4)
            made.append(a_run(job, a_host(owner, f"{name} {number}"), frame_losses=RECORDS))
        return made

    def one_by_one(submissions: list[Submission]) -> None:
        writer = Writer()
        for submission in submissions:
            writer.write([submission])

    def grouped(submissions: list[Submission]) -> None:
        for submission in submissions:
            writer.submit(submission)

    baseline = measure(runs("alone", leases, max(RECORDS, iterations // 10)), one_by_one)
    writer = Writer()
    result = measure(runs("grouped", leases, iterations), grouped)
    writer.stop()
    stored = Frame.objects.count()
    assert stored == baseline["frames"] + result["frames"], "an acknowledged frame is missing"
    return {
        "a_transaction_a_frame": baseline,
        "grouped": result,
        "times_faster": round(result["records_per_second"] / baseline["records_per_second"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leases", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=20_000, help="of each lease")
    parser.add_argument("--database-url", default="")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT / folder) for folder in (".", "client_sdk", "worker_agent", "platform")]
    os.environ["DJANGO_SETTINGS_MODULE"] = "labapex_server.settings"
    with tempfile.TemporaryDirectory(prefix="labapex-bench-") as home:
        os.environ.update(LABAPEX_HOME=f"{home}/platform", LABAPEX_DATABASE_URL=options.database_url)
        import django

        django.setup()
        from django.conf import settings
        from django.db import connection
        from tests.labapex_server.gateway.stage import a_runner

        connection.settings_dict["TEST"]["NAME"] = (
            f"{home}/bench.sqlite3" if connection.vendor == "sqlite" else f"labapex_bench_{os.getpid()}"
        )
        connection.creation.create_test_db(verbosity=0)
        try:
            holder = SimpleNamespace(LABAPEX=settings.LABAPEX)
            a_runner(holder, Path(home) / "runner")
            settings.LABAPEX = holder.LABAPEX
            result = {"database": connection.vendor, **benchmark(options.leases, options.iterations)}
        finally:
            connection.creation.destroy_test_db("", verbosity=0)
    for name in ("a_transaction_a_frame", "grouped"):
        figures = result[name]
        print(
            f"{name:>24}: {figures['records_per_second']:>9,} records/s acknowledged, "
            f"{figures['cpu_us_per_frame']:>8.1f} us CPU a frame ({figures['frames']} frames)"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
