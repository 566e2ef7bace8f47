"""The API's description: the committed OpenAPI document, and the same as a page to read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from labapex.protocol.api import MEANING
from labapex_server.lib import problems

DOCUMENT = Path(__file__).with_name("openapi.yaml")
"""Made by `make schema` and held to the code by `make check`: nothing is derived while somebody waits."""


@require_safe
def schema(request: HttpRequest) -> HttpResponse:
    return HttpResponse(DOCUMENT.read_bytes(), content_type="application/yaml")


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    context = {"groups": _groups(), "problems": problems.MEANING, "scopes": MEANING}
    return render(request, "api/page.html", context)


@cache
def _groups() -> dict[str, list[dict[str, Any]]]:
    """By tag: method, path, what the call does, and its bodies."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, item in yaml.safe_load(DOCUMENT.read_text())["paths"].items():
        for method, operation in item.items():
            calls = groups.setdefault(operation["tags"][0], [])
            calls.append(
                {
                    "method": method.upper(),
                    "path": path,
                    "summary": operation.get("summary", ""),
                    "description": operation.get("description", "").replace("`", ""),
                    "parameters": [p for p in operation.get("parameters", ()) if p["in"] != "path"],
                    "takes": _body(operation.get("requestBody", {})),
                    "gives": [
                        {"status": status, "body": _body(answer), "says": answer.get("description", "")}
                        for status, answer in operation["responses"].items()
                        if status.startswith(("2", "3"))
                    ],
                }
            )
    return groups


def _body(part: dict[str, Any]) -> str:
    for kind, content in part.get("content", {}).items():
        return str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2] or kind
    return ""
