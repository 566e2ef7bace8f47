from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from tests.labapex_worker.chains import a_chain, a_fin, a_frame, a_grant, a_key_request

from labapex.errors import Tampered, UsageError
from labapex.protocol.frames import Data, Grant, genesis
from labapex_worker.phases import Phase
from labapex_worker.spool import Forked, Spool, Taken

QUOTA = 10_000


@pytest.fixture
def grant() -> Grant:
    return a_grant()


@pytest.fixture
def spool(tmp_path: Path, grant: Grant) -> Spool:
    made = Spool(tmp_path / "state.sqlite3", quota=QUOTA)
    made.add(grant)
    return made


@pytest.fixture
def chain(grant: Grant) -> list[Data]:
    return a_chain(grant.lease, 5)


def test_frames_come_out_as_they_went_in(spool: Spool, grant: Grant, chain: list[Data]) -> None:
    assert [spool.append(frame) for frame in chain] == [Taken.APPENDED] * 5
    assert list(spool.frames(grant.lease, 0, 5)) == chain
    assert list(spool.frames(grant.lease, 1, 3)) == chain[1:3]


def test_a_frame_that_comes_twice_is_kept_once(spool: Spool, grant: Grant, chain: list[Data]) -> None:
    for frame in (chain[0], chain[1], chain[0], chain[1]):
        spool.append(frame)
    assert spool.append(chain[0]) is Taken.KNOWN
    assert list(spool.frames(grant.lease, 0, 9)) == chain[:2]


def test_a_frame_after_a_gap_is_not_kept(spool: Spool, grant: Grant, chain: list[Data]) -> None:
    spool.append(chain[0])
    assert spool.append(chain[2]) is Taken.GAP
    assert list(spool.frames(grant.lease, 0, 9)) == chain[:1]


@pytest.mark.parametrize("field", ["first", "n", "prev", "payload", "hash"])
def test_a_frame_with_any_field_altered_is_refused(spool: Spool, chain: list[Data], field: str) -> None:
    value = getattr(chain[0], field)
    altered = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
    with pytest.raises(Tampered):
        spool.append(chain[0].model_copy(update={field: altered}))


def test_a_frame_that_does_not_continue_the_log_is_refused(spool: Spool, grant: Grant, chain: list[Data]) -> None:
    spool.append(chain[0])
    for frame in (a_frame(grant.lease, 1, 2, bytes(32)), a_frame(grant.lease, 1, 3, chain[0].hash)):
        with pytest.raises(Tampered, match="does not continue"):
            spool.append(frame)


def test_what_was_committed_is_there_after_the_program_was_killed(
    tmp_path: Path, spool: Spool, grant: Grant, chain: list[Data]
) -> None:
    spool.append(chain[0])
    spool.keep_request(a_key_request(grant.lease), 42)
    spool.move(grant.lease, Phase.RUNNING)
    (row,) = Spool(tmp_path / "state.sqlite3", quota=QUOTA).leases()  # the first one was never closed
    assert (row.grant, row.phase, row.seq, row.next, row.head) == (grant, Phase.RUNNING, 1, 2, chain[0].hash)
    assert (row.key_request, row.peer) == (a_key_request(grant.lease), 42)


def test_an_acknowledgement_deletes_up_to_its_frame_and_no_further(
    spool: Spool, grant: Grant, chain: list[Data]
) -> None:
    for frame in chain:
        spool.append(frame)
    assert spool.acknowledge(grant.lease, 3, chain[2].hash) == 3
    assert list(spool.frames(grant.lease, 0, 9)) == chain[3:]
    assert spool.acknowledge(grant.lease, 2, chain[1].hash) == 3, "an old claim changes nothing"
    assert spool.spooled_bytes == sum(len(frame.payload) for frame in chain[3:])


@pytest.mark.parametrize(("count", "which"), [(3, 1), (0, 0), (6, 4)])
def test_an_acknowledgement_of_another_log_deletes_nothing(
    spool: Spool, grant: Grant, chain: list[Data], count: int, which: int
) -> None:
    for frame in chain:
        spool.append(frame)
    with pytest.raises(Forked):
        spool.acknowledge(grant.lease, count, chain[which].hash)
    assert list(spool.frames(grant.lease, 0, 9)) == chain


def test_the_hash_of_the_last_deleted_frame_is_still_compared(spool: Spool, grant: Grant, chain: list[Data]) -> None:
    spool.append(chain[0])
    spool.acknowledge(grant.lease, 1, chain[0].hash)
    assert spool.acknowledge(grant.lease, 1, chain[0].hash) == 1
    with pytest.raises(Forked):
        spool.acknowledge(grant.lease, 1, chain[1].hash)


def test_a_full_spool_keeps_no_more_until_something_is_acknowledged(spool: Spool, grant: Grant) -> None:
    big = a_frame(grant.lease, 0, 0, genesis(grant.lease), payload=bytes(6000))
    next_big = a_frame(grant.lease, 1, 2, big.hash, payload=bytes(6000))
    assert spool.append(big) is Taken.APPENDED
    assert spool.append(next_big) is Taken.FULL
    spool.acknowledge(grant.lease, 1, big.hash)
    assert spool.append(next_big) is Taken.APPENDED


def test_the_end_must_fit_the_log_and_nothing_comes_after_it(spool: Spool, grant: Grant, chain: list[Data]) -> None:
    for frame in chain[:4]:
        spool.append(frame)
    assert spool.finish(a_fin(grant.lease, chain)) is Taken.GAP
    with pytest.raises(Tampered):
        spool.finish(a_fin(grant.lease, chain[:3]))
    assert spool.finish(a_fin(grant.lease, chain[:4])) is Taken.APPENDED
    assert spool.finish(a_fin(grant.lease, chain[:4])) is Taken.KNOWN
    with pytest.raises(Tampered, match="after the end"):
        spool.append(chain[4])


def test_a_spooled_frame_cannot_be_changed(tmp_path: Path, spool: Spool, chain: list[Data]) -> None:
    spool.append(chain[0])
    with (
        sqlite3.connect(tmp_path / "state.sqlite3") as db,
        pytest.raises(sqlite3.IntegrityError, match="never changes"),
    ):
        db.execute("UPDATE frames SET payload = x'00'")
    db.close()


def test_a_forgotten_lease_leaves_no_frames(tmp_path: Path, spool: Spool, grant: Grant, chain: list[Data]) -> None:
    spool.append(chain[0])
    spool.forget(grant.lease)
    assert spool.leases() == []
    assert list(spool.frames(grant.lease, 0, 9)) == []
    assert spool.spooled_bytes == 0


def test_the_file_is_closed_to_others(tmp_path: Path, spool: Spool) -> None:
    assert (tmp_path / "state.sqlite3").stat().st_mode & 0o077 == 0


def test_a_file_of_another_version_is_refused(tmp_path: Path, spool: Spool) -> None:
    with sqlite3.connect(tmp_path / "state.sqlite3") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(UsageError, match="another version"):
        Spool(tmp_path / "state.sqlite3", quota=QUOTA)
