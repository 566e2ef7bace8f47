"""Who may enter: people, the tokens of their programs, and logins of programs that wait for a person's word."""

from __future__ import annotations

from django.contrib.auth.models import AbstractUser
from django.db import models

from labapex.protocol.api import Scope


class User(AbstractUser):
    """A person. The same account may buy training, offer a host, or both."""

    public_name = models.CharField(max_length=80, blank=True)  # in their certificates; empty: a pseudonym alone


class Token(models.Model):
    """A program's key. Only the digest of its secret is kept. A revoked one stays, so that a 401 can say what it was."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="tokens")
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
    decided_by = models.ForeignKey(User, on_delete=models.CASCADE, null=True, related_name="+")
    allowed = models.BooleanField(default=False)  # says nothing before somebody decided

    def __str__(self) -> str:
        return f"login of {self.name or 'a program'}"

    @property
    def asked(self) -> tuple[Scope, ...]:
        return tuple(Scope(scope) for scope in self.scopes)
