"""The operator's pages in a browser, under the portal's own content security policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect
from tests.browser.stage import Story
from tests.browser.test_screens import DARK, LIGHT, PHONE, picture

from labapex_server.accounts.models import User

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("look", "options"), [("light", LIGHT), ("dark", DARK), ("phone", PHONE)])
def test_an_operator_sees_the_fraud_queue_and_bans_with_a_reason(
    look: str, options: dict[str, Any], visit: Callable[..., Any], story: Story, people: Any, books: Callable[..., Any]
) -> None:
    from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
    from allauth.mfa.totp.internal.auth import TOTP, generate_totp_secret

    def history() -> User:
        researcher, host = people
        each = Story(owner=researcher, host=host, began=story.began - 900, name="chargpt-noop", epochs=2)
        each.submitted().queued().running(worker="quick-host").trained().challenged().opened(0, 17)
        each.judged(failing="replay")
        operator = User.objects.create_user("operator", is_staff=True)
        TOTP.activate(operator, generate_totp_secret())
        RecoveryCodes.activate(operator)
        return operator

    operator = books(history)
    visitor = visit(person=operator, **options)
    page = visitor.go("/admin/")
    expect(page.get_by_role("heading", name="Books and what is to be decided")).to_be_visible()
    picture(page, f"office-{look}")
    page.get_by_role("link", name="Fraud", exact=True).click()
    expect(page.get_by_text("chargpt-noop")).to_be_visible()
    picture(page, f"office-fraud-{look}")
    visitor.go("/admin/workers/worker/")
    page.locator("input[name=_selected_action]").first.check()
    page.get_by_label("Action:").select_option("ban")
    page.get_by_label("Reason:").fill("what it handed in is not this training")
    picture(page, f"office-ban-{look}")
    page.get_by_role("button", name="Run").or_(page.get_by_role("button", name="Go")).first.click()
    expect(page.get_by_text("gets no jobs any more")).to_be_visible()
    page.get_by_role("link", name="quick-host").click()
    expect(page.get_by_text("what it handed in is not this training").first).to_be_visible()
    picture(page, f"office-worker-{look}")
    assert visitor.complaints == []
