"""The client's side of the REST API: `from labapex.client import Client`."""

from __future__ import annotations

from labapex.client.client import Client, is_news
from labapex.client.results import Pulled, VerdictKey, check_ruling, check_verdict

__all__ = ["Client", "Pulled", "VerdictKey", "check_ruling", "check_verdict", "is_news"]
