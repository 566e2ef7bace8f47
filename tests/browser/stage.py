"""A run as the gateway would have stored it, row by row, so that pages can be looked at without a worker."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from labapex.proof.origins import origin
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Contract, Environment, Parent, ScriptFacts
from labapex.protocol.devices import Device
from labapex.protocol.frames import frame_hash, genesis
from labapex.protocol.records import Sample, column
from labapex.protocol.replay import StartReport
from labapex.protocol.spec import CREDIT
from labapex.protocol.states import Fault, JobState, LeaseState
from labapex.protocol.verdict import Cost, RuleResult, Verdict, Weight
from labapex_server.accounts.models import User
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.marketplace.models import Lease
from labapex_server.pipeline import stages
from labapex_server.telemetry.models import Frame, Leaf, Log
from labapex_server.telemetry.signals import progressed
from labapex_server.verification.models import Challenge, OpenedState, VerdictRecord
from labapex_server.workers.models import Worker

PER_EPOCH = 113
FACTS = ScriptFacts(
    loop="train.py:58",
    iterations_per_epoch=PER_EPOCH,
    has_loader=True,
    gradients_are_state=False,
    parameters=421_834,
    state_bytes=3_412_992,
)
HOST = Environment(python="3.11.9", torch="2.6.0", device="cuda: NVIDIA H200", capability="9.0", threads=1)
DEVICE = Device(
    kind="cuda", name="NVIDIA H200", uuid="GPU-1f6e2c34", memory=141 << 30, driver="580.95.05", cuda="13.0", capability="9.0",
    mig=False, ecc=True, power_limit=700.0,
)  # fmt: skip
START = StartReport(tensors=65, given=0, unproven=0)
RULES = (
    ("log-count", 1356.0, 1356.0, Weight.DECIDES),
    ("gpu-utilisation", 0.82, 0.4, Weight.SUSPECTS),
    ("gpu-memory", 0.91, 0.4, Weight.SUSPECTS),
    ("log-chain", "whole", "whole", Weight.DECIDES),
    ("initialisation", "equal", "equal", Weight.DECIDES),
    ("batch-order", "equal", "equal", Weight.DECIDES),
    ("pev", 0.0123, 0.05, Weight.INFORMS),
    ("point-loss", 0.0, 0.0, Weight.DECIDES),
    ("replay-top-q", 0.0, 0.0, Weight.DECIDES),
    ("replay", 0.0, 0.0, Weight.DECIDES),
    ("vmo", 0.0, 2.9, Weight.INFORMS),
)


def moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


@dataclass
class Story:
    """One job of `owner` on a machine of `host`; its methods are the platform's stages, in their order."""

    owner: User
    host: User
    began: float
    epochs: int = 12
    name: str = "digits-cnn"
    source: str = "nvml"
    step_seconds: float = 0.2
    tells: bool = False  # the script has series of its own
    readings: list[Sample] | None = None  # of the device, the first at the first iteration; None: made up here
    draw: random.Random = field(default_factory=lambda: random.Random(7))
    job: Job = field(init=False)
    worker: Worker = field(init=False)
    lease: Lease = field(init=False)
    console: int = 0

    def submitted(self) -> Story:
        at = moment(self.began)
        self.job = Job.objects.create(
            owner=self.owner,
            name=self.name,
            spec={
                "name": self.name, "script": "train.py", "args": ["--epochs", "{epochs}", "--lr", "0.05"], "data": "data",
                "epochs": self.epochs, "iterations_per_epoch": None, "checkpoint_every": 10, "budget": "4.5",
                "threads": 1, "audit_segments": 4, "top_q": 1,
            },
            bundle={
                "code": [{"path": "train.py", "digest": "ab" * 32, "size": 5_210}],
                "data": [{"path": "data/digits.npz", "digest": "cd" * 32, "size": 1_204_000}],
            },
            budget=4_500_000,
            created_at=at,
            turn_at=at,
            state_changed_at=at,
        )  # fmt: skip
        return self

    def queued(self) -> Story:
        held = ledger.hold(ledger.account_of(self.owner), amount=self.job.budget, job=self.job.pk, memo=self.name)
        assert jobs.advance(
            self.job,
            JobState.PACKAGING,
            facts=FACTS.model_dump(mode="json"),
            preflight={"replay_max_error": 0.0},
            hold=held,
        )
        assert jobs.advance(self.job, JobState.QUEUED, package_ms=6.4)
        return self

    def running(self, *, worker: str = "basement-h200", parents: tuple[Parent, ...] = ()) -> Story:
        """A lease of its own, with a log that holds nothing yet."""
        at = moment(self.began + 9)
        self.worker = Worker.objects.create(
            owner=self.host, name=worker, public_key=uuid4().bytes * 2, price_per_hour=2 * CREDIT, created_at=at,
            last_seen_at=datetime.now(UTC), devices=[DEVICE.model_dump(mode="json")],
        )  # fmt: skip
        lease = uuid4()
        contract = Contract(
            job=self.job.pk, lease=lease, seed="5e" * 32, code="aa" * 32, data="bb" * 32, script="train.py",
            args=("--epochs", str(self.epochs)), epochs=self.epochs, checkpoint_every=10, threads=1, facts=FACTS,
            parents=parents,
        )  # fmt: skip
        self.lease = Lease.objects.create(
            id=lease, job=self.job, worker=self.worker, state=LeaseState.RUNNING.value, seed="5e" * 32,
            price_per_epoch=250_000, contract=contract.model_dump(mode="json"), manifest={}, manifest_signature=b"",
            token_digest="00" * 32, granted_at=at, heartbeat_at=datetime.now(UTC) + timedelta(hours=1),
            expires_at=datetime.now(UTC) + timedelta(hours=1), key_released_at=at, environment=HOST.model_dump(mode="json"),
        )  # fmt: skip
        Log.objects.create(lease=self.lease, head=genesis(lease))
        assert jobs.advance(self.job, JobState.LEASED)
        started = {} if self.job.started_at else {"started_at": at}
        assert jobs.advance(self.job, JobState.RUNNING, price_per_epoch=250_000, **started)
        return self

    @property
    def done(self) -> int:
        return Log.objects.get(lease=self.lease).next

    def loss(self, iteration: int) -> float:
        epoch = iteration / PER_EPOCH
        return 0.06 + 2.25 * math.exp(-epoch / 1.6) + self.draw.gauss(0, 0.05 + 0.12 * math.exp(-epoch / 2))

    def frame(self, n: int = 25, *, losses: list[float] | None = None, text: str | None = None) -> None:
        """One frame of `n` iterations with the samples and lines of its time, committed as the log's writer does it."""
        log = Log.objects.get(lease=self.lease)
        values = losses if losses is not None else [abs(self.loss(log.next + i)) + 0.01 for i in range(n)]
        start = self.began + 12 + log.next * self.step_seconds
        times = [start + i * self.step_seconds for i in range(len(values))]
        cpu = self.source == "cpu"
        samples = [
            {
                "at": at, "source": self.source, "device": "AMD EPYC 9654" if cpu else "NVIDIA H200",
                "utilisation": max(0.0, min(100.0, self.draw.gauss(88, 5) - 50 * ((log.next + i) % PER_EPOCH < 5))),
                "memory": int(3.1 * 2**30 + 0.9 * 2**30 * (1 - math.exp(-(log.next + i) / 150)) + self.draw.gauss(0, 2e7)),
                "memory_total": 139 * 2**30,
            }
            for i, at in enumerate(times) if i % 5 == 0
        ]  # fmt: skip
        if self.readings is not None:
            origin, until = self.began + 12, start + len(values) * self.step_seconds
            due = [
                s.model_copy(update={"at": origin + n})
                for n, s in enumerate(self.readings)
                if start <= origin + n < until
            ]
            samples = [sample.model_dump(mode="json", exclude_defaults=True) for sample in due]
        lines = [] if text is None else [{"stream": "stdout", "text": text}]
        if text is None and log.next == 0:
            lines = [
                {
                    "stream": "stdout",
                    "text": "digits: 1,437 for training, 360 for testing\nmodel: 421,834 parameters\n",
                },
                {"stream": "stderr", "text": "UserWarning: lr_scheduler.step() was called before optimizer.step()\n"},
            ]
        for epoch in range(1, self.epochs + 1):
            if text is None and log.next < epoch * PER_EPOCH <= log.next + len(values):
                lines.append(
                    {
                        "stream": "stdout",
                        "text": f"epoch {epoch:2d}  loss {values[-1]:.4f}  accuracy {90 + epoch * 0.7:.2f} %\n",
                    }
                )
        told: dict[str, dict[int, float]] = {}
        if self.tells:
            at = range(log.next, log.next + len(values))
            told["rate"] = {i: 0.05 * 0.5 ** (i // PER_EPOCH) for i in at}
            told["validation/accuracy"] = {i: 1 - 0.6 ** (i / PER_EPOCH) for i in at if i and i % PER_EPOCH == 0}
        series = [
            {"name": name, "iterations": list(points), "values": list(points.values())}
            for name, points in told.items()
            if points
        ]
        columns = column(values), column(times)
        hashed = frame_hash(
            lease=self.lease.pk, seq=log.seq, first=log.next, n=len(values), prev=bytes(log.head), payload=columns[0]
        )
        Frame.objects.create(
            log=log, seq=log.seq, first=log.next, n=len(values), prev=log.head, hash=hashed, payload=columns[0],
            losses=columns[0], times=columns[1], extras={"samples": samples, "console": lines, "series": series},
            received_at=times[0] if times else start,
        )  # fmt: skip
        contract, before = self.lease.terms, Leaf.objects.filter(log=log).count()
        for index, step in enumerate(contract.leaf_steps()):
            if index >= before and step <= log.next + len(values):
                Leaf.objects.create(
                    log=log, index=index, step=step, state=digest([index]), size=FACTS.state_bytes, chunks=3, settings="5e" * 32,
                update_norm=0.1,
                    batches="ba" * 32, losses="10" * 32, prev="9e" * 32, digest=digest([step, index]), received_at=times[-1],
                )  # fmt: skip
        Log.objects.filter(pk=log.pk).update(seq=log.seq + 1, next=log.next + len(values), head=hashed)
        progressed.send(sender=None, job_id=self.job.pk)

    def trained(self, until: int | None = None) -> Story:
        """Frames until `until` iterations, or all of them."""
        total = until if until is not None else self.lease.terms.iterations
        while (left := total - self.done) > 0:
            self.frame(min(25, left))
        return self

    def challenged(self) -> Story:
        Lease.objects.filter(pk=self.lease.pk).update(state=LeaseState.FINISHED.value)
        Log.objects.filter(pk=self.lease.pk).update(finished=True)
        now = datetime.now(UTC)
        Challenge.objects.create(
            lease=self.lease, round=1, nonce="12" * 32, indices=[0, 17, 18, 64, 92], segments=[0, 17, 64, 92], evaluations=[],
            issued_at=now, deadline=now + timedelta(minutes=10),
        )  # fmt: skip
        assert jobs.advance(self.job, JobState.CHALLENGED)
        return self

    def opened(self, *indices: int) -> Story:
        for index in indices:
            OpenedState.objects.create(
                lease=self.lease, index=index, size=FACTS.state_bytes, received_at=datetime.now(UTC)
            )
        jobs.touch(self.job.pk)
        progressed.send(sender=None, job_id=self.job.pk)
        return self

    def judged(
        self, *, failing: str | None = None, weights: str | None = "5a" * 32, start: StartReport = START
    ) -> Story:
        """The verdict and the real settlement. `failing` names the rule that rejects."""
        assert jobs.advance(self.job, JobState.VERIFYING)
        rules = tuple(
            RuleResult(
                rule=rule, value=1.0 if rule == failing else value, limit=limit, weight=weight,
                result="fail" if rule == failing else "pass",
                detail="Segment 17 ends in another state than was committed: relative error 1." if rule == failing else "",
            )
            for rule, value, limit, weight in RULES
        )  # fmt: skip
        verdict = Verdict(
            job=self.job.pk, lease=self.lease.pk, verdict="rejected" if failing else "verified", deciding_rule=failing,
            reason=f"{failing}: what was handed in is not this training." if failing else "Every rule that decides holds.",
            fault=Fault.WORKER if failing else Fault.NOBODY, epochs=self.epochs, iterations_per_epoch=PER_EPOCH,
            loss_logs=self.done, verified_epochs=0 if failing else self.epochs, rules=rules,
            replay_max_error=1.0 if failing else 0.0,
            detection="4 random segments of 147: a run with a tenth of its segments bad is caught with probability 0.34.",
            origin=origin(self.lease.terms, start, drawn=4, segments=147),
            contract=digest(self.lease.terms), proof_root="70" * 32, weights=None if failing else weights,
            worker_environment=HOST, verifier_environment=HOST,
            cost=Cost(
                verify_seconds=21.4, train_seconds=271.2, opened_bytes=5 * FACTS.state_bytes,
                all_checkpoint_bytes=148 * FACTS.state_bytes, opened_states=5, segments_replayed=4,
            ),
            issued_at=datetime.now(UTC).timestamp(),
        )  # fmt: skip
        VerdictRecord.objects.create(
            lease=self.lease, job=self.job, document=verdict.model_dump(mode="json"), key_id="verdict-2f9c",
            signature=bytes(64), issued_at=datetime.now(UTC),
        )  # fmt: skip
        assert jobs.advance(self.job, JobState.SETTLING)
        stages.settle(self.job, lambda: None)
        self.job.refresh_from_db()
        return self


def artefacts() -> Path:
    """Where screenshots are kept for people to look at; ignored by git."""
    folder = Path(__file__).resolve().parents[2] / "test-artefacts"
    folder.mkdir(exist_ok=True)
    return folder
