"""Send what is due. The row is the queue: whoever claims it tries once, and says when to try again."""

from __future__ import annotations

import logging
import smtplib
import time
from datetime import datetime, timedelta

from django.conf import settings
from django.core.mail import EmailMessage
from django.db.models import F

from labapex_server.alerts.models import Channels, Delivery
from labapex_server.alerts.services import addresses, purpose
from labapex_server.alerts.webhooks import NotDelivered, post, signature
from labapex_server.lib import clock, keys

log = logging.getLogger(__name__)

AT_ONCE = 20
CLAIM = timedelta(minutes=2)
FIRST_PAUSE = timedelta(seconds=15)
MAX_ATTEMPTS = 9
"""15, 30, 60 .. seconds: the last attempt is about an hour after the first."""


def waiting(now: datetime) -> bool:
    """Whether anything is due."""
    return Delivery.objects.filter(due_at__lte=now).exists()


def deliver(now: datetime | None = None) -> int:
    """Send what is due, some of it; how much was sent."""
    now = now or clock.now()
    sent = 0
    for delivery in Delivery.objects.filter(due_at__lte=now).select_related("user").order_by("due_at")[:AT_ONCE]:
        mine = Delivery.objects.filter(pk=delivery.pk, due_at=delivery.due_at)
        if mine.update(due_at=now + CLAIM, attempts=F("attempts") + 1):
            delivery.attempts += 1
            sent += _attempt(delivery, now)
    return sent


def _attempt(delivery: Delivery, now: datetime) -> bool:
    row = Delivery.objects.filter(pk=delivery.pk)
    try:
        _send(delivery)
    except NotDelivered as error:
        again = delivery.attempts < MAX_ATTEMPTS
        due = now + FIRST_PAUSE * 2 ** (delivery.attempts - 1) if again else None
        row.update(due_at=due, problem=str(error)[:500])
        log.info("alert %s was not delivered, attempt %d: %s", delivery.pk, delivery.attempts, error)
        return False
    row.update(due_at=None, done_at=clock.now(), problem="")
    return True


def _send(delivery: Delivery) -> None:
    channels = Channels.objects.select_related("user").filter(user=delivery.user_id).first()
    if delivery.channel == "mail":
        to = addresses(channels.user) if channels is not None and channels.mail else []
        if not to:
            raise NotDelivered("mail is no longer wanted, or the account has no address")
        message = EmailMessage(f"Lab Apex: {delivery.subject}", delivery.body, bcc=to)
        try:
            message.send()
        except (OSError, smtplib.SMTPException) as error:
            raise NotDelivered(f"the mail server did not take it: {type(error).__name__}") from None
        return
    if channels is None or not channels.webhook or channels.wrapped_secret is None:
        raise NotDelivered("there is no webhook any more")
    body, at = delivery.body.encode(), int(time.time())
    secret = keys.unwrap(channels.wrapped_secret, purpose(channels.user))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "LabApex",
        "Labapex-Delivery": str(delivery.pk),
        "Labapex-Signature": signature(secret, at, body),
    }
    post(channels.webhook, body, headers, insecure=settings.LABAPEX.insecure_webhooks)
