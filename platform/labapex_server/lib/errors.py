"""Errors of the platform's services that a door turns into an answer: each knows its HTTP status and stable code."""

from __future__ import annotations

from labapex.errors import LabApexError


class Refused(LabApexError):
    """A request that will not be done. The message says what to do."""

    status = 400
    code = "invalid"


class TooLarge(Refused):
    status = 413
    code = "too-large"


class DigestMismatch(Refused):
    status = 422
    code = "digest-mismatch"


class Conflict(Refused):
    """The request does not fit the present state."""

    status = 409
    code = "conflict"


class Missing(Refused):
    status = 404
    code = "not-found"


class NotFinishedYet(Refused):
    status = 404
    code = "not-finished"
