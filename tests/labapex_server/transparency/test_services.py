"""The log only grows, one number after the other, whoever writes and with whatever SQL."""

from __future__ import annotations

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction

from labapex.errors import Tampered
from labapex.proof import merkle
from labapex.transparency import Checkpoint, check_growth, check_inclusion, open_checkpoint
from labapex_server.lib import clock, keys
from labapex_server.lib.errors import Missing, Refused
from labapex_server.transparency import services as log
from labapex_server.transparency.models import LogEntry, LogNode, Tail


def leaf(index: int) -> bytes:
    return b"entry %d" % index


def head(at: int | None = None) -> Checkpoint:
    return open_checkpoint(log.head(at).checkpoint, keys.log_public_key())


@pytest.mark.django_db
def test_every_entry_is_under_every_later_head_and_every_head_grew_from_the_earlier_ones() -> None:
    heads = [head()]
    assert (heads[0].size, heads[0].root) == (0, merkle.root([]))
    for index in range(21):
        assert log.append(leaf(index)) == index
        heads.append(head())
        assert heads[-1].root == merkle.root([leaf(i) for i in range(index + 1)])
    for size in range(1, 22):
        assert head(size) == heads[size]
        for index in range(size):
            check_inclusion(leaf(index), log.inclusion(index, size), heads[size])
        for first in range(1, size + 1):
            check_growth(heads[first], heads[size], log.consistency(first, size))
    with pytest.raises(Tampered):
        check_inclusion(leaf(3), log.inclusion(4, 21), heads[21])


@pytest.mark.django_db
def test_entries_come_in_order_a_page_at_a_time() -> None:
    for index in range(105):
        log.append(leaf(index))
    page = log.entries(start=2, count=10_000)
    assert [base64.b64decode(each) for each in page.entries] == [leaf(i) for i in range(2, 102)]
    assert log.entries(start=104, count=1).entries == (base64.b64encode(leaf(104)).decode(),)
    assert log.entries(start=105, count=5).entries == ()


@pytest.mark.django_db
@pytest.mark.parametrize(("index", "size"), [(0, 4), (3, 3), (-1, 3), (2**70, 2**71), (0, 0)])
def test_proofs_of_what_is_not_there_are_missing(index: int, size: int) -> None:
    for i in range(3):
        log.append(leaf(i))
    with pytest.raises(Missing):
        log.inclusion(index, size)
    with pytest.raises(Missing):
        log.consistency(size + 1, index)
    with pytest.raises(Missing):
        log.head(4)


@pytest.mark.django_db
def test_what_is_too_long_is_refused() -> None:
    with pytest.raises(Refused):
        log.append(b"x" * (log.MAX_LEAF + 1))
    assert log.size() == 0


INSERT = 'INTO transparency_logentry ("index", leaf, leaf_hash, created_at) SELECT'
ATTACKS = [
    "UPDATE transparency_logentry SET leaf_hash = leaf_hash",
    "DELETE FROM transparency_logentry",
    f'INSERT {INSERT} "index" + 5, leaf, leaf_hash, created_at FROM transparency_logentry',
    f'INSERT {INSERT} -1, leaf, leaf_hash, created_at FROM transparency_logentry WHERE "index" = 0',
    "UPDATE transparency_lognode SET hash = hash",
    "DELETE FROM transparency_lognode",
]
OF_ONE_DATABASE = {
    "sqlite": [
        f'INSERT OR REPLACE {INSERT} "index", leaf, leaf, created_at FROM transparency_logentry WHERE "index" = 0',
        "INSERT OR REPLACE INTO transparency_lognode (level, position, hash)"
        " SELECT level, position, hash FROM transparency_lognode",
    ],
    "postgresql": [
        "TRUNCATE transparency_logentry CASCADE",
        "TRUNCATE transparency_lognode",
    ],
}


@pytest.mark.django_db
def test_the_database_itself_refuses_to_rewrite_the_log() -> None:
    for index in range(4):
        log.append(leaf(index))
    before = log.head()
    for attack in [*ATTACKS, *OF_ONE_DATABASE[connection.vendor]]:
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(attack)
        assert log.head() == before
    assert LogNode.objects.count() == 3


@pytest.mark.django_db
def test_the_services_own_objects_cannot_be_saved_again_or_deleted() -> None:
    log.append(leaf(0))
    entry = LogEntry.objects.get()
    for change in (entry.save, entry.delete):
        with pytest.raises(IntegrityError), transaction.atomic():
            change()
    with pytest.raises(IntegrityError), transaction.atomic():
        LogEntry.objects.create(index=2, leaf=b"", leaf_hash=b"", created_at=clock.now())


def rolled_back() -> None:
    with transaction.atomic():
        log.append(b"never was")
        transaction.set_rollback(True)


@pytest.mark.django_db
def test_an_append_that_is_rolled_back_leaves_no_gap() -> None:
    log.append(leaf(0))
    rolled_back()
    assert log.append(leaf(1)) == 1
    assert head().root == merkle.root([leaf(0), leaf(1)])


def test_many_at_once_leave_no_gap_and_no_double(transactional_db: None) -> None:
    """Eight writers who begin together, each with rollbacks in between, on whichever database the tests run."""
    each, writers = 12, 8
    start = threading.Barrier(writers)

    def write(writer: int) -> list[int]:
        try:
            start.wait(timeout=60)
            numbers = []
            for turn in range(each):
                if turn % 4 == 3:
                    rolled_back()
                numbers.append(log.append(b"%d of %d" % (turn, writer)))
            return numbers
        finally:
            connection.close()

    with ThreadPoolExecutor(writers) as pool:
        written = list(pool.map(write, range(writers)))
    assert sorted(chain.from_iterable(written)) == list(range(each * writers))
    leaves = [bytes(entry.leaf) for entry in LogEntry.objects.order_by("index")]
    for writer, numbers in enumerate(written):
        assert [leaves[number] for number in numbers] == [b"%d of %d" % (turn, writer) for turn in range(each)]
    assert head() == Checkpoint(head().origin, each * writers, merkle.root(leaves))
    assert Tail.objects.get().size == each * writers
