"""What an operator does: a service is called, and who did what to what, and why, becomes a row, both or neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import ModelAdmin
from django.contrib.admin.helpers import ActionForm
from django.contrib.admin.models import CHANGE, LogEntry
from django.db import transaction
from django.http import HttpRequest

from labapex.errors import LabApexError
from labapex.protocol.spec import micro_credits
from labapex_server.lib.errors import Refused

Deed = Callable[[Any, str], str]
"""Does it to one thing for a reason, and says what was done. Raises `LabApexError`."""


class Reasoned(ActionForm):
    """Every action wants a reason."""

    reason = forms.CharField(label="Reason:", max_length=500, required=False)


class ReasonedAmount(Reasoned):
    credits = forms.CharField(label="Credits:", max_length=20, required=False)


def carry_out(admin: ModelAdmin[Any], request: HttpRequest, chosen: Iterable[Any], deed: Deed) -> None:
    """Do it to each that was chosen; what is refused is said, and nothing of it is done."""
    reason = request.POST.get("reason", "").strip()
    if not reason:
        admin.message_user(request, "Say why: an action needs a reason, which is kept for good.", messages.ERROR)
        return
    for thing in chosen:
        try:
            with transaction.atomic():
                done = deed(thing, reason)
                _log(request, thing, f"{done}. Reason: {reason}")
        except LabApexError as error:
            admin.message_user(request, f"{thing}: {error}", messages.ERROR)
        else:
            admin.message_user(request, f"{thing}: {done}.", messages.SUCCESS)


def _log(request: HttpRequest, thing: Any, words: str) -> None:
    assert request.user.pk is not None  # the site lets nobody else in
    LogEntry.objects.log_actions(request.user.pk, [thing], CHANGE, words, single_object=True)


def amount(request: HttpRequest) -> int:
    """Micro-credits that were entered. Raises `Refused`."""
    try:
        found = int(micro_credits(request.POST.get("credits", "").strip()))
    except ValueError as error:
        raise Refused(f"credits: {error}") from None
    if found <= 0:
        raise Refused("credits: an amount above zero, for example 2.5")
    return found
