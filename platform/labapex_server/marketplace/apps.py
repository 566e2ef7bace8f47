from __future__ import annotations

from django.apps import AppConfig


class MarketplaceConfig(AppConfig):
    name = "labapex_server.marketplace"

    def ready(self) -> None:
        from labapex_server.marketplace import receivers

        receivers.connect()
