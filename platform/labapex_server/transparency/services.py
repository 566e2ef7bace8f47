"""The append-only log: what can happen to it (`append`) and what everybody may ask it. All proofs cost O(log n)."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from functools import reduce
from operator import or_

from django.db import transaction
from django.db.models import Max, Q

from labapex.proof.merkle import leaf_hash, node_hash, root
from labapex.transparency import Consistency, Entries, Head, Inclusion, sign_checkpoint
from labapex_server.lib import clock, keys
from labapex_server.lib.errors import Missing, Refused
from labapex_server.transparency import tree
from labapex_server.transparency.models import LogEntry, LogNode, Tail
from labapex_server.transparency.tree import Node, Run

MAX_LEAF = 512 << 10
PAGE = 100
"""Entries in one answer at most."""


@transaction.atomic
def append(leaf: bytes) -> int:
    """Enter some bytes for ever and return their number. Commits with the caller's transaction or not at all."""
    if len(leaf) > MAX_LEAF:
        raise Refused(f"an entry of the log has at most {MAX_LEAF} bytes")
    Tail.objects.get_or_create(pk=1)
    tail = Tail.objects.select_for_update().get(pk=1)
    index, node = tail.size, leaf_hash(leaf)
    LogEntry.objects.create(index=index, leaf=leaf, leaf_hash=node, created_at=clock.now())
    levels = tree.completed(index)
    left = _hashes({(level - 1, (index >> (level - 1)) - 1) for level in levels})
    for level in levels:
        node = node_hash(left[level - 1, (index >> (level - 1)) - 1], node)
        LogNode.objects.create(level=level, position=index >> level, hash=node)
    Tail.objects.filter(pk=1).update(size=index + 1)
    return index


def size() -> int:
    """Entries that are committed. What lies below never changes, so this may be asked once and then relied on."""
    last: int | None = LogEntry.objects.aggregate(last=Max("index"))["last"]
    return 0 if last is None else last + 1


def head(at: int | None = None) -> Head:
    """The signed tree head of the first `at` entries; of all, where `at` is not given. Raises `Missing`."""
    now = size()
    at = now if at is None else at
    if not 0 <= at <= now:
        raise Missing(f"the log has {now} entries")
    return Head(checkpoint=sign_checkpoint(size=at, root=_root(at), private_key=keys.log_key()))


def entries(*, start: int, count: int) -> Entries:
    """Up to `count` entries from number `start` on, and never more than a page. Raises `Refused`."""
    if start < 0 or count < 1:
        raise Refused("start must be 0 or more, count 1 or more")
    rows = LogEntry.objects.filter(index__gte=start).order_by("index")[: min(count, PAGE)]
    return Entries(first=start, entries=tuple(base64.b64encode(bytes(row.leaf)).decode() for row in rows))


def inclusion(index: int, size: int) -> Inclusion:
    """That entry `index` is among the first `size`. Raises `Missing`."""
    if not 0 <= index < size <= _committed(size):
        raise Missing(f"there is no entry {index} among {size} entries in this log")
    return Inclusion(index=index, size=size, hashes=_roots(tree.inclusion(index, size)))


def consistency(first: int, second: int) -> Consistency:
    """That the log of `second` entries begins with the log of `first`. Raises `Missing`."""
    if not 0 < first <= second <= _committed(second):
        raise Missing(f"the log never grew from {first} to {second} entries")
    return Consistency(first=first, second=second, hashes=_roots(tree.consistency(first, second)))


def _committed(asked: int) -> int:
    """The log's size; not asked for where the number cannot be one."""
    return size() if 0 < asked < 2**62 else 0


def _root(at: int) -> bytes:
    if at == 0:
        return root([])
    hashes = _hashes(set(tree.nodes((0, at))))
    return tree.fold((0, at), hashes.__getitem__)


def _roots(runs: Iterable[Run]) -> tuple[str, ...]:
    runs = list(runs)
    hashes = _hashes(tree.needed(runs))
    return tuple(tree.fold(run, hashes.__getitem__).hex() for run in runs)


def _hashes(wanted: set[Node]) -> dict[Node, bytes]:
    """The stored hashes of full nodes. Raises `KeyError` later on where one is missing: the log is damaged then."""
    leaves = [position for level, position in wanted if level == 0]
    inner = [Q(level=level, position=position) for level, position in wanted if level]
    found: dict[Node, bytes] = {}
    if leaves:
        rows = LogEntry.objects.filter(index__in=leaves).values_list("index", "leaf_hash")
        found.update({(0, index): bytes(value) for index, value in rows})
    if inner:
        nodes = LogNode.objects.filter(reduce(or_, inner)).values_list("level", "position", "hash")
        found.update({(level, position): bytes(value) for level, position, value in nodes})
    return found
