"""What is on record of a lease, read back for the verdict: the log's chain is checked again from the stored bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from django.db.models import Exists, OuterRef

from labapex.errors import MalformedInput, Tampered
from labapex.protocol import records
from labapex.protocol.devices import Observation
from labapex.protocol.frames import Data, fin_bytes, frame_hash, genesis
from labapex.protocol.records import Sample, uncolumn
from labapex.sealing import open_frame, verify
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry.models import Frame, Leaf, Log
from labapex_server.telemetry.observations import observations
from labapex_server.telemetry.stints import Part, cut, parts


@dataclass
class Record:
    """`chain_problem` is None for a log that is whole: every frame hashes, follows, opens, and the end is signed."""

    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    leaves: list[records.Leaf] = field(default_factory=list)
    leaf_received_at: list[float] = field(default_factory=list)
    known: frozenset[str] = frozenset()  # states of its leaves that other leases had committed to before
    frames: int = 0
    chain_problem: str | None = None


def read(lease: Lease, *, ended: bool = True) -> Record:
    """All that the logs of a lease's run say, from the ciphertext as it was received: of earlier hosts as far as the run was
    handed over, of its own all, or as far as it counts where it was stopped. `ended`: it must have come to its signed end, unless
    it was stopped."""
    record, run = Record(), parts(lease)
    logs = Log.objects.select_related("lease").in_bulk([part.lease for part in run])
    if lease.pk not in logs:
        record.chain_problem = "there is no log"
        return record
    held = {part: list(part.leaves()) for part in run}
    for leaf in (leaf for part in run for leaf in held[part]):
        record.leaves.append(leaf.record)
        record.leaf_received_at.append(leaf.received_at)
    record.known = _known(lease, run)
    record.observations = observations(lease)
    try:
        for part in run:
            record.samples.clear()  # what a device did is judged of the last host alone: two have no course in common
            head, frames = _frames(logs[part.lease], part, [leaf.record for leaf in held[part]], record)
        if ended and lease.contract.get("stopped") is None:  # the platform itself ended it
            _check_end(logs[lease.pk], head, frames, len(record.losses))
    except (KeyError, MalformedInput, ValueError) as error:
        record.chain_problem = str(error)
    return record


def _known(lease: Lease, run: Sequence[Part]) -> frozenset[str]:
    """Which of a run's states came earlier in the log of another run. Who copied from whom is told by the time of receipt.

    Leases of one job under one seed are one run: whoever goes on with it comes to the same states as who was lost."""
    same = Lease.objects.filter(job=lease.job_id, seed=lease.seed)
    elsewhere = Leaf.objects.filter(state=OuterRef("state"), received_at__lt=OuterRef("received_at"))
    found = [part.leaves().filter(Exists(elsewhere.exclude(log__lease__in=same))) for part in run]
    return frozenset(state for leaves in found for state in leaves.values_list("state", flat=True))


def _frames(log: Log, part: Part, leaves: list[records.Leaf], record: Record) -> tuple[bytes, int]:
    """Add what counts of one log to the record, and check all of it. Returns its head, and how many frames it has.

    `leaves`: what is on record of that log, as far as it counts."""
    lease = log.lease
    key, head, frames = marketplace.run_key(lease), genesis(lease.pk), 0
    sent: list[records.Leaf] = []
    next_ = len(record.losses)
    for frame in log.frames.order_by("seq").iterator(chunk_size=500):
        data = _data(lease, frame)
        if frame.seq != frames or data.prev != head or frame.first != next_:
            raise Tampered(f"frame {frame.seq} does not follow the one before it")
        body = open_frame(key, data)
        if _hash(data) != data.hash:
            raise Tampered(f"frame {frame.seq} does not have the hash it was stored with")
        sent += [leaf for leaf in body.leaves if part.stop is None or leaf.step <= part.stop]
        if part.stop is None or frame.first < part.stop:
            for column, into in ((body.losses, record.losses), (body.times, record.times)):
                into += uncolumn(next(cut([(frame.first, column)], part.stop)))
            record.samples += body.samples
        frames, head, next_ = frames + 1, data.hash, next_ + body.count()
    for told, held in zip_longest(sent, leaves):
        if told != held:
            raise Tampered(f"leaf {(told or held).index} on record is not the one that was sent")
    record.frames += frames
    if (log.seq, log.next, bytes(log.head)) != (frames, next_, head):
        raise Tampered("the log's head is not where its frames end")
    if part.stop is not None and len(record.losses) != part.stop:
        raise Tampered(f"the log of {lease.pk} ends before iteration {part.stop}, up to which it counts")
    return head, frames


def _check_end(log: Log, head: bytes, frames: int, losses: int) -> None:
    """Raise `Tampered` unless the executable signed the log's end."""
    if log.fin_signature is None or log.lease.signing_key is None:
        raise Tampered("the end of the log is not signed")
    end = fin_bytes(lease=log.lease_id, seq=frames, total=losses, head=head)
    verify(bytes(log.lease.signing_key), end, bytes(log.fin_signature))


def _data(lease: Lease, frame: Frame) -> Data:
    return Data(
        lease=lease.pk,
        seq=frame.seq,
        first=frame.first,
        n=frame.n,
        prev=bytes(frame.prev),
        payload=bytes(frame.payload),
        hash=bytes(frame.hash),
    )


def _hash(data: Data) -> bytes:
    return frame_hash(lease=data.lease, seq=data.seq, first=data.first, n=data.n, prev=data.prev, payload=data.payload)
