"""The process that holds the keys of one lease: forks the trainer first, then asks for keys, opens the job, and logs.

    prepare   the trainer imports torch and reports the environment; no key exists anywhere
    ask       ephemeral keys are made; the agent passes the request on and the release back
    train     code and data are opened into `work/`; records become frames
    drain     the trainer has ended; the log is brought to its end

The client's code runs in the trainer only. It can lie in its events about its own training, which replay finds out; it
can neither read a key nor write a device sample. Where it takes more than its contract allows (`bounds`) it is ended, and the
sealed log says so: that is the client's matter, while what a host's own limits end is the host's.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

from labapex import executable, sealing
from labapex.errors import LabApexError, MalformedInput
from labapex.protocol.contract import Environment
from labapex.protocol.frames import KeyRelease, KeyRequest, Refusal
from labapex.protocol.manifest import Manifest
from labapex.protocol.records import Console
from labapex_runner import host, opening, samples, trainer
from labapex_runner.batch import Batch
from labapex_runner.bounds import Bounds
from labapex_runner.channel import Channel
from labapex_runner.child import Child, ending, fork
from labapex_runner.console import Allowance, Stream
from labapex_runner.events import Committed, Done, Event, EventReader, Failed, Iteration, Ready, Scalars
from labapex_runner.log import Log
from labapex_runner.series import Allowance as SeriesAllowance

SUCCEEDED, TRAINING_FAILED, REFUSED, NO_ENVIRONMENT = 0, 3, 4, 5
"""Exit statuses: log complete; script failed and everything is logged; keys or job refused; the host cannot train."""

SAMPLE_SECONDS = 1.0
RETRY_SECONDS = 10.0  # without a sign of progress from the agent while it holds less than was made
SHUTDOWN_SECONDS = 10.0  # for the interpreter of a script that is done
POLL_SECONDS = 0.1  # how soon the trainer's end is seen
MAX_EARLY_OUTPUT = 64 << 10
ON_DISK = "[labapex] code and data lie on this host's disk while the job runs, and not in its memory alone\n"
MAX_LEFT_READS = 32  # more than a pipe can hold


def supervise(
    job: Path,
    folder: Path,
    agent: Path,
    load: Callable[[], tuple[Callable[[int], Environment], trainer.Train]] = trainer.engine,
    *,
    memory_events: Path | None = None,
) -> int:
    """Run the job that the executable `job` carries; returns the exit status, in the supervisor AND in its fork.

    `folder` is the job's private folder, `agent` the agent's unix socket. `load` gives the engine in the trainer.
    `memory_events`: where the kernel counts what memory ran out of, if the host keeps the job in a control group."""
    manifest = executable.inspect(
        job
    ).manifest  # what is in it proves itself when the platform's keys open the sections
    host.harden()
    child = fork(
        lambda events, control: trainer.run(
            contract=manifest.contract, folder=folder, events=events, control=control, load=load
        )
    )
    if isinstance(child, int):
        return child
    return Supervisor(job, manifest, folder, Channel(agent), child, memory_events).run()


class Supervisor:
    def __init__(
        self, job: Path, manifest: Manifest, folder: Path, channel: Channel, child: Child, events: Path | None = None
    ) -> None:
        self._job, self._manifest, self._folder = job, manifest, folder
        self._contract = manifest.contract
        self._channel, self._child = channel, child
        self._reader = EventReader()
        allowance = Allowance()
        self._streams = {child.stdout: Stream("stdout", allowance), child.stderr: Stream("stderr", allowance)}
        self._open = {child.events, child.stdout, child.stderr}
        self._early = b""  # what the trainer printed before it had anything of the client's
        self._batch = Batch()
        self._series = SeriesAllowance()
        self._environment: Environment | None = None
        self._request: KeyRequest | None = None
        self._hpke_private = self._signing_private = b""
        self._log: Log | None = None
        self._meter: samples.Meter | None = None
        self._complained: str | None = None
        self._bounds = Bounds(self._contract.limits, child.pid, folder, events)
        self._sample_at = 0.0
        self._step = 0 if self._contract.after is None else self._contract.after.step
        self._done = False
        self._failure: str | None = None
        self._ended = False  # the trainer
        self._kill_at: float | None = None
        self._heard_at = 0.0
        self._status: int | None = None

    def run(self) -> int:
        """Until the log is complete, or there is nothing more to be done; the exit status."""
        try:
            while self._status is None:
                self._wait(time.monotonic())
                self._tick(time.monotonic())
            return self._status
        finally:
            self._child.kill()

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _wait(self, now: float) -> None:
        """Sleep until something comes or is due, and take it in."""
        poll = select.poll()
        for descriptor in self._open:
            poll.register(descriptor, select.POLLIN)
        if self._channel.socket is not None:
            poll.register(self._channel.socket, select.POLLIN | (select.POLLOUT if self._channel.wants_write else 0))
        due = [now + (SAMPLE_SECONDS if self._ended else POLL_SECONDS)]
        due += [at for at in (self._batch.due_at if self._log else None, self._channel.retry_at) if at and at > now]
        for descriptor, _ in poll.poll(1000 * max(0.001, min(due) - now)):
            if descriptor in self._open:
                self._read(descriptor, time.monotonic())
            else:
                self._hear(time.monotonic())

    def _read(self, descriptor: int, now: float) -> bool:
        """One read from a pipe of the trainer; False if it has nothing more to give now."""
        try:
            data = os.read(descriptor, 1 << 17)
        except BlockingIOError:
            return False
        if not data:
            self._open.discard(descriptor)
            return False
        if descriptor == self._child.events:
            self._take_events(data, now)
        else:
            self._take_output(descriptor, data, now)
        return True

    def _take_output(self, descriptor: int, data: bytes, now: float) -> None:
        if self._log is None:
            self._early = (self._early + data)[-MAX_EARLY_OUTPUT:]
        else:
            self._print(self._streams[descriptor].feed(data, now), now)

    def _take_events(self, data: bytes, now: float) -> None:
        try:
            for event in self._reader.feed(data):
                self._take(event, now)
        except MalformedInput as error:
            self._open.discard(self._child.events)
            self._failure = self._failure or f"the script broke the recording: {error}\n"
            self._child.kill()

    def _take(self, event: Event, now: float) -> None:
        if isinstance(event, Ready):
            if self._environment is not None:
                raise MalformedInput("the trainer reported twice what this host is")
            self._environment = event.environment
            return
        if isinstance(event, Failed):
            self._failure = event.reason
            self._kill_at = now + SHUTDOWN_SECONDS
            return
        if self._log is None or self._done:
            raise MalformedInput(f"the trainer sent '{event.type}' out of turn")
        if isinstance(event, Iteration):
            if event.step != self._step:
                raise MalformedInput(f"iteration {event.step} was recorded instead of {self._step}")
            self._step += 1
            self._batch.iteration(event.loss, event.at, now)
        elif isinstance(event, Committed):
            self._batch.leaf(event.leaf, now)
        elif isinstance(event, Scalars):
            self._batch.scalars(self._step, self._series.admit(event.values, now), now)
        elif isinstance(event, Done):
            self._done = True
            self._kill_at = now + SHUTDOWN_SECONDS
            self._sample(now)  # while there is still a process to be measured
        if self._batch.full:
            self._flush()

    def _hear(self, now: float) -> None:
        """What the agent has to say."""
        try:
            for message in self._channel.receive(now):
                self._heard_at = now
                if isinstance(message, Refusal):
                    if message.fatal:
                        self._give_up(f"refused by the platform: {message.code}: {message.message}")
                elif isinstance(message, KeyRelease):
                    self._begin(message, now)
                elif self._log is not None:
                    self._log.receive(message)
        except MalformedInput as error:
            print(f"reconnecting to the agent: {error}", file=sys.stderr)
            self._channel.broken(now)

    # -- acting --------------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if not self._ended and self._status is None:
            self._watch(now)
        if self._status is not None:
            return
        if self._log is not None and not self._ended:
            self._hold_to_limits(now)
        if self._environment is not None and self._request is None:
            self._make_request(self._environment)
        if self._request is not None and self._channel.connect(now):
            self._heard_at = now
            if self._log is None:
                self._channel.send(self._request)
            else:
                self._log.connected()
        if self._log is not None:
            self._advance(self._log, now)
        self._channel.flush(now)

    def _make_request(self, environment: Environment) -> None:
        """The first keys of this lease, made when the trainer has long been a process of its own."""
        try:
            build = host.torch_build(self._contract.seed)
        except MalformedInput as error:
            self._give_up(str(error), NO_ENVIRONMENT)
            return
        self._hpke_private, hpke_key = sealing.new_hpke_keys()
        self._signing_private, signing_key = sealing.new_signing_keys()
        self._request = KeyRequest(
            lease=self._contract.lease,
            hpke_key=hpke_key,
            signing_key=signing_key,
            environment=environment,
            torch_build=build,
        )

    def _begin(self, release: KeyRelease, now: float) -> None:
        """Open the job and let the trainer go."""
        if self._log is not None:
            return  # the answer to a request that was sent again
        if self._request is None or release.lease != self._contract.lease:
            raise MalformedInput("keys came for another lease")
        try:
            keys = sealing.open_release(self._hpke_private, manifest=self._manifest, sealed=release.sealed)
            self._hpke_private = b""
            opening.open_job(self._job, self._manifest, keys.content_key, self._folder)
        except LabApexError as error:
            self._give_up(f"this job cannot be opened: {error}")
            return
        self._log = Log(self._contract.lease, keys.run_key, self._step)
        self._log.connected()
        self._meter = samples.meter(self._request.environment, self._contract.threads, self._child.pid)
        if not self._child.go():
            self._failure = "the trainer ended before it could begin\n"
        self._take_output(self._child.stderr, self._early, now)
        if not (self._folder / "work").is_mount():
            self._print([Console(stream="stderr", text=ON_DISK)], now)
        self._sample(now)

    def _advance(self, log: Log, now: float) -> None:
        """Records into frames, frames onto the socket, and the end when it has come."""
        if not self._ended and now >= self._sample_at:
            self._sample(now)
        for stream in self._streams.values():
            self._print(stream.idle(now), now)
        if self._ended or (self._batch.due_at is not None and now >= self._batch.due_at):
            self._flush()
        if self._channel.socket is not None:
            if now - self._heard_at > RETRY_SECONDS:
                self._heard_at = now
                log.retry()
            for message in log.outgoing(self._channel.room):
                self._channel.send(message)
        if log.complete:
            self._status = SUCCEEDED
        elif self._ended and self._failure is not None and log.drained:
            self._status = TRAINING_FAILED

    def _sample(self, now: float) -> None:
        if self._meter is None:
            return
        self._sample_at = now + SAMPLE_SECONDS
        sample = self._meter.read()
        if sample is not None:
            self._batch.sample(sample, now)
        if self._meter.complaint not in (None, self._complained):
            self._print([Console(stream="stderr", text=f"[labapex] {self._meter.complaint}\n")], now)
        self._complained = self._meter.complaint

    def _print(self, records: list[Console], now: float) -> None:
        for record in records:
            self._batch.console(record, now)
            if self._batch.full:
                self._flush()

    def _flush(self) -> None:
        if self._log is not None and (body := self._batch.take()) is not None:
            self._log.append(body)

    def _hold_to_limits(self, now: float) -> None:
        """End the trainer where it, and what it started, takes more than the contract allows."""
        if self._done or self._failure is not None or (reason := self._bounds.exceeded(now)) is None:
            return
        self._failure = reason
        self._child.kill_all()

    # -- the trainer's end ---------------------------------------------------------------------------------------------

    def _watch(self, now: float) -> None:
        """See whether the trainer has ended, and why."""
        if (status := self._child.ended()) is None:
            if self._kill_at is not None and now >= self._kill_at:
                self._child.kill()
            return
        self._ended = True
        for descriptor in list(self._open):  # what it left behind; a process of its own may still hold the other end
            for _ in range(MAX_LEFT_READS):
                if not self._read(descriptor, now):
                    break
        self._open.clear()
        for stream in self._streams.values():
            self._print(stream.close(now), now)
        if notice := self._series.notice():
            self._print([Console(stream="stderr", text=notice)], now)
        self._child.kill()
        if self._log is None:
            sys.stderr.write(self._early.decode(errors="replace") + (self._failure or ""))
            self._give_up("this host's Python environment cannot train; see above", NO_ENVIRONMENT)
        elif self._done and self._failure is None:
            self._log_end(self._log)
        else:
            if os.WIFSIGNALED(status):
                self._failure = self._failure or self._bounds.killed()
            reason = self._failure or f"the script {ending(status)} before training was complete\n"
            if self._failure is not None or not os.WIFSIGNALED(status):
                self._batch.failure(reason, now)  # by this the platform tells a script's error from a host's
            self._failure = reason
            self._print([Console(stream="stderr", text=reason)], now)

    def _log_end(self, log: Log) -> None:
        self._flush()
        log.finish(lambda message: sealing.sign(self._signing_private, message))
        self._signing_private = b""

    def _give_up(self, reason: str, status: int = REFUSED) -> None:
        print(f"error: {reason}", file=sys.stderr)
        self._status = status
