from __future__ import annotations

from datetime import timedelta
from io import StringIO
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command

from labapex_server.accounts.models import User
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict, Refused
from labapex_server.workers import reputation
from labapex_server.workers import services as workers
from labapex_server.workers.models import EnrolmentCode, Finding, Worker
from labapex_server.workers.reputation import TRUSTED_AFTER

pytestmark = pytest.mark.django_db
KEY = bytes(range(32))


def test_a_code_enrols_one_host_of_the_one_who_asked_for_it(host: User) -> None:
    code, expires = workers.new_code(host)
    worker = workers.enrol(code, "rig", KEY)
    assert worker.owner == host
    assert expires > clock.now()
    assert workers.known(worker.pk) == worker
    with pytest.raises(Refused, match="used"):
        workers.enrol(code, "second", KEY[::-1])


def test_a_code_can_be_typed_as_an_argument_and_is_never_taken_for_a_flag(host: User) -> None:
    codes = [workers.new_code(host)[0] for _ in range(200)]
    assert all(code.isalnum() for code in codes)
    assert len(set(codes)) == 200


def test_a_late_or_invented_code_enrols_nothing(host: User) -> None:
    code, _ = workers.new_code(host)
    EnrolmentCode.objects.update(expires_at=clock.now() - timedelta(seconds=1))
    for wrong in (code, "", "invented"):
        with pytest.raises(Refused):
            workers.enrol(wrong, "rig", KEY)
    assert not Worker.objects.exists()


def test_a_key_is_enrolled_once_and_the_code_stays_good(host: User, cheat: User) -> None:
    workers.enrol(workers.new_code(host)[0], "rig", KEY)
    code, _ = workers.new_code(cheat)
    with pytest.raises(Conflict):
        workers.enrol(code, "copy", KEY)
    assert workers.enrol(code, "own", KEY[::-1]).owner == cheat


def test_a_banned_worker_is_unknown(host: User) -> None:
    worker = workers.enrol(workers.new_code(host)[0], "rig", KEY)
    workers.set_banned(worker, True, "found false twice")
    assert workers.known(worker.pk) is None


def test_a_ban_by_command_is_kept_with_its_reason_and_so_is_the_end_of_it(host: User) -> None:
    worker = workers.enrol(workers.new_code(host)[0], "rig", KEY)
    for _ in range(TRUSTED_AFTER):
        workers.mark(worker, Finding.VERIFIED, reason="verified")
    call_command("ban", str(worker.pk), "--reason", "found false twice (ada)", stdout=StringIO())
    assert workers.known(worker.pk) is None
    with pytest.raises(CommandError, match="banned already"):
        call_command("ban", str(worker.pk), "--reason", "again")
    call_command("ban", str(worker.pk), "--lift", "--reason", "a broken disk, replaced (ada)", stdout=StringIO())
    assert workers.known(worker.pk) == worker
    assert [(mark.finding, mark.reason) for mark in worker.marks.order_by("pk")[TRUSTED_AFTER:]] == [
        ("banned", "found false twice (ada)"),
        ("unbanned", "a broken disk, replaced (ada)"),
    ]
    assert not reputation.of(worker).trusted
    for wrong in ([str(worker.pk), "--reason", " "], [str(UUID(int=1)), "--reason", "who is that"]):
        with pytest.raises(CommandError):
            call_command("ban", *wrong)
