from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from tests.labapex_server.gateway.stage import Host, a_host, a_run, queued_job

from labapex_server.accounts.models import User
from labapex_server.marketplace.executables import executable_parts, runner_of

pytestmark = pytest.mark.django_db


def test_a_lease_keeps_its_runner_when_the_platform_gets_another(
    rig: Host, host: User, researcher: User, settings: Any
) -> None:
    lease = a_run(queued_job(researcher), rig).lease
    before = executable_parts(lease)
    content = b"".join(before.stream())
    bootloader = Path(settings.LABAPEX.runner_dir) / "bootloader"
    bootloader.write_bytes(bootloader.read_bytes() + b"upgraded")
    assert b"".join(executable_parts(lease).stream()) == content
    assert hashlib.sha256(runner_of(lease).read_bytes()).hexdigest() == lease.manifest["runner"]
    other = a_run(queued_job(researcher, name="next"), a_host(host, "second")).lease
    assert other.manifest["runner"] != lease.manifest["runner"]
