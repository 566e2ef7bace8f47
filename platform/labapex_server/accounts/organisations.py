"""Organisations: accounts without a password, for which their members act, each as far as their role goes.

A role is a set of scopes, the same that tokens have: what a member may do on a page, their token may do in the API, and no more.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType

from django.conf import settings
from django.core.mail import send_mail
from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from labapex.protocol.api import Scope
from labapex_server.accounts.adapters import NAME
from labapex_server.accounts.models import Invitation, Membership, Role, Token, User
from labapex_server.lib import clock, tokens
from labapex_server.lib.errors import Conflict, Missing, Refused

INVITATION_DAYS = 7
MAX_NAME = 60
SCOPES: Mapping[str, frozenset[Scope]] = MappingProxyType(
    {
        Role.OWNER: frozenset(Scope),
        Role.MEMBER: frozenset({Scope.JOBS_READ, Scope.JOBS_WRITE, Scope.WORKERS_WRITE, Scope.BILLING_READ}),
        Role.BILLING: frozenset({Scope.BILLING_READ}),
    }
)
MEANING: Mapping[str, str] = MappingProxyType(
    {
        Role.OWNER: "do everything, and say who is a member",
        Role.MEMBER: "submit jobs, which spends its credit, see and stop all of them, enrol hosts",
        Role.BILLING: "see its balance, receipts and statements",
    }
)
"""Each role in words: what follows "may"."""


class NoMember(Refused):
    """Of this organisation; whether there is one, is not told."""

    status = 403
    code = "no-member"


@dataclass(frozen=True)
class Acting:
    """A person, and for whom they act: for themselves, or for an organisation in a role."""

    person: User
    principal: User
    role: str | None  # None: for themselves

    @property
    def scopes(self) -> frozenset[Scope]:
        return frozenset(Scope) if self.role is None else SCOPES[self.role]

    @property
    def governs(self) -> bool:
        """Whether all that belongs to the principal is theirs to change, other people's tokens too."""
        return Scope.TOKENS_WRITE in self.scopes


def acting(person: User, organisation: int | str | None) -> Acting:
    """By an organisation's key or name; None: for oneself. Raises `NoMember`."""
    if organisation is None:
        return Acting(person, person, None)
    key = (
        {"organisation_id": organisation} if isinstance(organisation, int) else {"organisation__username": organisation}
    )
    found = Membership.objects.select_related("organisation").filter(person=person, **key).first()
    if found is None:
        raise NoMember("you are not a member of this organisation; ask one of its owners for an invitation")
    return Acting(person, found.organisation, found.role)


def of(person: User) -> QuerySet[Membership]:
    return Membership.objects.select_related("organisation").filter(person=person).order_by("organisation__username")


def establish(person: User, name: str) -> User:
    """A new organisation, owned by this person. Raises `Refused` for a name that cannot be had."""
    name = name.strip()
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise Refused(f"use letters, digits and . + - _, at most {MAX_NAME} of them, and begin with no sign")
    taken = Conflict(f"the name {name} is taken")
    if User.objects.filter(username__iexact=name).exists():
        raise taken
    organisation = User(username=name, is_organisation=True)
    organisation.set_unusable_password()
    try:
        with transaction.atomic():
            organisation.save()
            _admit(organisation, person, Role.OWNER)
    except IntegrityError:
        raise taken from None
    return organisation


def invite(by: Acting, *, role: str, email: str = "") -> str:
    """The link of a new invitation, shown this once, and sent where there is an address. Raises `Refused`."""
    _must_govern(by)
    if role not in Role.values:
        raise Refused("there is no such role")
    secret, now = secrets.token_urlsafe(24), clock.now()
    Invitation.objects.filter(expires_at__lt=now).delete()
    Invitation.objects.create(
        organisation=by.principal,
        role=role,
        email=email,
        digest=tokens.digest(secret),
        created_by=by.person,
        created_at=now,
        expires_at=now + timedelta(days=INVITATION_DAYS),
    )
    link = f"{settings.LABAPEX.public_url.rstrip('/')}/invitation/{secret}/"
    if email:
        send_mail(
            f"Lab Apex: {by.person} invites you to {by.principal}",
            f"{by.person} invites you to act for {by.principal} on Lab Apex. You may then {MEANING[role]}.\n\n"
            f"Open this link within {INVITATION_DAYS} days; it works once:\n\n{link}\n",
            None,
            [email],
        )
    return link


def invitation(secret: str) -> Invitation:
    """What a link leads to. Raises `Missing`."""
    found = (
        Invitation.objects.select_related("organisation", "created_by")
        .filter(digest=tokens.digest(secret[:100]), expires_at__gt=clock.now())
        .first()
    )
    if found is None:
        raise Missing("this invitation is unknown, used, withdrawn or too old; ask for another one")
    return found


def join(person: User, secret: str) -> Membership:
    """Use up an invitation. Raises `Missing` and, for who is a member already, `Conflict`."""
    offered = invitation(secret)
    with transaction.atomic():
        if not Invitation.objects.filter(pk=offered.pk).delete()[0]:
            raise Missing("this invitation was used in the meantime")
        if Membership.objects.filter(organisation=offered.organisation, person=person).exists():
            raise Conflict(
                f"you are a member of {offered.organisation} already; the invitation stays good for another one"
            )
        return _admit(offered.organisation, person, offered.role)


def withdraw(by: Acting, invitation_id: int) -> None:
    _must_govern(by)
    Invitation.objects.filter(organisation=by.principal, pk=invitation_id).delete()


def appoint(by: Acting, person_id: int, role: str) -> None:
    """Give a member another role. Raises `Refused`, where no owner would be left `Conflict`."""
    _must_govern(by)
    if role not in Role.values:
        raise Refused("there is no such role")
    with _owners_kept(by.principal):
        Membership.objects.filter(organisation=by.principal, person_id=person_id).update(role=role)


def dismiss(by: Acting, person_id: int) -> None:
    """End a membership, one's own or, as an owner, another's; their tokens for the organisation open nothing from now on.
    Raises `NoMember`, where no owner would be left `Conflict`."""
    if person_id != by.person.pk:
        _must_govern(by)
    with _owners_kept(by.principal):
        Membership.objects.filter(organisation=by.principal, person_id=person_id).delete()
        live = Token.objects.filter(user=by.principal, made_by_id=person_id, revoked_at=None)
        live.update(revoked_at=clock.now())


def _admit(organisation: User, person: User, role: str) -> Membership:
    return Membership.objects.create(organisation=organisation, person=person, role=role, since=clock.now())


def _must_govern(by: Acting) -> None:
    if by.role is None or not by.governs:
        raise NoMember("this is for the organisation's owners")


@contextmanager
def _owners_kept(organisation: User) -> Iterator[None]:
    """A transaction in which the last owner cannot go, whoever else acts at the same time."""
    with transaction.atomic():
        User.objects.select_for_update().get(pk=organisation.pk)
        yield
        if not Membership.objects.filter(organisation=organisation, role=Role.OWNER).exists():
            raise Conflict("an organisation keeps one owner: make somebody else an owner first")
