"""Every page once, as people see it: no complaint in the browser's console, and a picture to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from tests.browser.stage import START, Story, artefacts

from labapex.protocol.contract import Parent
from labapex_server.alerts import services as alerts
from labapex_server.lib import clock
from labapex_server.transparency.models import CertificateRecord
from labapex_server.workers.models import Worker

pytestmark = pytest.mark.browser

LIGHT, DARK, PHONE = (
    {"color_scheme": "light"},
    {"color_scheme": "dark"},
    {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True},
)


def picture(page: Page, name: str) -> None:
    page.wait_for_timeout(150)  # the last frame is drawn
    page.screenshot(path=artefacts() / f"{name}.png", full_page=True)


def fits(page: Page) -> bool:
    """Nothing sticks out to the side."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize(("look", "options"), [("light", LIGHT), ("dark", DARK), ("phone", PHONE)])
def test_a_run_in_progress_is_drawn_without_a_complaint(
    look: str, options: dict[str, Any], visit: Callable[..., Any], story: Story, books: Callable[..., Any]
) -> None:
    story.tells = True
    books(lambda: story.submitted().queued().running().trained(780))
    visitor = visit(**options)
    page = visitor.go(f"/jobs/{story.job.pk}/")
    expect(page.locator("[data-live=loss]")).to_have_attribute("data-points", "780")
    if look == "light":
        page.locator("[data-live=loss]").hover(position={"x": 500, "y": 150})
        page.wait_for_timeout(300)
        page.locator("[data-live=loss]").hover(position={"x": 505, "y": 150})
    expect(page.locator("[data-series='validation/accuracy'] .plot")).to_have_attribute("data-points", "6")
    picture(page, f"live-{look}")
    assert fits(page)
    assert visitor.complaints == []


@pytest.mark.parametrize(("look", "options"), [("light", LIGHT), ("dark", DARK), ("phone", PHONE)])
def test_every_other_page_is_drawn_without_a_complaint(
    look: str, options: dict[str, Any], visit: Callable[..., Any], story: Story, people: Any, books: Callable[..., Any]
) -> None:
    def history() -> None:
        researcher, host = people
        for name, failing in (("chargpt-copy", None), ("chargpt", None), ("chargpt-noop", "replay")):
            began = story.began - (100 if name == "chargpt-copy" else 900)
            each = Story(owner=researcher, host=host, began=began, name=name, epochs=2)
            each.submitted().queued().running(worker=f"{name}-host").trained().challenged().opened(0, 17, 18, 64, 92)
            each.judged(failing=failing)
            history.last = each.job.pk  # type: ignore[attr-defined]
        parent = CertificateRecord.objects.get(job__name="chargpt")
        origin = Parent(path="parents/0.safetensors", weights=parent.model, certificate=parent.digest, success=0.34)
        tuned = Story(owner=researcher, host=host, began=story.began - 50, name="chargpt-tuned", epochs=2)
        tuned.submitted().queued().running(worker="tuned-host", parents=(origin,)).trained().challenged()
        tuned.opened(0, 17).judged(
            start=START.model_copy(update={"given": 9, "unproven": 1, "names": ("head.weight",)})
        )
        history.certified = tuned.job.pk  # type: ignore[attr-defined]
        Worker.objects.filter(pk=tuned.worker.pk).update(lacks_torch=True)  # and nothing is held for it
        story.submitted().queued().running().trained(300)
        alerts.choose(researcher, mail=True, webhook="https://ops.example.org/labapex", budget_share=50)
        alerts.look(clock.now())
        Story(owner=researcher, host=host, began=story.began + 280, name="resnet20-sweep-3").submitted()

    books(history)
    visitor = visit(**options)
    rejected = history.last  # type: ignore[attr-defined]
    for name, path in {
        "jobs": "/jobs/",
        "submit": "/jobs/new/",
        "offers": "/offers/",
        "offers-none": "/offers/?min_memory=192",
        "storage": "/storage/",
        "billing": "/billing/",
        "tokens": "/tokens/",
        "alerts": "/alerts/",
        "workers-none": "/workers/",
        "verdict": f"/jobs/{rejected}/verdict/",
        "live-rejected": f"/jobs/{rejected}/",
        "verdict-certified": f"/jobs/{history.certified}/verdict/",  # type: ignore[attr-defined]
        "transparency": "/transparency/",
        "claims": f"/transparency/claims/{'5a' * 32}/",
    }.items():
        page = visitor.go(path)
        if name == "submit":
            page.get_by_label("Arguments").fill("--note 'open")
            page.get_by_role("button", name="Submit the job").click()
            expect(page.locator("#id_args_error")).to_contain_text("close each quotation mark")
        if name == "live-rejected":
            expect(page.locator("[data-live=rules] > li")).to_have_count(11)
            page.get_by_role("button", name="Delete its data…").click()
            picture(page, f"delete-{look}")
            page.get_by_role("button", name="Keep it").click()
        picture(page, f"{name}-{look}")
        assert fits(page), path
    host = visit(person=people[1], **options)
    page = host.go("/workers/")
    page.get_by_role("button", name="Enrol a machine").click()
    expect(page.locator("#enrol-commands")).to_contain_text("labapex-worker enrol")
    expect(page.get_by_label("tuned-host")).to_contain_text("this platform supplies no torch")
    picture(page, f"workers-{look}")
    assert fits(page)
    page = host.go("/workers/")
    page.get_by_label("tuned-host").get_by_role("link", name="Change the deposit").click()
    page.get_by_label("Credits").fill("9999")
    page.get_by_role("button", name="Lock this amount").click()
    expect(page.locator("#id_amount_error")).to_contain_text("lower it or top up the account")
    picture(page, f"deposit-{look}")
    assert fits(page)
    page = visitor.go("/jobs/")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    picture(page, f"sign-in-{look}")
    assert len(visitor.complaints) == 1
    assert "status of 422" in visitor.complaints[0]  # how Chromium reports the form that came back
    assert ["status of 422" in each for each in host.complaints] == [True]  # the deposit's form came back
