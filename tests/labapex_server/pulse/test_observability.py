"""The dashboard and the alerts speak of metrics that exist, and each alert says in the documents what to do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import yaml
from django.test import Client
from tests.labapex_server.scenes import submitted

from labapex_server.accounts.models import User
from labapex_server.lib.config import ROOT
from labapex_server.pipeline import tasks

FOLDER = ROOT / "docker" / "observability"
NOT_OURS = {"up"}
WORDS = {
    "by", "sum", "max", "min", "rate", "increase", "delta", "time", "and", "histogram_quantile", "predict_linear", "topk",
}  # fmt: skip


def expressions() -> Iterator[str]:
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def names(expression: str) -> set[str]:
    """The metrics of an expression: what is no function, no label and no number."""
    bare = re.sub(r'"[^"]*"|\b(by|without) \([^)]*\)|\[[^\]]*\]|\{[^}]*\}', " ", expression)
    return set(re.findall(r"[a-z_]{2,}", bare)) - WORDS


@pytest.fixture
def told(client: Client, researcher: User) -> str:
    submitted(researcher)
    tasks.sweep()
    return client.get("/metrics", headers={"Host": "localhost"}).content.decode()


@pytest.mark.django_db
def test_every_metric_that_is_drawn_or_watched_exists_with_its_labels(told: str) -> None:
    families = set(re.findall(r"^# TYPE (\w+) ", told, re.MULTILINE))
    there = families | {f"{name}{end}" for name in families for end in ("_bucket", "_count", "_sum")}
    used = {name for expression in expressions() for name in names(expression)}
    assert len(used) > 20
    assert used - there - NOT_OURS == set()


@pytest.mark.django_db
def test_every_metric_of_ours_is_drawn_or_watched(told: str) -> None:
    ours = {name for name in re.findall(r"^# TYPE (labapex_\w+) ", told, re.MULTILINE) if not name.endswith("_created")}
    text = "\n".join(expressions())
    assert {name for name in ours if name not in text} == set()


def test_every_alert_says_what_to_do() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    rules = [r for g in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for r in g["rules"]]
    assert {rule["alert"] for rule in rules} == set(re.findall(r"^\| `(Labapex\w+)` \|", text, re.MULTILINE))
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing (Debian: prometheus)")
@pytest.mark.django_db
def test_prometheus_itself_takes_the_rules_the_settings_and_the_metrics(told: str) -> None:
    for command, file in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        line = ["promtool", "check", command, *(["--syntax-only"] if command == "config" else []), str(FOLDER / file)]
        checked = subprocess.run(line, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
    checked = subprocess.run(["promtool", "check", "metrics"], input=told, capture_output=True, text=True, check=False)
    assert [line for line in checked.stderr.splitlines() if "labapex_" in line] == []
