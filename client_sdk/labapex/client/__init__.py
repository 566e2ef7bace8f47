"""The client's side of the REST API: `from labapex.client import Client`."""

from __future__ import annotations

from labapex.client.client import Client, Pulled, VerdictKey, check_verdict, is_news

__all__ = ["Client", "Pulled", "VerdictKey", "check_verdict", "is_news"]
