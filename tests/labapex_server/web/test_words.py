"""Words, figures and colours: complete, exact, and readable."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapex.proof.rules import RULES
from labapex.protocol.states import JobState
from labapex.protocol.verdict import Weight
from labapex_server import web
from labapex_server.web import words
from labapex_server.web.templatetags import labapex as figures

STATIC = Path(web.__file__).parent / "static" / "web"
TEXT_ON = [(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("bg", "surface", "raised")] + [
    ("accent-ink", "accent"),
    ("accent", "accent-soft"),
    ("warn", "surface"),
    ("bad", "surface"),
    ("good", "surface"),
]
TEXT_ON += [(kind, f"{kind}-soft") for kind in ("good", "bad", "warn")] + [
    ("ink", f"{k}-soft") for k in ("good", "bad", "warn")
]


def test_every_state_weight_and_rule_has_its_words() -> None:
    assert set(words.RULES) == set(RULES)
    assert set(words.STATES) == {str(state) for state in JobState}
    assert set(words.WEIGHTS) == {str(weight) for weight in Weight}


@given(st.integers(min_value=-(2**60), max_value=2**60))
def test_credits_are_written_to_the_last_micro_credit(micro: int) -> None:
    text = figures.credits(micro)
    whole, _, fraction = text.replace(",", "").replace("−", "-").partition(".")
    exact = int(whole.lstrip("-")) * 10**6 + int(fraction.ljust(6, "0"))
    assert exact == abs(micro)
    assert text.startswith("−") == (micro < 0)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 20, "3.0 MiB"), (139 << 30, "139 GiB"), (None, "–")],
)
def test_sizes_are_binary(count: int | None, text: str) -> None:
    assert figures.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.0123456, "0.012346"), ("equal", "equal"), (None, "–"), (1356.0, "1,356")]
)
def test_a_rules_figures_are_short(value: float | str | None, text: str) -> None:
    assert figures.figure(value) == text


def colours() -> dict[str, tuple[str, str]]:
    found = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", (STATIC / "app.css").read_text())
    return {name: (light, dark) for name, light, dark in found}


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("ink", "ground"), TEXT_ON)
def test_text_has_the_contrast_that_wcag_aa_asks_for(ink: str, ground: str) -> None:
    for theme in (0, 1):
        dark, light = sorted([luminance(colours()[ink][theme]), luminance(colours()[ground][theme])])
        assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize("line", ["loss", "util", "memory", "strong-line"])
def test_lines_and_borders_that_mean_something_stand_out(line: str) -> None:
    for theme in (0, 1):
        dark, light = sorted([luminance(colours()[line][theme]), luminance(colours()["surface"][theme])])
        assert (light + 0.05) / (dark + 0.05) >= 3


def test_third_party_files_are_the_ones_that_are_written_down() -> None:
    vendor = STATIC / "vendor"
    listed = re.findall(r"^([0-9a-f]{64})  (\S+)$", (vendor / "README.md").read_text(), re.MULTILINE)
    assert {path for _, path in listed} == {
        str(path.relative_to(vendor)) for path in vendor.rglob("*") if path.suffix in {".js", ".css"}
    }
    for digest, path in listed:
        assert hashlib.sha256((vendor / path).read_bytes()).hexdigest() == digest
