"""Messages as msgpack: the binary spelling used on sockets, where columns of floats travel as bytes."""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
from pydantic import TypeAdapter, ValidationError

from labapex.errors import MalformedInput
from labapex.protocol.canonical import Message, explain

T = TypeVar("T")


def pack(message: Message) -> bytes:
    """A message as msgpack. Enums and UUIDs become strings; bytes stay bytes."""
    data: bytes = msgpack.packb(_plain(message.model_dump(mode="python")), use_bin_type=True)
    return data


def unpack(adapter: TypeAdapter[T], data: bytes, *, limit: int) -> T:
    """Read one message of at most `limit` bytes that came from outside; raises `MalformedInput`."""
    if len(data) > limit:
        raise MalformedInput(f"a message of {len(data)} bytes; at most {limit} are accepted")
    try:
        plain = msgpack.unpackb(data, raw=False, strict_map_key=True)
        return adapter.validate_python(plain)
    except ValidationError as error:
        raise MalformedInput(explain(error)) from None
    except (ValueError, RecursionError, msgpack.UnpackException) as error:  # truncated, trailing, bad UTF-8, too deep
        raise MalformedInput(f"not a msgpack message: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | bytes):
        return value
    return str(value)
