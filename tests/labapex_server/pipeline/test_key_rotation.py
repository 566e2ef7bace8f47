"""Another key in the place of one, while the platform runs: what the former closed opens, what it signed is checked."""

from __future__ import annotations

import hashlib
import io
import os
import re
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP
from django.core.management import CommandError, call_command
from django.test import Client
from tests.labapex_server.gateway.stage import Host, Run
from tests.labapex_server.pipeline.test_backup import a_job, opened, stage
from tests.labapex_server.scenes import finished, stand_in, submitted
from tests.labapex_server.verification.test_takeover import judged, send, training

from labapex.errors import Tampered
from labapex.protocol.states import JobState
from labapex.sealing import verify
from labapex.transparency import open_checkpoint
from labapex_server.accounts.adapters import SECOND_FACTOR
from labapex_server.accounts.models import User
from labapex_server.alerts.models import Channels
from labapex_server.jobs import blobs
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Blob, Job
from labapex_server.lib import keys
from labapex_server.lib.config import ROOT
from labapex_server.lib.errors import Refused
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.pipeline import rewrapping, stages
from labapex_server.telemetry.writer import writer
from labapex_server.transparency import services as transparency
from labapex_server.verification import services as verification


@pytest.fixture(autouse=True)
def _stand_in(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(settings, monkeypatch)


def a_day_later() -> None:
    for path in keys.former_paths("wrapping"):
        os.utime(path, (0, 0))


# -- what is wrapped ---------------------------------------------------------------------------------------------------


def test_the_wrapping_key_is_rotated_under_a_running_job_which_ends_as_if_nothing_was(
    rig: Host, researcher: User, capsys: Any
) -> None:
    job = a_job(researcher, "digits")
    run: Run = training(job, rig)
    send(run, 8)
    secrets = [jobs.content_key(Job.objects.get()), marketplace.run_key(Lease.objects.get())]
    secrets += [blobs.content_key(blob) for blob in Blob.objects.all()]
    before = keys._key("wrapping")
    call_command("keys", "rotate", "wrapping")
    assert keys._key("wrapping") != before
    writer.forget()  # as after a restart: the run's key is opened anew, under the former one
    with pytest.raises(CommandError, match="is here still"):
        call_command("keys", "rotate", "wrapping")
    finished(run)
    call_command("keys", "rewrap")
    assert "3 secrets were brought under the present key" in capsys.readouterr().out
    assert rewrapping.rewrap() == 0
    with pytest.raises(CommandError, match="less than a day ago"):
        call_command("keys", "forget", "wrapping")
    a_day_later()
    call_command("keys", "forget", "wrapping")
    assert keys.former("wrapping") == []
    assert [jobs.content_key(Job.objects.get()), marketplace.run_key(Lease.objects.get())] == secrets[:2]
    assert [blobs.content_key(blob) for blob in Blob.objects.all()] == secrets[2:]
    opened(run)
    stage(job, JobState(Job.objects.get().state), stages.verify)
    stage(job, JobState(Job.objects.get().state), stages.settle)
    assert Job.objects.get().state == "verified"


@pytest.mark.django_db
def test_an_upload_that_broke_off_goes_on_after_the_rotation(researcher: User) -> None:
    content = bytes(6 << 19)
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(Refused, match="too early"):
        blobs.store(researcher, digest, io.BytesIO(content[: 5 << 19]), size=len(content))
    call_command("keys", "rotate", "wrapping")
    here = blobs.begun(researcher, digest)
    assert here > 0
    blob, _ = blobs.store(researcher, digest, io.BytesIO(content[here:]), size=len(content), offset=here)
    assert keys.rewrap(blob.wrapped_key, blobs.purpose(researcher.pk, digest)) is None


@pytest.mark.django_db
def test_what_neither_key_opens_stops_the_rewrapping_and_says_so(researcher: User) -> None:
    submitted(researcher)
    call_command("keys", "rotate", "wrapping")
    Blob.objects.update(wrapped_key=b"damaged" * 10)
    with pytest.raises(CommandError, match="do not belong together"):
        call_command("keys", "rewrap")


@pytest.mark.django_db
def test_second_factors_are_good_after_the_rotation(researcher: User) -> None:
    TOTP.activate(researcher, "JBSWY3DPEHPK3PXP")
    codes = RecoveryCodes.activate(researcher).get_unused_codes()
    call_command("keys", "rotate", "wrapping")
    assert rewrapping.rewrap() == 2
    a_day_later()
    call_command("keys", "forget", "wrapping")
    app = Authenticator.objects.get(user=researcher, type=Authenticator.Type.TOTP)
    assert keys.unwrap(bytes.fromhex(app.data["secret"]), SECOND_FACTOR) == b"JBSWY3DPEHPK3PXP"
    assert Authenticator.objects.get(user=researcher, type="recovery_codes").wrap().get_unused_codes() == codes


def test_everything_that_is_wrapped_is_known_to_the_rewrapping() -> None:
    """Whoever wraps another column adds it to `rewrapping.COLUMNS`, or says here why it need not last."""
    root = ROOT / "platform" / "labapex_server"
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"keys\.wrap\((?!b\"\")", path.read_text()) and path.name != "keys.py"
    }
    lasting = {
        "accounts/adapters.py",
        "alerts/services.py",
        "jobs/blobs.py",
        "jobs/services.py",
        "marketplace/key_release.py",
    }
    gone_in_a_day = {"api/idempotency.py"}
    assert found - gone_in_a_day == lasting
    assert {column.model for column in rewrapping.COLUMNS} == {Blob, Job, Lease, Channels}


# -- what is signed ----------------------------------------------------------------------------------------------------


def test_a_verdict_of_before_is_checked_with_the_key_of_before(rig: Host, researcher: User, capsys: Any) -> None:
    first = training(a_job(researcher, "first"), rig)
    finished(first)
    judged(first)
    old_public = keys.verdict_public_key()
    call_command("keys", "rotate", "verdict")
    assert "public-" in capsys.readouterr().out
    (kept,) = (rewrapping.keys._folder()).glob("verdict.public-*")
    assert kept.read_bytes() == old_public
    signed = verification.signed(Job.objects.get())
    assert signed.key_id == keys.key_id(old_public) != keys.key_id(keys.verdict_public_key())
    verify(old_public, signed.verdict, signed.signature)
    with pytest.raises(Tampered):
        verify(keys.verdict_public_key(), signed.verdict, signed.signature)
    stage(Job.objects.get(), JobState(Job.objects.get().state), stages.settle)
    second = training(a_job(researcher, "second"), rig)
    finished(second)
    judged(second)
    again = verification.signed(Job.objects.get(pk=second.lease.job_id))
    verify(keys.verdict_public_key(), again.verdict, again.signature)


@pytest.mark.django_db
def test_the_log_goes_on_under_a_new_key_with_all_its_entries() -> None:
    transparency.append(b"an entry")
    before = open_checkpoint(transparency.head().checkpoint, keys.log_public_key())
    call_command("keys", "rotate", "log")
    after = open_checkpoint(transparency.head().checkpoint, keys.log_public_key())
    assert (after.size, after.root) == (before.size, before.root)


def test_sessions_go_on_under_a_new_django_key_until_the_former_is_forgotten(
    client: Client, researcher: User, settings: Any
) -> None:
    settings.SECRET_KEY = settings.LABAPEX.secret_key()
    client.force_login(researcher)
    call_command("keys", "rotate", "django")
    settings.SECRET_KEY = settings.LABAPEX.secret_key()  # as each process reads it when it starts
    settings.SECRET_KEY_FALLBACKS = settings.LABAPEX.former_secret_keys()
    assert client.get("/jobs/").status_code == 200
    stranger = Client()
    stranger.force_login(researcher)
    cookie = stranger.cookies["sessionid"].value
    call_command("keys", "rotate", "django")
    call_command("keys", "forget", "django")
    settings.SECRET_KEY = settings.LABAPEX.secret_key()
    settings.SECRET_KEY_FALLBACKS = settings.LABAPEX.former_secret_keys()
    assert settings.SECRET_KEY_FALLBACKS == []
    late = Client()
    late.cookies["sessionid"] = cookie
    assert late.get("/jobs/").status_code == 302
