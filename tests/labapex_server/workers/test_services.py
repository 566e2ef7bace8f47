from __future__ import annotations

from datetime import timedelta

import pytest

from labapex_server.accounts.models import User
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict, Refused
from labapex_server.workers import services as workers
from labapex_server.workers.models import EnrolmentCode, Worker

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
    Worker.objects.update(banned=True)
    assert workers.known(worker.pk) is None
