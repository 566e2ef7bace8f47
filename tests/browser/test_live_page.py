"""The live page against the platform: what the log gains is on the screen without a reload, and stays there after one."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs

import pytest
from playwright.sync_api import Locator, Page, expect
from tests.browser.stage import PER_EPOCH, Story, artefacts

from labapex_server.alerts import services as alerts
from labapex_server.lib import clock

pytestmark = pytest.mark.browser


def chart(page: Page, name: str = "loss") -> Locator:
    return page.locator(f"[data-live={name}]")


def drawn(page: Page, points: int) -> None:
    expect(chart(page)).to_have_attribute("data-points", str(points))


@pytest.fixture
def running(story: Story, books: Callable[..., Any]) -> Story:
    return books(lambda: story.submitted().queued().running().trained(200))  # type: ignore[no-any-return]


def test_new_points_appear_without_a_reload_and_a_reload_loses_none(
    running: Story, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    visitor = visit()
    page = visitor.go(f"/jobs/{running.job.pk}/")
    drawn(page, 200)
    page.evaluate("window.sameDocument = true")
    for more in (225, 250, 275):
        books(running.frame)
        drawn(page, more)
    expect(page.locator("[data-live=iterations]")).to_have_text(f"275 / {12 * PER_EPOCH:,}")
    assert page.evaluate("window.sameDocument")
    readout = page.locator("[data-live=loss-readout]").inner_text()
    page.reload()
    drawn(page, 275)
    expect(page.locator("[data-live=loss-readout]")).to_have_text(readout.replace("\n", ""))
    expect(chart(page, "utilisation")).to_have_attribute("data-points", "55")
    assert visitor.complaints == []


def test_a_zoom_survives_new_points_and_a_double_click_ends_it(
    running: Story, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    visitor = visit()
    page = visitor.go(f"/jobs/{running.job.pk}/")
    drawn(page, 200)
    box = chart(page).bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 300, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 600, middle, steps=8)
    page.mouse.up()
    expect(chart(page)).to_have_attribute("data-zoomed", "true")
    low, high = (chart(page).get_attribute(f"data-{end}") for end in ("min", "max"))
    assert 0 < float(low or 0) < float(high or 0) < 199
    books(running.frame)
    drawn(page, 225)
    assert (chart(page).get_attribute("data-min"), chart(page).get_attribute("data-max")) == (low, high)
    page.mouse.dblclick(box["x"] + 450, middle)
    expect(chart(page)).to_have_attribute("data-zoomed", "false")
    expect(chart(page)).to_have_attribute("data-max", "224")
    assert visitor.complaints == []


def test_one_cursor_runs_over_all_charts_those_of_the_script_too(
    running: Story, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    page = visit().go(f"/jobs/{running.job.pk}/")
    drawn(page, 200)
    expect(page.locator("[data-live=told]")).to_be_hidden()
    running.tells = True
    books(lambda: running.trained(250))
    told = page.locator("[data-series=rate]")
    expect(told.locator(".plot")).to_have_attribute("data-points", "50")
    expect(page.locator("[data-live=told]")).to_contain_text("nobody verifies them")
    with page.expect_response("**/clock/**"):
        chart(page).hover(position={"x": 400, "y": 150})
    chart(page).hover(position={"x": 500, "y": 150})
    expect(page.locator("[data-live=loss-readout]")).not_to_contain_text("latest")
    for other in ("utilisation", "memory"):
        expect(page.locator(f"[data-live={other}-readout]")).not_to_contain_text("latest")
    page.screenshot(path=artefacts() / "live-cursor.png")
    page.mouse.move(2, 2)  # off the charts, which the focus scrolls below it
    told.locator(".plot").focus()
    page.keyboard.press("Home")
    expect(told.locator(".readout")).to_have_text("iteration 2000.025")
    expect(page.locator("[data-live=loss-readout]")).to_contain_text("iteration 200")
    page.keyboard.press("+")
    expect(chart(page)).to_have_attribute("data-zoomed", "true")
    page.keyboard.press("0")
    expect(chart(page)).to_have_attribute("data-zoomed", "false")
    chart(page, "memory").hover(position={"x": 300, "y": 60})
    expect(page.locator("[data-live=utilisation-readout]")).not_to_contain_text("latest")
    expect(page.locator("[data-live=loss-readout]")).not_to_contain_text("latest")


def test_the_charts_obey_the_keyboard(running: Story, visit: Callable[..., Any]) -> None:
    page = visit().go(f"/jobs/{running.job.pk}/")
    drawn(page, 200)
    chart(page).focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("[data-live=loss-readout]")).to_contain_text("iteration 198")
    page.keyboard.press("Home")
    expect(page.locator("[data-live=loss-readout]")).to_contain_text("iteration 0")
    page.keyboard.press("+")
    expect(chart(page)).to_have_attribute("data-zoomed", "true")
    page.keyboard.press("0")
    expect(chart(page)).to_have_attribute("data-zoomed", "false")
    page.locator("[data-live=log]").focus()
    page.keyboard.press("Enter")
    expect(page.locator("[data-live=log]")).to_have_attribute("aria-pressed", "true")
    drawn(page, 200)
    page.locator("[data-live=smoothing]").focus()
    page.keyboard.press("End")
    expect(page.locator("[data-live=smoothing-value]")).to_have_text("0.99")
    page.screenshot(path=artefacts() / "live-log-axis.png")


def test_losing_contact_is_told_apart_from_failing(
    running: Story, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    from datetime import UTC, datetime, timedelta

    from labapex_server.marketplace.models import Lease

    page = visit().go(f"/jobs/{running.job.pk}/")
    expect(page.locator("[data-live=state]")).to_have_text("training")
    silent = datetime.now(UTC) - timedelta(seconds=25)
    books(lambda: Lease.objects.filter(pk=running.lease.pk).update(heartbeat_at=silent))
    expect(page.locator("[data-live=state]")).to_have_text("lost contact")
    expect(page.locator("[data-live=lost]")).to_contain_text("This is not a failure")
    page.screenshot(path=artefacts() / "live-lost-contact.png")
    books(lambda: Lease.objects.filter(pk=running.lease.pk).update(heartbeat_at=datetime.now(UTC)))
    expect(page.locator("[data-live=state]")).to_have_text("training")
    expect(page.locator("[data-live=lost]")).to_be_hidden()


def test_the_verification_is_told_step_by_step_up_to_the_receipt(
    running: Story, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    visitor = visit()
    page = visitor.go(f"/jobs/{running.job.pk}/")
    steps = page.locator("#timeline .timeline > li")
    expect(steps.filter(has_text="Commitments")).to_contain_text("of 147 states committed")
    books(lambda: running.trained().challenged())
    expect(page.locator("[data-live=state]")).to_have_text("challenged")
    expect(page.locator("[data-live=stop]")).to_be_hidden()
    expect(steps.filter(has_text="Challenge")).to_contain_text(
        "4 segments to train again; 5 states to be opened: 0, 17"
    )
    books(lambda: running.opened(0, 17))
    expect(steps.filter(has_text="Opened states")).to_contain_text("2 of 5 arrived")
    books(lambda: running.opened(18, 64, 92).judged())
    expect(page.locator("[data-live=state]")).to_have_text("verified")
    expect(page.locator("[data-live=rules] > li")).to_have_count(11)
    expect(page.locator("[data-rule=replay]")).to_contain_text("Segments drawn after the commitment")
    expect(steps.filter(has_text="Settlement")).to_contain_text("3.00 credits paid, 1.50 given back")
    expect(page.locator("[data-live=cost-foot]")).to_have_text("paid 3.00 · back 1.50")
    page.screenshot(path=artefacts() / "live-verified.png", full_page=True)
    page.get_by_role("link", name="Verdict and receipt").first.click()
    expect(page.locator(".verdict-word")).to_have_text("verified")
    assert visitor.complaints == []


def test_a_job_that_goes_to_another_worker_begins_its_curves_again(
    running: Story, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    from labapex.protocol.states import JobState, LeaseState
    from labapex_server.jobs import services as jobs
    from labapex_server.lib import clock
    from labapex_server.marketplace.models import Lease

    page = visit().go(f"/jobs/{running.job.pk}/")
    drawn(page, 200)

    def again() -> None:
        Lease.objects.filter(pk=running.lease.pk).update(
            state=LeaseState.EXPIRED.value, ended_at=clock.now(), reason="silent for 30 s"
        )
        assert jobs.advance(running.job, JobState.QUEUED)
        running.began += 120
        running.running(worker="attic-h100").trained(50)

    books(again)
    drawn(page, 50)
    expect(page.locator("[data-live=worker]")).to_contain_text("attic-h100")
    expect(page.locator("#timeline")).to_contain_text("basement-h200: silent for 30 s")
    expect(page.locator("[data-live=console]")).to_contain_text("went to another worker")


def test_a_host_without_a_gpu_is_shown_as_the_cpu_that_it_is(
    story: Story, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    story.source = "cpu"
    books(lambda: story.submitted().queued().running().trained(100))
    page = visit().go(f"/jobs/{story.job.pk}/")
    expect(page.locator("[data-live=utilisation-title]")).to_have_text("CPU utilisation")
    expect(page.locator("[data-live=memory-title]")).to_have_text("CPU memory")
    expect(page.locator("figure", has_text="GPU")).to_have_count(0)


def test_a_loss_that_is_no_number_is_a_gap_with_a_mark(
    running: Story, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    visitor = visit()
    page = visitor.go(f"/jobs/{running.job.pk}/")
    drawn(page, 200)
    books(lambda: running.frame(losses=[0.5, float("nan"), float("inf"), 0.4]))
    drawn(page, 204)
    expect(page.locator("[data-live=loss-readout]")).to_contain_text("2 not finite")
    page.screenshot(path=artefacts() / "live-not-finite.png")
    assert visitor.complaints == []


def test_the_console_follows_its_end_until_the_reader_scrolls_up(
    running: Story, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    page = visit().go(f"/jobs/{running.job.pk}/")
    drawn(page, 200)
    console = page.locator("[data-live=console]")
    at_end = "box => box.scrollHeight - box.scrollTop - box.clientHeight < 24"
    books(
        lambda: running.frame(
            text="".join(f"line {i}\n" for i in range(80)) + "\x1b[32mgreen\x1b[0m 10%\r100%\n<b>bold</b>\n"
        )
    )
    expect(console).to_contain_text("line 79")
    expect(console).to_contain_text("100%n 10%")  # a bar is drawn over itself, as in a terminal
    expect(console).to_contain_text("<b>bold</b>")  # text stays text
    assert console.evaluate(at_end)
    console.evaluate("box => { box.scrollTop = 0 }")
    books(lambda: running.frame(text="one more\n"))
    expect(console).to_contain_text("one more")
    assert not console.evaluate(at_end)
    page.get_by_role("button", name="To the end").click()
    assert console.evaluate(at_end)


def test_another_persons_job_does_not_exist(running: Story, visit: Callable[..., Any], people: Any) -> None:
    visitor = visit(person=people[1])
    page = visitor.page
    for path in ("", "timeline/", "clock/", "verdict/", "verdict.json"):
        reply = page.goto(f"{visitor.address}/jobs/{running.job.pk}/{path}")
        assert reply is not None
        assert reply.status == 404


def test_stopping_asks_first_and_then_stops(running: Story, visit: Callable[..., Any]) -> None:
    page = visit().go(f"/jobs/{running.job.pk}/")
    page.locator("[data-live=stop]").click()
    page.get_by_role("button", name="Keep training").click()
    expect(page.locator("[data-live=state]")).to_have_text("training")
    page.locator("[data-live=stop]").click()
    page.get_by_role("button", name="Stop the job").click()
    expect(page.locator("[data-live=state]")).to_have_text(
        "challenged"
    )  # an epoch is complete: it is verified and paid


def test_after_a_lost_connection_the_page_asks_for_what_follows_its_cursor(
    running: Story, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    visitor = visit()
    page, lines = visitor.page, []

    def through(line: Any) -> None:
        lines.append(line)
        line.connect_to_server()

    page.route_web_socket("**/live/jobs/**", through)
    visitor.go(f"/jobs/{running.job.pk}/")
    drawn(page, 200)
    lines[0].close()
    expect(page.locator("[data-live=connection]")).to_contain_text("connection lost")
    books(running.frame)
    drawn(page, 225)
    expect(page.locator("[data-live=connection]")).to_have_text("live")
    first, second = (parse_qs(line.url.partition("?")[2]) for line in lines)
    assert first["cursor"] == [f"{running.lease.pk}:0:-1"]
    assert second["cursor"][0].startswith(f"{running.lease.pk}:8:")
    assert first["have"] == ["200"]


def test_a_message_that_skips_points_makes_the_page_begin_again(
    running: Story, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    visitor = visit()
    page, lines = visitor.page, []

    def gap_at_first(line: Any) -> None:
        """The first connection leaves out some points; the later ones are honest."""
        server = line.connect_to_server()
        if not lines:
            server.on_message(lambda text: line.send(json.dumps(json.loads(text) | {"first": 207})))
        lines.append(line)

    page.route_web_socket("**/live/jobs/**", gap_at_first)
    visitor.go(f"/jobs/{running.job.pk}/")
    expect(page.locator("[data-live=console]")).to_contain_text("digits")
    drawn(page, 200)
    books(running.frame)
    drawn(page, 225)
    assert lines[1].url.endswith("?cursor=&have=0")
    assert len(lines) == 2


def test_the_chosen_theme_stays_and_a_redrawn_chart_keeps_its_zoom(running: Story, visit: Callable[..., Any]) -> None:
    visitor = visit(color_scheme="light")
    page = visitor.go(f"/jobs/{running.job.pk}/")
    drawn(page, 200)
    chart(page).focus()
    page.keyboard.press("+")
    low = chart(page).get_attribute("data-min")
    page.get_by_role("button", name="Switch between light and dark").click()
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    assert dark == "rgb(14, 17, 22)"
    expect(chart(page)).to_have_attribute("data-min", low or "")
    expect(chart(page)).to_have_attribute("data-zoomed", "true")
    page.reload()
    assert page.evaluate(ground) == dark
    assert visitor.complaints == []


def test_a_page_left_alone_all_night_comes_back_signed_out_cleanly(running: Story, visit: Callable[..., Any]) -> None:
    visitor = visit()
    page = visitor.go("/jobs/")
    expect(page.locator("#jobs")).to_contain_text("digits-cnn")
    visitor.context.clear_cookies()
    page.wait_for_url("**/login/?next=/jobs/**")


def test_a_long_run_is_drawn_in_few_numbers_and_a_zoom_shows_each_point(
    story: Story, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    def long_run() -> None:
        story.epochs = 60
        story.step_seconds = 0.02
        story.submitted().queued().running()
        for _ in range(6):
            story.frame(1000)

    books(long_run)
    visitor = visit()
    page = visitor.go(f"/jobs/{story.job.pk}/")
    expect(page.locator("#live")).to_have_attribute("data-points", "6000")
    drawn(page, 3000)  # 1,500 buckets with their least and their greatest
    page.screenshot(path=artefacts() / "live-long.png")
    books(lambda: story.frame(25))
    expect(page.locator("#live")).to_have_attribute("data-points", "6025")
    drawn(page, 3025)
    box = chart(page).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 500, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 560, box["y"] + 100, steps=4)
    with page.expect_response("**/chart/?*"):
        page.mouse.up()
    low, high = (float(chart(page).get_attribute(f"data-{end}") or 0) for end in ("min", "max"))
    inside = round(high) - round(low)
    expect(chart(page)).not_to_have_attribute("data-points", "3025")
    assert int(chart(page).get_attribute("data-points") or 0) > 3025 + inside // 2 - 10
    page.mouse.move(box["x"] + 620, box["y"] + 100)
    expect(page.locator("[data-live=loss-readout]")).to_contain_text("iteration")
    page.screenshot(path=artefacts() / "live-long-zoomed.png")
    page.get_by_label("Smoothing").fill("0.9")
    page.get_by_role("button", name="Show all").click()
    expect(chart(page)).to_have_attribute("data-zoomed", "false")
    assert visitor.complaints == []


def test_an_alert_appears_by_itself_and_says_when_it_is_over(
    running: Story, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    visitor = visit()
    page = visitor.go(f"/jobs/{running.job.pk}/")
    drawn(page, 200)
    expect(page.locator("[data-live=alerts]")).to_be_hidden()
    books(lambda: (running.frame(losses=[1.0] * 20 + [float("nan")] * 5), alerts.look(clock.now())))
    expect(page.locator("[data-live=alerts]")).to_contain_text("The loss of iteration 224 is not a finite number")
    books(lambda: (running.frame(losses=[1.0] * 30), alerts.look(clock.now() + timedelta(seconds=6))))
    expect(page.locator("[data-live=alerts]")).to_contain_text("Over since")
    page.screenshot(path=artefacts() / "live-alert.png")
    assert visitor.complaints == []


def test_each_commitment_is_listed_with_what_was_asked_of_it(
    running: Story, visit: Callable[..., Any], books: Callable[..., Any]
) -> None:
    visitor = visit()
    page = visitor.go(f"/jobs/{running.job.pk}/")
    drawn(page, 200)
    page.locator("details.commitments summary").click()
    rows = page.locator("#commitments tbody tr")
    expect(rows).to_have_count(22)  # one more at the end of the epoch
    expect(rows.nth(21)).to_contain_text("200")
    books(lambda: running.trained().challenged().opened(0, 17))
    expect(rows.nth(17)).to_contain_text("drawn, opened; trained again from here", timeout=15_000)
    expect(rows.nth(18)).to_contain_text("drawn, waited for")
    page.screenshot(path=artefacts() / "live-commitments.png", full_page=True)
    page.get_by_role("button", name="Later").click()
    expect(page.locator("#commitments")).to_contain_text("page 2 of 3")
    expect(rows.nth(14)).to_contain_text("drawn, waited for")
    assert visitor.complaints == []


def test_the_loss_is_drawn_over_a_logarithmic_axis_of_iterations(running: Story, visit: Callable[..., Any]) -> None:
    visitor = visit()
    page = visitor.go(f"/jobs/{running.job.pk}/")
    drawn(page, 200)
    page.get_by_role("button", name="Log x axis").click()
    drawn(page, 199)  # a logarithm knows no iteration 0
    chart(page).focus()
    page.keyboard.press("Home")
    expect(page.locator("[data-live=loss-readout]")).to_contain_text("iteration 1")
    page.screenshot(path=artefacts() / "live-log-x.png")
    page.get_by_role("button", name="Log x axis").click()
    drawn(page, 200)
    assert visitor.complaints == []
