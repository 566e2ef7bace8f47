"""A real run is looked at: what is wrong with it is raised once, shown, put on its way, and over when it is over."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from django.core import mail
from tests.labapex_server.gateway.stage import Host, Run, a_run, queued_job

from labapex.protocol.states import Fault, JobState
from labapex_server.accounts import organisations
from labapex_server.accounts.models import Membership, Role, User
from labapex_server.alerts import delivery, services
from labapex_server.alerts.models import Alert, Channels, Delivery, Watch
from labapex_server.alerts.trend import STALL_SECONDS
from labapex_server.alerts.webhooks import signature
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.lib.errors import Refused
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry import services as telemetry


@dataclass
class Ear:
    """A server of the user's own that hears webhooks."""

    url: str
    status: int = 200
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def ear(settings: Any) -> Iterator[Ear]:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"insecure_webhooks": True})

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            listening.heard.append((dict(self.headers), body))
            self.send_response(listening.status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    listening = Ear(f"http://127.0.0.1:{server.server_port}/hook?a=b")
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield listening
    server.shutdown()
    thread.join()
    server.server_close()


def a_run_with(rig: Host, owner: User, losses: list[float], *, epochs: int = 1) -> Run:
    job = queued_job(owner, epochs=epochs, per_epoch=len(losses) // epochs, every=len(losses))
    return a_run(job, rig, frame_losses=5, losses=losses)


def feed(run: Run, start: int = 0, stop: int | None = None) -> None:
    for frame in run.executable.frames[start:stop]:
        telemetry.ingest(run.host.worker.pk, frame)


def after(seconds: float) -> datetime:
    return clock.now() + timedelta(seconds=seconds)


def raised() -> dict[str, bool]:
    return dict(Alert.objects.order_by("pk").values_list("kind", "stands"))


def test_a_loss_that_is_no_number_is_told_once_and_its_recovery_once(rig: Host, researcher: User, ear: Ear) -> None:
    services.choose(researcher, mail=False, webhook=ear.url, budget_share=100)
    run = a_run_with(rig, researcher, [1.0] * 12 + [math.nan] + [1.0] * 87)
    feed(run, 0, 3)
    assert services.look(after(0)) == 1
    assert services.look(after(6)) == services.look(after(12)) == 0
    assert raised() == {"not-finite": True}
    (view,) = jobs.view(Job.objects.get()).alerts
    assert view.text == "the loss of iteration 12 is not a finite number; 1 of 15 are not"
    assert view.recovered_at is None
    feed(run, 3, 12)
    assert services.look(after(18)) == 1
    assert raised() == {"not-finite": False}
    assert jobs.view(Job.objects.get()).alerts[0].recovered_at is not None
    assert delivery.deliver(after(20)) == 2
    assert [json.loads(body)["event"] for _, body in ear.heard] == ["raised", "recovered"]


def test_a_run_that_explodes_is_told_in_words_that_explain(rig: Host, researcher: User) -> None:
    run = a_run_with(rig, researcher, [2.0 * 0.98**n for n in range(150)] + [500.0] * 100)
    feed(run)
    services.look(clock.now())
    assert raised() == {"diverging": True}
    assert "3 x 25 iterations in a row up to 250" in Alert.objects.get().text


def test_a_run_that_stands_still_is_told_before_it_is_given_up(rig: Host, researcher: User) -> None:
    run = a_run_with(rig, researcher, [1.0] * 100)
    feed(run, 0, 2)
    Lease.objects.update(heartbeat_at=after(3600))
    services.look(after(STALL_SECONDS - 5))
    assert raised() == {}
    services.look(after(STALL_SECONDS + 5))
    assert raised() == {"stalled": True}
    feed(run, 2, 4)
    Watch.objects.update(looked_at=after(-60))
    services.look(clock.now())
    assert raised() == {"stalled": False}


def test_a_silent_worker_is_told_as_lost_contact(rig: Host, researcher: User) -> None:
    feed(a_run_with(rig, researcher, [1.0] * 100), 0, 2)
    Lease.objects.update(heartbeat_at=after(-3600))
    services.look(clock.now())
    assert raised() == {"lost-contact": True}


@pytest.mark.parametrize(
    ("state", "kind"), [(JobState.FAILED, Fault.CLIENT), (JobState.CANCELLED, Fault.CLIENT)], ids=["failed", "stopped"]
)
def test_each_end_is_told_with_its_cause_and_what_was_passing_is_over(
    rig: Host, researcher: User, state: JobState, kind: Fault
) -> None:
    services.choose(researcher, mail=True, webhook="", budget_share=100)
    researcher.email = "ada@example.org"
    researcher.save()
    run = a_run_with(rig, researcher, [math.nan] * 100)
    feed(run, 0, 2)
    Lease.objects.update(heartbeat_at=after(-3600))
    services.look(clock.now())
    assert jobs.advance(Job.objects.get(), state, reason="ValueError: no such column\nBcc: everyone", fault=kind)
    services.look(clock.now())
    assert services.look(after(60)) == 0
    assert raised() == {"not-finite": True, "lost-contact": False, "ended": True}
    assert delivery.deliver(after(1)) == 3  # nobody is told that a contact is back which is not
    subjects = [message.subject for message in mail.outbox]
    assert subjects == ["Lab Apex: digits: not-finite", "Lab Apex: digits: lost-contact", "Lab Apex: digits: ended"]
    assert mail.outbox[2].recipients() == ["ada@example.org"]
    assert "no such column" in mail.outbox[2].body
    assert f"/jobs/{run.lease.job_id}/" in mail.outbox[2].body


def test_the_budget_is_told_at_the_share_that_its_owner_chose(rig: Host, researcher: User) -> None:
    services.choose(researcher, mail=False, webhook="", budget_share=40)
    run = a_run_with(rig, researcher, [1.0] * 100, epochs=2)
    feed(run, 0, 9)
    services.look(clock.now())
    assert raised() == {}
    feed(run, 9, 11)
    Lease.objects.update(price_per_epoch=400_000)
    services.look(after(6))
    assert raised() == {"budget": True}
    assert "0.4 of 1 credits are spent, 40 %" in Alert.objects.get().text


def test_a_run_that_begins_anew_is_looked_at_anew(rig: Host, researcher: User) -> None:
    run = a_run_with(rig, researcher, [1.0] * 100)
    feed(run, 0, 2)
    services.look(clock.now())
    assert Watch.objects.get().trend["seen"] == 10
    Watch.objects.update(lease=run.host.worker.pk)
    services.look(after(6))
    assert (Watch.objects.get().lease, Watch.objects.get().trend["seen"]) == (run.lease.pk, 10)


# -- on their way ------------------------------------------------------------------------------------------------------


def test_a_call_is_signed_with_the_secret_that_was_shown_once(researcher: User, ear: Ear) -> None:
    secret = services.choose(researcher, mail=False, webhook=ear.url, budget_share=80)
    assert secret is not None
    assert services.choose(researcher, mail=True, webhook=ear.url, budget_share=90) is None
    assert secret.encode() not in bytes(Channels.objects.get().wrapped_secret or b"")
    services.try_out(researcher)
    assert delivery.deliver() == 1
    ((headers, body),) = ear.heard
    at = int(headers["Labapex-Signature"].split(",")[0].removeprefix("t="))
    assert headers["Labapex-Signature"] == signature(secret.encode(), at, body)
    assert headers["Labapex-Delivery"] == str(Delivery.objects.get().pk)
    assert json.loads(body)["event"] == "trial"
    assert delivery.deliver(after(3600)) == 0


@pytest.mark.parametrize("status", [500, 302, 404])
def test_a_call_that_fails_is_made_again_later_and_given_up_at_last(researcher: User, ear: Ear, status: int) -> None:
    services.choose(researcher, mail=False, webhook=ear.url, budget_share=80)
    services.try_out(researcher)
    ear.status = status
    now = clock.now()
    waits = []
    while (due := Delivery.objects.get().due_at) is not None:
        waits.append(round((due - now).total_seconds()))
        now = max(now, due)
        assert delivery.deliver(now) == 0
        assert delivery.deliver(now) == 0  # it is not due
    assert waits == [0, 15, 30, 60, 120, 240, 480, 960, 1920]
    assert Delivery.objects.get().problem.startswith(f"127.0.0.1 answered {status}")
    assert len({body for _, body in ear.heard}) == 1
    assert len(ear.heard) == 9  # a redirect was not followed


def test_what_is_no_longer_wanted_is_not_sent(researcher: User, ear: Ear) -> None:
    services.choose(researcher, mail=False, webhook=ear.url, budget_share=80)
    services.try_out(researcher)
    services.choose(researcher, mail=False, webhook="", budget_share=80)
    assert delivery.deliver() == 0
    assert ear.heard == []
    assert Delivery.objects.get().problem == "there is no webhook any more"


@pytest.mark.django_db
def test_an_organisations_mails_go_to_the_members_who_may_see_its_jobs(
    researcher: User, other_researcher: User, host: User
) -> None:
    laboratory = organisations.establish(researcher, "laboratory")
    for person, role in ((researcher, None), (other_researcher, Role.MEMBER), (host, Role.BILLING)):
        person.email = f"{person.username}@example.org"
        person.save()
        if role:
            Membership.objects.create(organisation=laboratory, person=person, role=role, since=clock.now())
    services.choose(laboratory, mail=True, webhook="", budget_share=80)
    services.try_out(laboratory)
    assert delivery.deliver() == 1
    (message,) = mail.outbox
    assert message.recipients() == ["other_researcher@example.org", "researcher@example.org"]
    assert message.to == []  # nobody learns the others' addresses


@pytest.mark.django_db
@pytest.mark.parametrize(
    "webhook",
    ["http://example.org/", "https://", "https://user:secret@example.org/", "ftp://example.org", "https://a b/", "https://a:99999/"],
)  # fmt: skip
def test_an_address_that_will_never_be_called_is_refused(researcher: User, webhook: str) -> None:
    with pytest.raises(Refused):
        services.choose(researcher, mail=False, webhook=webhook, budget_share=80)
