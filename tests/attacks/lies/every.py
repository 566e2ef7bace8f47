"""All lies, by name."""

from __future__ import annotations

from tests.attacks.lies import at_work, exchanges, opening, scripts, story
from tests.attacks.lies.telling import LIES, Lie

__all__ = ["LIES", "Lie", "at_work", "exchanges", "opening", "scripts", "story"]
