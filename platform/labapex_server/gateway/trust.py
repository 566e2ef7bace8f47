"""What a host may ask without being known: whose signatures count here, and which agent is released. All of it is public."""

from __future__ import annotations

import re

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from labapex.protocol.canonical import canonical
from labapex_server.lib import problems, trust
from labapex_server.marketplace import releases

RANGE = re.compile(r"bytes=([0-9]{1,18})-")


@require_GET
def chain(request: HttpRequest) -> HttpResponse:
    """The `TrustChain`, good for nothing to who has no root to check it by."""
    return HttpResponse(canonical(trust.chain()), content_type="application/json")


@require_GET
def agent(request: HttpRequest) -> HttpResponse:
    """The `SignedRelease` of the agent that is offered; 404 where none is."""
    offered = releases.agent()
    if offered is None:
        return problems.response(404, "not-found", "no agent is released here")
    return HttpResponse(canonical(offered), content_type="application/json")


@require_GET
def wheel(request: HttpRequest, digest: str) -> HttpResponse:
    """The offered agent's wheel, from `Range: bytes=N-` on where that is asked for. A wheel is small: it fits into memory."""
    content = releases.wheel(digest)
    if content is None:
        return problems.response(404, "not-found", "this agent is not offered here, or not any more")
    asked = RANGE.fullmatch(request.headers.get("Range", ""))
    first = int(asked[1]) if asked else 0
    if first >= len(content):
        return problems.response(416, "bad-range", f"it has {len(content)} bytes")
    answer = HttpResponse(content[first:], content_type="application/octet-stream", status=206 if asked else 200)
    if asked:
        answer["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
    return answer
