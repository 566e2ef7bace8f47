"""The description of the API is the API."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import call_command
from django.test import Client

from labapex_server.api.description import DOCUMENT
from labapex_server.lib import problems
from labapex_server.lib.config import ROOT

DESCRIBED: dict[str, Any] = yaml.safe_load(DOCUMENT.read_text())
OPERATIONS = [
    (method, path, operation) for path, item in DESCRIBED["paths"].items() for method, operation in item.items()
]


def test_the_committed_document_is_what_the_code_says() -> None:
    out = io.StringIO()
    call_command("spectacular", "--validate", "--fail-on-warn", stdout=out)
    assert out.getvalue().strip() == DOCUMENT.read_text().strip(), "run `make schema`"


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=[f"{m} {p}" for m, p, _ in OPERATIONS])
def test_every_call_has_a_name_a_summary_its_errors_and_examples(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    assert operation["summary"]
    assert operation["operationId"]
    answers = operation["responses"]
    assert {"429", "default"} <= set(answers)
    if operation.get("security") == [{"token": []}]:
        assert {"401", "403"} <= set(answers)
    for body in (operation.get("requestBody", {}), *answers.values()):
        for kind, content in body.get("content", {}).items():
            assert kind != "application/json" or "example" in content, content


def test_every_call_that_is_not_public_says_its_scope_or_needs_none() -> None:
    without = {
        operation["operationId"]
        for _, _, operation in OPERATIONS
        if operation.get("security") and "Needs the scope" not in operation.get("description", "")
    }
    assert without == {"whoami", "log_out", "list_offers"}


def test_every_code_of_a_problem_is_explained() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "platform" / "labapex_server").glob("[agjl]*/*.py"))
    codes = set(re.findall(r'^    code = "([a-z-]+)"', source, re.MULTILINE))
    codes |= set(re.findall(r'return \d{3}, "([a-z-]+)"', source)) | set(
        re.findall(r'(?:problem|response)\((?:send, )?\d{3}, "([a-z-]+)"', source)
    )
    assert len(codes) > 15
    assert codes <= set(problems.MEANING)


@pytest.mark.django_db
def test_it_is_served_as_a_document_and_as_a_page_to_anyone() -> None:
    served = Client().get("/api/schema")
    assert yaml.safe_load(served.content)["openapi"].startswith("3.")
    page = Client().get("/api/").content.decode()
    for _, path, operation in OPERATIONS:
        assert path in page
        assert operation["summary"].replace("'", "&#x27;") in page
    for code in problems.MEANING:
        assert f'id="{code}"' in page


def test_no_library_is_loaded_from_elsewhere() -> None:
    page = (Path(DOCUMENT).parent / "templates" / "api" / "page.html").read_text()
    assert "http" not in re.sub(r"[^ ]+\.html", "", page)
