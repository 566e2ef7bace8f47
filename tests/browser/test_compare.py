"""Runs are ticked in the list and drawn in one picture, with one cursor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect
from tests.browser.stage import Story, artefacts
from tests.browser.test_screens import DARK, LIGHT, PHONE, fits

pytestmark = pytest.mark.browser


@pytest.fixture
def three(story: Story, people: Any, books: Callable[..., Any]) -> list[Story]:
    def make() -> list[Story]:
        made = []
        for n, name in enumerate(("digits-lr-0.1", "digits-lr-0.05", "digits-adam")):
            each = Story(
                owner=people[0], host=people[1], began=story.began - 600 * n, name=name, epochs=4 + n, tells=True
            )
            each.draw.seed(n)
            each.step_seconds = 0.2 + 0.1 * n
            made.append(each.submitted().queued().running(worker=f"rig-{n}").trained(300 + 60 * n))
        return made

    return books(make)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("look", "options"), [("light", LIGHT), ("dark", DARK), ("phone", PHONE)])
def test_ticked_runs_are_drawn_together(
    look: str, options: dict[str, Any], three: list[Story], visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    visitor = visit(**options)
    page = visitor.go("/jobs/")
    for each in three:
        page.get_by_label(f"Compare {each.name}").check()
    with page.expect_response("**/jobs/?page=1"):  # the list renews itself
        pass
    page.screenshot(path=artefacts() / f"jobs-ticked-{look}.png")
    page.get_by_role("button", name="Compare").click()
    shown = page.locator("#compare")
    expect(shown).to_have_attribute("data-drawn", "300 360 420")
    loss = page.locator("[data-compare=loss]")
    loss.focus()
    page.keyboard.press("Home")
    readout = page.locator("[data-compare=loss-readout]")
    expect(readout).to_contain_text("iteration 0")
    for each in three:
        expect(readout).to_contain_text(each.name)
    expect(page.locator("[data-series=rate] .readout")).to_contain_text("iteration 0")
    page.keyboard.press("+")
    expect(loss).to_have_attribute("data-zoomed", "true")
    expect(page.locator("[data-series=rate] .plot")).to_have_attribute("data-zoomed", "true")
    page.keyboard.press("0")
    page.get_by_role("button", name="Log x axis").click()
    page.get_by_role("button", name="Log axis", exact=True).click()
    page.screenshot(path=artefacts() / f"compare-log-{look}.png", full_page=True)
    page.get_by_role("button", name="Log x axis").click()
    page.get_by_label("time", exact=True).check()
    loss.focus()
    page.keyboard.press("End")
    expect(readout).to_contain_text("after 2:")
    page.mouse.move(2, 2)
    page.screenshot(path=artefacts() / f"compare-{look}.png", full_page=True)
    assert fits(page)
    books(three[0].frame)
    expect(shown).to_have_attribute("data-drawn", "325 360 420", timeout=15_000)
    assert visitor.complaints == []
