"""What the platform sends, no more of it than is taken: a document into memory, or a file that goes on where it broke off."""

from __future__ import annotations

from typing import IO

import httpx

from labapex.errors import MalformedInput, PlatformUnreachable, Tampered


async def document(http: httpx.AsyncClient, path: str, *, limit: int, what: str) -> bytes | None:
    """What is to be read at `path`; None where there is nothing. Raises `PlatformUnreachable`, or `MalformedInput` for more
    than `limit` bytes."""
    try:
        async with http.stream("GET", path, headers={"Accept-Encoding": "identity"}) as response:
            data = b""
            async for chunk in response.aiter_raw(4096):
                data += chunk
                if len(data) > limit:
                    raise MalformedInput(f"the platform's {what} has more than {limit} bytes")
    except httpx.TransportError as error:
        raise PlatformUnreachable(f"the platform does not tell its {what}: {error or type(error).__name__}") from None
    if response.status_code == 404:
        return None
    if not response.is_success:
        raise PlatformUnreachable(f"the platform does not tell its {what}: it answers {response.status_code}")
    return data


def from_byte(have: int) -> dict[str, str]:
    """The header fields that ask for what is missing behind the first `have` bytes."""
    return {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}


async def go_on(response: httpx.Response, file: IO[bytes], *, have: int, size: int, what: str) -> None:
    """The answer to `from_byte` behind the `have` bytes of a file that is to have `size`. Raises `Tampered` for more."""
    resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    if have and not (response.status_code == 206 and resumed):
        file.truncate(0)  # it begins anew, so do we
        file.seek(0)
    async for chunk in response.aiter_raw():
        if file.tell() + len(chunk) > size:
            raise Tampered(f"{what} has more than the {size} bytes that were promised")
        file.write(chunk)
