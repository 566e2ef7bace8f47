"""Look at jobs, raise what is to be said of them, and keep how people want to be told."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q

from labapex.protocol.api import AlertKind, JobView, Scope
from labapex.protocol.records import uncolumn
from labapex.protocol.states import END_STATES, JobState, LeaseState
from labapex_server.accounts.models import Membership, User
from labapex_server.accounts.organisations import SCOPES
from labapex_server.alerts.conditions import Situation, change, standing
from labapex_server.alerts.models import Alert, Channels, Delivery, Watch
from labapex_server.alerts.trend import Trend
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.jobs.view import viewable
from labapex_server.lib import clock, keys
from labapex_server.lib.errors import Refused
from labapex_server.telemetry.models import Frame

LOOK_SECONDS = 5.0
JOBS_A_LOOK = 100
FRAMES_A_LOOK = 400
RECENT = timedelta(days=1)
MAX_TEXT = 1000
WATCHED = (JobState.LEASED, JobState.RUNNING, JobState.CHALLENGED, JobState.RESUMING)


def look(now: datetime) -> int:
    """Look at the jobs that nobody looked at for some seconds; how many were found in another condition than before."""
    alive = Q(state__in=[state.value for state in WATCHED])
    ended = Q(state__in=[state.value for state in END_STATES], ended_at__gte=now - RECENT)
    untold = ~Q(alerts__kind=AlertKind.ENDED.value)
    stale = Q(watch__isnull=True) | Q(watch__looked_at__lt=now - timedelta(seconds=LOOK_SECONDS))
    found = viewable(Job.objects.filter((alive & stale) | (ended & untold))).select_related("owner", "hold", "watch")
    return sum(_look(job, now) for job in found.order_by(F("watch__looked_at").asc(nulls_first=True))[:JOBS_A_LOOK])


@transaction.atomic
def _look(job: Job, now: datetime) -> bool:
    watch, made = Watch.objects.get_or_create(job=job, defaults={"looked_at": now})
    mine = Watch.objects.filter(pk=watch.pk, looked_at=watch.looked_at)
    if not made and not mine.update(looked_at=now):
        return False  # another process looks at it
    view = jobs.view(job)
    situation = _situation(job, view, watch, now)
    known = {AlertKind(alert.kind): alert for alert in Alert.objects.filter(job=job)}
    news = change(
        {kind: (alert.stands, alert.recovered_at is not None) for kind, alert in known.items()}, standing(situation)
    )
    for kind, words in news.raised.items():
        alert = Alert.objects.create(job=job, kind=kind.value, text=words[:MAX_TEXT], raised_at=now)
        _tell(job.owner, view, alert, "raised", now)
    for kind in news.recovered | news.over:
        alert = known[kind]
        alert.stands, alert.recovered_at = False, alert.recovered_at or now
        alert.save(update_fields=["stands", "recovered_at"])
        if kind in news.recovered:
            _tell(job.owner, view, alert, "recovered", now)
    Alert.objects.filter(job=job, kind__in=[kind.value for kind in news.back]).update(stands=True)
    changed = bool(news.raised or news.recovered or news.back or news.over)
    if changed:
        jobs.touch(job.pk)
    return changed


def _situation(job: Job, view: JobView, watch: Watch, now: datetime) -> Situation:
    """The job as it is, with what its log gained since the last look."""
    lease: Any = max(job.leases.all(), key=lambda each: each.granted_at, default=None)
    trend = _follow(watch, lease)
    quiet = None
    if view.state is JobState.RUNNING and lease.state == LeaseState.RUNNING and view.progress.total != trend.seen:
        quiet = now.timestamp() - (watch.arrived_at or lease.key_released_at.timestamp())
    share = Channels.objects.filter(user=job.owner_id).values_list("budget_share", flat=True).first()
    return Situation(
        state=view.state,
        reason=view.reason,
        trend=trend,
        quiet=quiet,
        iteration_seconds=job.iteration_seconds,
        lost_contact=view.lost_contact,
        cost=view.cost,
        budget=view.budget,
        share=Channels._meta.get_field("budget_share").default if share is None else share,
    )


def _follow(watch: Watch, lease: Any) -> Trend:
    """What the current lease's log comes to. A run that begins on another host is looked at anew."""
    if lease is None:
        return Trend()
    if watch.lease != lease.pk:
        watch.lease, watch.seq, watch.arrived_at, watch.trend = lease.pk, 0, None, {}
    kept: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in watch.trend.items()}
    trend = Trend(**kept)
    rows = Frame.objects.filter(log=lease.pk, seq__gte=watch.seq).order_by("seq")[:FRAMES_A_LOOK]
    for seq, first, losses, times, arrived in rows.values_list("seq", "first", "losses", "times", "received_at"):
        watch.seq = seq + 1
        if losses:
            trend = trend if trend.seen else Trend(seen=first)
            trend = trend.fold(uncolumn(bytes(losses)), uncolumn(bytes(times)))
            watch.arrived_at = arrived
    watch.trend = asdict(trend)
    watch.save(update_fields=["lease", "seq", "arrived_at", "trend"])
    return trend


# -- telling -----------------------------------------------------------------------------------------------------------


def _tell(user: User, job: JobView, alert: Alert, event: str, now: datetime) -> None:
    channels = Channels.objects.filter(user=user).first()
    if channels is None:
        return
    said = f"{job.name}: {alert.kind}" + (" is over" if event == "recovered" else "")
    document = {
        "event": event,
        "alert": {"kind": alert.kind, "text": alert.text, "at": now.timestamp()},
        "job": {"id": str(job.id), "name": job.name, "state": job.state.value, "url": job.url},
    }
    _put(channels, said, f"{alert.text}\n\n{job.url}\n", document, now)


def _put(channels: Channels, subject: str, words: str, document: dict[str, Any], now: datetime) -> None:
    """Messages on their way: the sweep sends them."""
    subject = " ".join(subject.split())[:150]
    bodies = {}
    if channels.mail and addresses(channels.user):
        bodies["mail"] = words
    if channels.webhook:
        bodies["webhook"] = json.dumps(document)
    for channel, body in bodies.items():
        Delivery.objects.create(
            user=channels.user, channel=channel, subject=subject, body=body, created_at=now, due_at=now
        )


def try_out(user: User) -> None:
    """Send a message that says only that it came. Raises `Refused` where there is no channel."""
    channels = channels_of(user)
    if not channels.webhook and not (channels.mail and addresses(user)):
        raise Refused("there is no channel: choose mail, for which the account needs an address, or a webhook")
    words = "This is a trial: alerts of your jobs come this way."
    _put(channels, "Trial", words + "\n", {"event": "trial", "text": words}, clock.now())


# -- how people want to be told ----------------------------------------------------------------------------------------


def channels_of(user: User) -> Channels:
    """A person's channels; unsaved where nothing was ever chosen."""
    return Channels.objects.select_related("user").filter(user=user).first() or Channels(user=user)


def addresses(user: User) -> list[str]:
    """Where mails for an account go: to the person, or to those members of an organisation who may see its jobs."""
    if not user.is_organisation:
        return [user.email] if user.email else []
    seeing = [role for role, scopes in SCOPES.items() if Scope.JOBS_READ in scopes]
    members = Membership.objects.filter(organisation=user, role__in=seeing).exclude(person__email="")
    return sorted(set(members.values_list("person__email", flat=True)))


def choose(user: User, *, mail: bool, webhook: str, budget_share: int) -> str | None:
    """Keep how a person wants to be told. A webhook with a new address gets a new secret, which is returned this once.

    Raises `Refused` for an address that will never be called."""
    check_address(webhook)
    channels = channels_of(user)
    secret = None
    if webhook != channels.webhook:
        secret = f"whsec_{secrets.token_urlsafe(32)}" if webhook else None
        channels.wrapped_secret = keys.wrap(secret.encode(), purpose(user)) if secret else None
    channels.mail, channels.webhook, channels.budget_share = mail, webhook, budget_share
    channels.save()
    return secret


def purpose(user: User) -> str:
    """What a wrapped secret is for."""
    return f"webhook:{user.pk}"


def check_address(webhook: str) -> None:
    """What can be told of an address without resolving it."""
    if not webhook:
        return
    allowed = ("https", "http") if settings.LABAPEX.insecure_webhooks else ("https",)
    try:
        url = urlsplit(webhook)
        wrong = url.scheme not in allowed or not url.hostname or bool(url.username) or (url.port or 443) < 1
    except ValueError:
        wrong = True
    if wrong or len(webhook) > 2000 or not webhook.isprintable() or " " in webhook:
        raise Refused(
            "a webhook is an address that begins with https:// and names a host, without a password",
            errors={"webhook": "must begin with https:// and name a host"},
        )


def latest(user: User, count: int = 20) -> Iterable[Delivery]:
    return Delivery.objects.filter(user=user).order_by("-created_at")[:count]
