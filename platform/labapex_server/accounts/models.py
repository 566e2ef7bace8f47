"""Who may enter: people and organisations, the tokens of their programs, and logins of programs that wait for a word."""

from __future__ import annotations

from django.contrib.auth.models import AbstractUser
from django.db import models

from labapex.protocol.api import Scope


class Role(models.TextChoices):
    """What a person may do for an organisation; as scopes in `accounts.organisations`."""

    OWNER = "owner", "owner"
    MEMBER = "member", "member"
    BILLING = "billing", "billing"


class User(AbstractUser):
    """Whoever jobs, hosts, credit and tokens belong to: a person, or an organisation, which has no password and acts by its
    members. The same account may buy training, offer a host, or both."""

    is_organisation = models.BooleanField(default=False)
    public_name = models.CharField(max_length=80, blank=True)  # in their certificates; empty: a pseudonym alone


class Membership(models.Model):
    organisation = models.ForeignKey(User, on_delete=models.CASCADE, related_name="members")
    person = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role.choices)
    since = models.DateTimeField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=["organisation", "person"], name="one_role_per_member"),)

    def __str__(self) -> str:
        return f"{self.person}, {self.role} of {self.organisation}"


class Invitation(models.Model):
    """A link by which one person becomes a member. Only the digest of its secret is kept."""

    organisation = models.ForeignKey(User, on_delete=models.CASCADE, related_name="invitations")
    role = models.CharField(max_length=10, choices=Role.choices)
    email = models.EmailField(blank=True)  # where it was sent, or nowhere
    digest = models.CharField(max_length=64, unique=True)
    created_by = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"invitation to {self.organisation}"


class Token(models.Model):
    """A program's key. Only the digest of its secret is kept. A revoked one stays, so that a 401 can say what it was."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="tokens")  # for whom it acts
    made_by = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")  # the person; of a person, the same
    name = models.CharField(max_length=80, blank=True)
    prefix = models.CharField(max_length=12)  # the secret's first characters, to recognise it by
    digest = models.CharField(max_length=64, unique=True)  # SHA-256 of the secret
    scopes = models.JSONField(default=list)
    created_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)  # null: never
    revoked_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"'{self.name}' ({self.prefix}…)" if self.name else f"'{self.prefix}…'"

    @property
    def granted(self) -> tuple[Scope, ...]:
        return tuple(Scope(scope) for scope in self.scopes)


class DeviceLogin(models.Model):
    """A program that asked to be logged in (RFC 8628). Both codes are kept by their digests alone."""

    device_digest = models.CharField(max_length=64, unique=True)
    user_digest = models.CharField(max_length=64, unique=True)
    name = models.CharField(max_length=80, blank=True)
    scopes = models.JSONField()
    days = models.IntegerField()  # life of the token
    address = models.CharField(max_length=64)  # from where it was asked
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    interval = models.IntegerField()  # seconds between two polls
    polled_at = models.DateTimeField(null=True)
    organisation = models.CharField(max_length=150, blank=True)  # for which it wants to act; empty: for the person
    decided_by = models.ForeignKey(User, on_delete=models.CASCADE, null=True, related_name="+")
    allowed = models.BooleanField(default=False)  # says nothing before somebody decided

    def __str__(self) -> str:
        return f"login of {self.name or 'a program'}"

    @property
    def asked(self) -> tuple[Scope, ...]:
        return tuple(Scope(scope) for scope in self.scopes)
