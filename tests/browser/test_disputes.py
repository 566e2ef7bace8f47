"""A dispute as both sides see it, from the form to the ruling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect
from tests.browser.stage import Story
from tests.browser.test_screens import DARK, LIGHT, PHONE, fits, picture

from labapex.protocol.ruling import FalseSegment, Outcome
from labapex.protocol.spec import CREDIT
from labapex.protocol.states import Fault
from labapex.protocol.verdict import Verdict
from labapex_server.disputes.models import Dispute
from labapex_server.disputes.ruling import Finding, rule
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.verification.models import VerdictRecord

pytestmark = pytest.mark.browser


def found_false() -> None:
    """The re-execution of the only dispute came to a false segment."""
    dispute = Dispute.objects.select_related("verdict").get()
    contested = Verdict.model_validate(dispute.verdict.document)
    given = contested.model_copy(
        update={"verdict": "rejected", "deciding_rule": "replay", "fault": Fault.WORKER, "blamed": dispute.lease_id}
    )
    false = FalseSegment(
        segment=17, start=170, stop=180, agreed="5e" * 32, committed="a1" * 32, recomputed="b2" * 32, origin=170
    )
    words = (
        "iterations 170 to 179 were run again, twice, from the state before them, and came out otherwise than they were"
        " logged and committed; replay: found 1.0, required 0.0"
    )
    Dispute.objects.update(executed=9)
    assert rule(dispute, Finding(Outcome.REVERSED, words, given, false))


@pytest.mark.parametrize(("look", "options"), [("light", LIGHT), ("dark", DARK), ("phone", PHONE)])
def test_a_verdict_is_contested_and_ruled_on_pages(
    look: str, options: dict[str, Any], visit: Callable[..., Any], story: Story, people: Any, books: Callable[..., Any]
) -> None:
    def history() -> None:
        researcher, host = people
        ledger.top_up(ledger.account_of(host), amount=5 * CREDIT, memo="starting credit")
        for name, failing in (("chargpt", None), ("chargpt-noop", "replay")):
            each = Story(owner=researcher, host=host, began=story.began - 900, name=name, epochs=2)
            each.submitted().queued().running(worker=f"{name}-host").trained().challenged().opened(0, 17, 18)
            each.judged(failing=failing)
        Job.objects.update(iteration_seconds=0.9)
        assert VerdictRecord.objects.filter(stands=True).count() == 2

    books(history)
    visitor = visit(**options)
    page = visitor.go("/disputes/")
    expect(page.get_by_text("Nothing is contested")).to_be_visible()
    picture(page, f"disputes-none-{look}")
    assert fits(page)
    page.get_by_role("link", name="Contest the verdict on chargpt").click()
    page.get_by_label("What is wrong with it?").fill("The loss of the model on my own data is that of its beginning.")
    picture(page, f"contest-{look}")
    assert fits(page)
    page.get_by_role("button", name="credits and contest").click()
    expect(page.get_by_role("heading", name="Dispute")).to_be_visible()
    picture(page, f"dispute-open-{look}")
    assert fits(page)
    books(found_false)
    page.reload()
    expect(page.get_by_role("heading", name="Ruling")).to_be_visible()
    expect(page.locator("#again")).to_contain_text("labapex replay proof --from 170 --steps 10")
    picture(page, f"ruling-{look}")
    assert fits(page)
    page.get_by_role("link", name="Verdict", exact=True).click()
    expect(page.get_by_text("revokes it")).to_be_visible()
    picture(page, f"verdict-revoked-{look}")
    assert fits(page)
    assert visitor.complaints == []

    host = visit(person=people[1], **options)
    page = host.go("/disputes/")
    expect(page.get_by_role("link", name="Contest the verdict on chargpt-noop")).to_be_visible()
    page.get_by_role("link", name="chargpt", exact=True).click()
    expect(page.get_by_text("whose code and data these are")).to_be_visible()
    picture(page, f"ruling-host-{look}")
    assert fits(page)
    assert host.complaints == []
