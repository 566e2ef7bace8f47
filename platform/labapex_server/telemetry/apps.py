from __future__ import annotations

from django.apps import AppConfig


class TelemetryConfig(AppConfig):
    name = "labapex_server.telemetry"

    def ready(self) -> None:
        from labapex_server.telemetry import receivers

        receivers.connect()
