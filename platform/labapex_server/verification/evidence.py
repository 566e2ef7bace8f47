"""What is on record of a lease, read back for the verdict: the log's chain is checked again from the stored bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from django.db.models import Exists, OuterRef

from labapex.errors import MalformedInput, Tampered
from labapex.protocol import records
from labapex.protocol.frames import Data, fin_bytes, frame_hash, genesis
from labapex.protocol.records import Sample, uncolumn
from labapex.sealing import open_frame, verify
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry.models import Frame, Leaf, Log


@dataclass
class Record:
    """`chain_problem` is None for a log that is whole: every frame hashes, follows, opens, and the end is signed."""

    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    leaves: list[records.Leaf] = field(default_factory=list)
    leaf_received_at: list[float] = field(default_factory=list)
    known: frozenset[str] = frozenset()  # states of its leaves that other leases had committed to before
    frames: int = 0
    chain_problem: str | None = None


def read(lease: Lease) -> Record:
    """All that the lease's log says, from the ciphertext as it was received."""
    record = Record()
    log = Log.objects.filter(lease=lease).first()
    if log is None:
        record.chain_problem = "there is no log"
        return record
    for leaf in log.leaves.order_by("index"):
        record.leaves.append(leaf.record)
        record.leaf_received_at.append(leaf.received_at)
    record.known = _known(log)
    try:
        _frames(lease, log, record)
    except (MalformedInput, ValueError) as error:
        record.chain_problem = str(error)
    return record


def _known(log: Log) -> frozenset[str]:
    """Which of a log's states came earlier in another lease's log. Who copied from whom is told by the time of receipt."""
    elsewhere = Leaf.objects.filter(state=OuterRef("state"), received_at__lt=OuterRef("received_at")).exclude(log=log)
    return frozenset(log.leaves.filter(Exists(elsewhere)).values_list("state", flat=True))


def _frames(lease: Lease, log: Log, record: Record) -> None:
    key, head, leaves = marketplace.run_key(lease), genesis(lease.pk), 0
    for frame in log.frames.order_by("seq").iterator(chunk_size=500):
        data = _data(lease, frame)
        if frame.seq != record.frames or data.prev != head or frame.first != len(record.losses):
            raise Tampered(f"frame {frame.seq} does not follow the one before it")
        body = open_frame(key, data)
        if _hash(data) != data.hash:
            raise Tampered(f"frame {frame.seq} does not have the hash it was stored with")
        record.losses += uncolumn(body.losses)
        record.times += uncolumn(body.times)
        record.samples += body.samples
        for leaf in body.leaves:
            if leaves >= len(record.leaves) or record.leaves[leaves] != leaf:
                raise Tampered(f"leaf {leaf.index} is not the one that was sent in frame {frame.seq}")
            leaves += 1
        record.frames, head = record.frames + 1, data.hash
    if leaves != len(record.leaves):
        raise Tampered(f"{len(record.leaves)} leaves are on record, and {leaves} were sent")
    if (log.seq, log.next, bytes(log.head)) != (record.frames, len(record.losses), head):
        raise Tampered("the log's head is not where its frames end")
    if log.fin_signature is None or lease.signing_key is None:
        raise Tampered("the end of the log is not signed")
    end = fin_bytes(lease=lease.pk, seq=record.frames, total=len(record.losses), head=head)
    verify(bytes(lease.signing_key), end, bytes(log.fin_signature))


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
