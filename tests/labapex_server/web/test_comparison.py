"""Runs beside each other: what was asked differently, what came of it, and never another's."""

from __future__ import annotations

import pytest
from django.test import Client
from tests.browser.stage import Story

from labapex_server.accounts.models import User
from labapex_server.web import comparison

BEGAN = 1_790_000_000.0


def stories(owner: User, host: User, count: int) -> list[Story]:
    return [
        Story(owner=owner, host=host, began=BEGAN + 100 * n, epochs=2 + n, name=f"run {n}", tells=True)
        .submitted()
        .queued()
        .running(worker=f"rig {n}")
        .trained(100)
        for n in range(count)
    ]


@pytest.fixture
def signed(researcher: User) -> Client:
    client = Client()
    client.force_login(researcher)
    return client


def address(*told: Story) -> str:
    return "/compare/?" + "&".join(f"job={each.job.pk}" for each in told)


def test_only_settings_that_differ_are_shown_and_all_results(researcher: User, host: User) -> None:
    first, second = stories(researcher, host, 2)
    first.frame(losses=[0.25] * 50)
    rows = {row.name: row.cells for row in comparison.table([first.job, second.job])}
    assert rows["epochs"] == ["2", "3"]
    assert "script" not in rows
    assert "budget" not in rows
    assert rows["iterations"] == ["150", "100"]
    assert rows["loss, mean of the last 50"][0] == "0.25"
    assert rows["worker"] == ["rig 0", "rig 1"]


def test_a_job_without_a_point_has_a_dash(researcher: User, host: User) -> None:
    waiting = Story(owner=researcher, host=host, began=BEGAN).submitted()
    rows = {row.name: row.cells for row in comparison.table([waiting.job])}
    assert rows["least loss"] == rows["worker"] == rows["verdict"] == ["–"]


def test_runs_come_in_the_order_of_the_address_each_once(signed: Client, researcher: User, host: User) -> None:
    first, second = stories(researcher, host, 2)
    page = signed.get(address(second, first, second))
    assert [run["name"] for run in page.context["runs"]] == ["run 1", "run 0"]
    assert len(signed.get(address(*[first] * 20)).context["runs"]) == 1


def test_anothers_job_cannot_be_compared(signed: Client, researcher: User, other_researcher: User, host: User) -> None:
    (mine,), (theirs,) = stories(researcher, host, 1), stories(other_researcher, host, 1)
    assert signed.get(address(mine, theirs)).status_code == 404
    assert signed.get("/compare/?job=nonsense").status_code == 404
    assert signed.get("/compare/").status_code == 200


def test_a_scripts_series_are_thinned_to_what_a_chart_can_show(signed: Client, researcher: User, host: User) -> None:
    (story,) = stories(researcher, host, 1)
    assert signed.get(f"/jobs/{story.job.pk}/series/").json()["rate"] == [list(range(100)), [0.05] * 100]
    story.epochs = 60
    for _ in range(5):
        story.frame(1000)
    (iterations, values) = signed.get(f"/jobs/{story.job.pk}/series/").json()["rate"]
    assert len(iterations) == len(values) <= 1500
    assert iterations[:2] == [0, 4]
