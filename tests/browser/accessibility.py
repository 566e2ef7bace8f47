"""What axe-core finds wrong with a page as it stands in the browser."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from playwright.sync_api import Page

WORTH_MENDING = {"serious", "critical"}


@cache
def _axe() -> str:
    return (Path(__file__).parent / "vendor" / "axe" / "axe.min.js").read_text()


def violations(page: Page) -> list[str]:
    """Each serious or critical one with the elements that it is about."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(_axe())
    # Without `preload`: for a rule that is off it would copy style sheets into the page, which the portal's policy forbids.
    options = "{resultTypes: ['violations'], preload: false}"
    found = page.evaluate(f"async () => (await axe.run(document, {options})).violations")
    return [
        f"{each['id']} ({each['impact']}): {node['html'][:200]} {node['failureSummary'][:300]}"
        for each in found
        if each["impact"] in WORTH_MENDING
        for node in each["nodes"]
    ]
