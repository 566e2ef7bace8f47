"""The attacks run against the same marketplaces as the tests of the honest flow."""

from __future__ import annotations

from tests.e2e.conftest import stack

__all__ = ["stack"]
