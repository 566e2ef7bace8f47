"""What the documents promise is there: the files they link, the tests they name, the settings they list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from labapex.protocol.spec import JobSpec
from labapex_server.lib.config import ROOT, Config

DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]
FROM_THE_MACHINE = {"home", "runner_dir", "database_url", "site_packages"}  # their default is told in words


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith(("https://", "http://")):
            continue
        name, _, heading = target.partition("#")
        linked = document.parent / name if name else document
        assert linked.exists(), target
        if heading:
            assert heading in {anchor(line.lstrip("# ")) for line in linked.read_text().splitlines() if line[:1] == "#"}


def test_the_threat_model_names_tests_that_exist() -> None:
    """A test is `folder/test_file.py::test_name`, with as much of the path as tells it apart; later names need no file."""
    text = (ROOT / "docs" / "threat-model.md").read_text()
    named = 0
    for line in text.splitlines():
        source = ""
        for file, test in re.findall(r"`(?:([\w/]*test_\w+\.py)::)?(test_\w+)`", line):
            if file:
                (found,) = [path for path in (ROOT / "tests").rglob("test_*.py") if f"/{path}".endswith(f"/{file}")]
                source = found.read_text()
            assert re.search(rf"def {test}\b", source), test
            named += 1
    assert named > 20


def test_every_setting_is_listed_with_its_default() -> None:
    rows = re.findall(r"^\| `LABAPEX_(\w+)` \| (.+?) \|", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    listed = {name.lower(): default for name, default in rows}
    assert set(listed) == set(Config.model_fields)
    for name, field in Config.model_fields.items():
        if name not in FROM_THE_MACHINE:
            default = str(field.default) and f"`{field.default}`"
            assert listed[name] == (default or "empty"), name


def test_every_field_of_a_job_is_listed_with_its_default() -> None:
    text = (ROOT / "README.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", text, re.MULTILINE))
    for name, field in JobSpec.model_fields.items():
        default = "required" if field.is_required() else field.default
        assert name in listed
        if default in ((), None):
            assert listed[name] in ("none", "found by the preflight")
        else:
            assert listed[name].strip("`") == str(default), name
