"""What an error over HTTP is, at every door: an RFC 9457 document whose code is one of this table."""

from __future__ import annotations

from collections.abc import Mapping

from django.http import HttpResponse

from labapex.protocol.api import Problem

MEANING = {
    "invalid": "The request does not follow the description; `errors` names the fields that are wrong.",
    "not-logged-in": "No token, or one that is unknown, expired or revoked. The detail says which.",
    "missing-scope": "The token is good, and may not do this. Make one with the scope that the detail names.",
    "second-factor": "A password alone does not open this account. Log in by the browser.",
    "no-member": "You are not a member of this organisation, or your role in it does not allow this.",
    "forbidden": "This is not allowed.",
    "not-found": "There is no such thing, or it is not yours: the answer is the same.",
    "not-finished": "There will be such a thing; the job has not come to it yet.",
    "method-not-allowed": "This address does not know the method.",
    "not-acceptable": "The API answers in JSON.",
    "not-enough-credit": "The balance or the budget does not cover the job.",
    "conflict": "The request does not fit the present state.",
    "other-class": "The work of such a host could not be judged here.",
    "unknown-build": "The host's torch is none of the builds that this platform has on record.",
    "length-required": "Send Content-Length, and no chunked encoding.",
    "too-large": "The body is longer than is accepted here.",
    "over-quota": "The account's files fill its room: delete those that no job needs, or ask the operator for more.",
    "gone": "It was deleted. The detail says when and why.",
    "too-slow": "The body stopped coming.",
    "store-silent": "The platform's store of files does not answer. Try again in a minute.",
    "offset-mismatch": "The upload goes on from another place; Upload-Offset of the answer says from which.",
    "digest-mismatch": "The bytes are not those that were announced.",
    "idempotency-key-reused": "This idempotency key came with another request before.",
    "throttled": "Too many requests; Retry-After says in how many seconds to come again.",
    "unknown-worker": "Worker: no such one is enrolled, or the request was not signed by its key.",
    "clock": "Worker: the host's clock is off. The detail says by how much.",
    "bad-token": "Worker: the token is none of a live lease.",
    "bad-range": "Worker: there are no such bytes.",
    "malformed-state": "Worker: what was handed in is not what was announced or asked for. The detail says why.",
    "too-late": "Worker: the deadline for handing in is over.",
    "too-many-uploads": "Worker: one upload of the lease has to end before the next begins.",
    "authorization-pending": "Device login: nobody has allowed it yet. Ask again after the interval.",
    "slow-down": "Device login: asked too soon. The interval is five seconds longer from now on.",
    "access-denied": "Device login: it was refused in the portal.",
    "expired-token": "Device login: the code is unknown, used or too old. Begin again.",
    "unavailable": "The platform could not do this; try again later.",
    "internal": "Something went wrong on the platform; it is on record there.",
}
"""What each code means. `type` of a problem leads to its line on the page that shows this."""

PAGE = "/api/"


def document(
    status: int, code: str, detail: str, *, instance: str | None = None, errors: Mapping[str, str] | None = None
) -> Problem:
    """`instance` is the path that was asked for; `errors` says by field of the body what is wrong."""
    return Problem(
        type=f"{PAGE}#{code}",
        title=code.replace("-", " "),
        status=status,
        detail=detail,
        instance=instance[:200] if instance else None,
        code=code,
        errors=dict(errors) if errors else None,
    )


def response(
    status: int, code: str, detail: str, *, instance: str | None = None, errors: Mapping[str, str] | None = None
) -> HttpResponse:
    """`document` as Django's answer."""
    body = document(status, code, detail, instance=instance, errors=errors).model_dump_json()
    return HttpResponse(body, status=status, content_type="application/problem+json")
