"""One spelling for each document: what is signed or digested is canonical JSON (RFC 8785)."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, TypeVar

import rfc8785
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from labapex.errors import MalformedInput

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 digest as 64 lower-case hexadecimal digits."""


class Message(BaseModel):
    """Base of everything on the wire: immutable, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64")


class NotCanonical(MalformedInput, ValueError):
    """A document holds what canonical JSON cannot carry: NaN, infinities, integers over 2^53, halves of characters."""


M = TypeVar("M", bound=Message)


def canonical(document: Message | dict[str, Any] | list[Any]) -> bytes:
    """The RFC 8785 bytes of a document. Raises `NotCanonical` for what they cannot carry, as a stranger's document may."""
    plain = document.model_dump(mode="json") if isinstance(document, BaseModel) else document
    try:
        return rfc8785.dumps(plain)
    except ValueError as error:
        raise NotCanonical(f"it has no canonical form: {error}") from None


def digest(document: Message | dict[str, Any] | list[Any]) -> str:
    """SHA-256 of the canonical bytes, in hexadecimal."""
    return hashlib.sha256(canonical(document)).hexdigest()


def parse(model: type[M], data: bytes | str, *, limit: int) -> M:
    """Read a JSON document of at most `limit` bytes that came from outside; raises `MalformedInput`."""
    if len(data) > limit:
        raise MalformedInput(f"{model.__name__}: {len(data)} bytes, at most {limit} are accepted")
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise MalformedInput(f"{model.__name__}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """The first complaints of a pydantic error on one line, without echoing the input."""
    return "; ".join([f"{field}: {said}" for field, said in complaints(error).items()][:3])


def complaints(error: ValidationError) -> dict[str, str]:
    """What is wrong by field (`spec.epochs`), without echoing the input; of a document that is none, by `document`."""
    return {".".join(map(str, e["loc"])) or "document": e["msg"] for e in error.errors(include_input=False)}
