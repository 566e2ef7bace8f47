"""What a GPU does, on the live page: readings of a scripted driver, taken by the runner's own meter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect
from tests.browser.stage import HOST, PER_EPOCH, Story, artefacts
from tests.nvml import traces
from tests.nvml.stub import Play

from labapex_runner.samples import GpuMeter
from labapex_server.marketplace.models import Lease

pytestmark = pytest.mark.browser

EPOCHS, EPOCH_SECONDS = 6, 40


def trained(story: Story, books: Callable[..., Any], play: Play, trace: str) -> None:
    play(trace)
    meter = GpuMeter()
    read = [meter.read() for _ in range(EPOCHS * EPOCH_SECONDS)]
    story.name, story.epochs, story.step_seconds = "resnet18-cifar100", EPOCHS, EPOCH_SECONDS / PER_EPOCH
    story.readings = [sample for sample in read if sample is not None]
    device = HOST.model_copy(update={"device": f"cuda: {story.readings[0].device}"}).model_dump(mode="json")

    def tell() -> None:
        story.submitted().queued().running(worker="lab")
        Lease.objects.filter(pk=story.lease.pk).update(environment=device)
        story.trained(EPOCHS * PER_EPOCH)

    books(tell)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_three_charts_of_a_resnet_look_like_figure_2_of_the_paper(
    story: Story, visit: Callable[..., Any], books: Callable[..., Any], play: Play, scheme: str
) -> None:
    trained(story, books, play, traces.resnet(epochs=EPOCHS, epoch_seconds=EPOCH_SECONDS))
    visitor = visit(color_scheme=scheme, viewport={"width": 1280, "height": 1000})
    page = visitor.go(f"/jobs/{story.job.pk}/")
    expect(page.locator("[data-live=loss]")).to_have_attribute("data-points", str(EPOCHS * PER_EPOCH))
    for chart in ("utilisation", "memory"):
        expect(page.locator(f"[data-live={chart}]")).to_have_attribute("data-points", str(EPOCHS * EPOCH_SECONDS))
    expect(page.locator("[data-live=utilisation-title]")).to_have_text("GPU utilisation")
    expect(page.locator("[data-live=device]")).to_have_text("Tesla V100-SXM2-16GB")
    readout = page.locator("[data-live=utilisation-readout]")
    expect(readout).to_contain_text("W")
    expect(readout).to_contain_text("64 °C")
    expect(readout).not_to_contain_text("held down")
    page.screenshot(path=artefacts() / f"live-figure-2-{scheme}.png")
    assert visitor.complaints == []


def test_a_clock_that_is_held_down_is_told_with_its_reasons(
    story: Story, visit: Callable[..., Any], books: Callable[..., Any], play: Play
) -> None:
    trained(story, books, play, traces.throttled(EPOCHS * EPOCH_SECONDS))
    page = visit().go(f"/jobs/{story.job.pk}/")
    readout = page.locator("[data-live=utilisation-readout]")
    expect(readout).to_contain_text("held down by power limit, heat")
    expect(readout).to_contain_text("700 W")
    page.screenshot(path=artefacts() / "live-held-down.png")
