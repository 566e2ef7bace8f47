"""Completes drf-spectacular's description of the API: how it is entered, which scope a call needs, what an error looks like,
an example of each body, and the one call that does not pass through Django."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema

from labapex.protocol.api import MEANING, Problem, Scope
from labapex_server.api.examples import EXAMPLES
from labapex_server.lib import problems

Json = dict[str, Any]

_DIGEST = {
    "in": "path",
    "name": "digest",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "description": "SHA-256 of the file.",
}
_PROBLEM = "application/problem+json"
_METHODS = ("get", "put", "post", "delete", "head")
_RETRY = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
_CALLER = {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "Bearer."}}


class TokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "labapex_server.api.authentication.TokenAuthentication"
    name = "token"

    def get_security_definition(self, auto_schema: object) -> Json:
        return {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "apex_ and 46 characters",
            "description": "A token from `labapex login` or the portal's page Tokens.",
        }


class Description(AutoSchema):
    """Says of each call which scope its token needs."""

    def get_description(self) -> str:  # type: ignore[override]
        said = super().get_description()
        needs = _needs(getattr(self.view, "scopes", {}).get(self.method))
        return "\n\n".join(filter(None, (said if said and said != self.view.__doc__ else "", needs)))


def _needs(scope: Scope | None) -> str:
    return f"Needs the scope `{scope.value}`: {MEANING[scope]}." if scope else ""


def complete(result: Json, generator: object, request: object, public: bool) -> Json:
    """drf-spectacular's postprocessing hook."""
    parts = result["components"]
    parts["schemas"]["Problem"] = Problem.model_json_schema()
    _lengths_of_bytes(parts["schemas"])
    parts["responses"] = {name: _response(*row) for name, row in _RESPONSES.items()}
    result["paths"]["/api/v1/blobs/{digest}/"] = _FILES
    for path, item in result["paths"].items():
        for method in _METHODS:
            if operation := item.get(method):
                if {} in operation.get("security", ()):  # with a token or without: public
                    operation["security"] = []
                _errors(operation, in_path="{" in path)
                _examples(operation)
    return result


def _lengths_of_bytes(schema: Any) -> None:
    """pydantic limits the bytes; a description limits their base64, which is four characters for each three."""
    if isinstance(schema, list):
        for each in schema:
            _lengths_of_bytes(each)
    if isinstance(schema, dict):
        if schema.get("format") == "base64url":
            for name in ("minLength", "maxLength"):
                if isinstance(schema.get(name), int):
                    schema[name] = -(-schema[name] // 3) * 4
        for each in schema.values():
            _lengths_of_bytes(each)


def _errors(operation: Json, *, in_path: bool) -> None:
    answers = operation["responses"]
    secured = any(operation.get("security", ()))
    asked = {
        "400": bool(operation.get("parameters") or operation.get("requestBody")),
        "401": secured or operation["operationId"] == "log_in",
        "403": secured,
        "404": in_path,
        "429": True,
        "default": True,
    }
    for status, wanted in asked.items():
        if wanted:
            own = answers.get(status, {})
            answers[status] = own or {"$ref": f"#/components/responses/{_BY_STATUS[status]}"}


def _examples(operation: Json) -> None:
    for body in (operation.get("requestBody"), *operation["responses"].values()):
        for content in (body or {}).get("content", {}).values():
            name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
            if name in EXAMPLES:
                content["example"] = EXAMPLES[name]


def _response(status: int, code: str, detail: str, headers: Json) -> Json:
    example = problems.document(status, code, detail, instance="/api/v1/jobs/").model_dump(mode="json")
    return {
        "description": problems.MEANING[code],
        **({"headers": headers} if headers else {}),
        "content": {_PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}},
    }


_BY_STATUS = {
    "400": "Invalid",
    "401": "NotLoggedIn",
    "403": "MissingScope",
    "404": "NotFound",
    "429": "Throttled",
    "default": "AnyProblem",
}
_RESPONSES: dict[str, tuple[int, str, str, Json]] = {
    "Invalid": (400, "invalid", "JobRequest: spec.epochs: Input should be greater than or equal to 1", {}),
    "NotLoggedIn": (401, "not-logged-in", "the token 'laptop' (apex_4fGh…) expired on 2026-11-01", _CALLER),
    "MissingScope": (403, "missing-scope", "this needs the scope jobs:write, and the token 'ci' has jobs:read", {}),
    "NotFound": (404, "not-found", "there is no such thing, or it is not yours", {}),
    "Throttled": (429, "throttled", "this token has sent too many requests", _RETRY),
    "AnyProblem": (409, "conflict", "training is complete and its verdict is being made", {}),
}
_UPLOAD: Json = {
    "operationId": "upload_file",
    "tags": ["files"],
    "summary": "Upload a file, or the rest of it",
    "description": (
        "The body is the file as it is. After an upload that broke off, `HEAD` says from where to go on; the rest is sent with"
        f" `Content-Range`.\n\n{_needs(Scope.JOBS_WRITE)}"
    ),
    "parameters": [
        _DIGEST,
        {
            "in": "header",
            "name": "Content-Range",
            "schema": {"type": "string", "pattern": "^bytes [0-9]{1,18}-[0-9]{1,18}/[0-9]{1,18}$"},
            "description": "`bytes FIRST-LAST/SIZE`, reaching to the end of the file.",
        },
    ],
    "requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    "security": [{"token": []}],
    "responses": {
        "200": {"description": "It was here already."},
        "201": {"description": "It is here now."},
    },
}
_FIND: Json = {
    "operationId": "find_file",
    "tags": ["files"],
    "summary": "Whether a file is here, or how much of it",
    "description": _needs(Scope.JOBS_WRITE),
    "parameters": [_DIGEST],
    "security": [{"token": []}],
    "responses": {
        "200": {"description": "It is here."},
        "404": {
            "description": "It is not here, or not all of it.",
            "headers": {
                "Upload-Offset": {
                    "schema": {"type": "integer"},
                    "description": "Bytes of an upload that broke off; a PUT goes on from there.",
                }
            },
        },
    },
}
_FILES: Json = {"head": _FIND, "put": _UPLOAD}
