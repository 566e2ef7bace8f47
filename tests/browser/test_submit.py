"""A job is handed in by dropping its folder: what is recognised and complained of, and nothing has to be chosen twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from tests.browser.stage import artefacts
from tests.browser.test_screens import DARK, LIGHT, PHONE, fits

from labapex_server.jobs.models import Job

pytestmark = pytest.mark.browser

SPEC = "name: dropped\nscript: train.py\ndata: corpus\nepochs: 2\nbudget: 1.5\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "job"
    for path, content in {
        "train.py": "from model import net\n",
        "model/net.py": "class Net: ...\n",
        "model/__pycache__/net.pyc": "no",
        "corpus/train/a.bin": "a" * 1000,
        "corpus/b.bin": "b" * 2000,
        "notes.txt": "left out",
        ".git/config": "no",
    }.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text(content)
    return made


def dropped(page: Page, *paths: Path) -> None:
    """As the browser tells a page of files that are dragged over it from outside."""
    page.locator("#drop").scroll_into_view_if_needed()
    box = page.locator("#drop").bounding_box()
    assert box is not None
    line = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    for kind in ("dragEnter", "dragOver", "drop"):
        line.send("Input.dispatchDragEvent", {"type": kind, **at, "data": data})
    expect(page.locator("#dropped")).not_to_be_empty()


def files(books: Callable[..., Any]) -> tuple[list[str], list[str]]:
    job = books(Job.objects.get)
    return [part["path"] for part in job.bundle["code"]], [part["path"] for part in job.bundle["data"]]


@pytest.mark.parametrize(("look", "options"), [("light", LIGHT), ("dark", DARK), ("phone", PHONE)])
def test_a_dropped_folder_with_a_labapex_yaml_is_a_whole_job(
    look: str, options: dict[str, Any], folder: Path, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    (folder / "labapex.yaml").write_text(SPEC)
    visitor = visit(**options)
    page = visitor.go("/jobs/new/")
    dropped(page, folder)
    expect(page.locator("#dropped")).to_have_text(
        "Script: train.py. 1 more code file, 2 data files in corpus/. 1 left out."
    )
    expect(page.get_by_label("labapex.yaml", exact=True)).to_have_value(SPEC)
    expect(page.locator("#checked")).to_contain_text("train.py with corpus/, 2 epochs, 1.50 credits at most")
    page.screenshot(path=artefacts() / f"submit-dropped-{look}.png", full_page=True)
    assert fits(page)
    page.get_by_role("button", name="Submit the job").click()
    page.wait_for_url("**/jobs/*-*/")
    assert files(books) == (["model/net.py", "train.py"], ["corpus/b.bin", "corpus/train/a.bin"])
    assert visitor.complaints == []


def test_a_folder_without_one_fills_in_the_fields_and_a_complaint_keeps_the_files(
    folder: Path, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    visitor = visit()
    page = visitor.go("/jobs/new/")
    dropped(page, folder)
    expect(page.get_by_label("Data folder's name")).to_have_value("corpus")
    page.get_by_role("button", name="Submit the job").click()
    expect(page.locator("#id_budget_error")).to_contain_text("What may the job cost at most?")
    expect(page.locator("[data-summary-of=script]")).to_contain_text("1 file")
    page.screenshot(path=artefacts() / "submit-refused.png", full_page=True)
    page.get_by_label("Budget, credits").fill("2")
    page.get_by_role("button", name="Submit the job").click()
    page.wait_for_url("**/jobs/*-*/")
    assert files(books) == (["model/net.py", "train.py"], ["corpus/b.bin", "corpus/train/a.bin"])
    assert len(visitor.complaints) == 1
    assert "status of 422" in visitor.complaints[0]  # how Chromium reports the form that came back


def test_a_yaml_is_checked_while_it_is_written_and_begins_with_an_example(visit: Callable[..., Any]) -> None:
    visitor = visit()
    page = visitor.go("/jobs/new/")
    page.get_by_label("Paste a labapex.yaml").check()
    page.get_by_label("Begin with an example").select_option("digits")
    document = page.get_by_label("labapex.yaml", exact=True)
    expect(document).to_have_value((Path(__file__).parents[2] / "examples/digits/labapex.yaml").read_text())
    expect(page.locator("#checked")).to_contain_text("✓ train.py with data/, 3 epochs")
    document.fill("script: train.py\nepoch: 3\nbudget: 1\n")
    expect(page.locator("#checked")).to_have_text("Line 2: unknown field 'epoch'; did you mean 'epochs'?")
    document.fill("script: train.py\nepochs: none\nbudget: 1\n")
    expect(page.locator("#checked")).to_contain_text("Line 2: epochs:")
    document.fill("script: [\n")
    expect(page.locator("#checked")).to_contain_text("This is not YAML at line 2")
    page.screenshot(path=artefacts() / "submit-yaml.png", full_page=True)
    assert visitor.complaints == []
