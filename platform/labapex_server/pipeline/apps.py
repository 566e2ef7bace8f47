from __future__ import annotations

from django.apps import AppConfig


class PipelineConfig(AppConfig):
    name = "labapex_server.pipeline"

    def ready(self) -> None:
        from labapex_server.pipeline import conveyor

        conveyor.connect()
