"""Who may enter: people and the tokens of their programs."""

from __future__ import annotations

from django.contrib.auth.models import AbstractUser
from django.db import models


class User(AbstractUser):
    """A person. The same account may buy training, offer a host, or both."""

    public_name = models.CharField(max_length=80, blank=True)  # in their certificates; empty: a pseudonym alone


class Token(models.Model):
    """A program's key. Only the digest of its secret is kept."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="tokens")
    name = models.CharField(max_length=80, blank=True)
    prefix = models.CharField(max_length=8)  # the secret's first characters, to recognise it by
    digest = models.CharField(max_length=64, unique=True)  # SHA-256 of the secret
    created_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.name or 'token'} ({self.prefix}…)"
