"""Errors of the platform's services that a door turns into an answer: each knows its HTTP status and stable code."""

from __future__ import annotations

from collections.abc import Mapping

from labapex.errors import LabApexError


class Refused(LabApexError):
    """A request that will not be done. The message says what to do; `errors` names the fields that are wrong."""

    status = 400
    code = "invalid"

    def __init__(self, message: str, *, errors: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.errors = dict(errors) if errors else None


class TooLarge(Refused):
    status = 413
    code = "too-large"


class OverQuota(TooLarge):
    """The account's files fill its room."""

    code = "over-quota"


class Gone(Refused):
    """It was deleted. The message says when and why."""

    status = 410
    code = "gone"


class NeedsLength(Refused):
    status = 411
    code = "length-required"

    def __init__(self) -> None:
        super().__init__("send Content-Length, and no chunked encoding")


class Slow(Refused):
    """The body stopped coming."""

    status = 408
    code = "too-slow"


class DigestMismatch(Refused):
    status = 422
    code = "digest-mismatch"


class Conflict(Refused):
    """The request does not fit the present state."""

    status = 409
    code = "conflict"


class OtherClass(Refused):
    """The work of such a host could not be judged here."""

    status = 409
    code = "other-class"


class UnknownBuild(Refused):
    """The host's torch is none of the builds that the operator has put on record for its version."""

    status = 409
    code = "unknown-build"


class Missing(Refused):
    status = 404
    code = "not-found"


class NotFinishedYet(Refused):
    status = 404
    code = "not-finished"


class KeyReused(Refused):
    """An idempotency key that came with another request before."""

    status = 422
    code = "idempotency-key-reused"


class OffsetMismatch(Refused):
    """An upload that would go on elsewhere than it stopped. `offset` is where it stopped, in bytes."""

    status = 409
    code = "offset-mismatch"

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset
