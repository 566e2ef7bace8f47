from __future__ import annotations

import time

from django.apps import AppConfig
from django.core.checks import CheckMessage, Warning, register

from labapex_server.lib import trust


class PipelineConfig(AppConfig):
    name = "labapex_server.pipeline"

    def ready(self) -> None:
        from labapex_server.pipeline import conveyor

        conveyor.connect()
        register(trusted)


def trusted(app_configs: object, **kwargs: object) -> list[CheckMessage]:
    """`manage.py check` says what there is to worry about in the trust document."""
    return [Warning(concern, id="labapex.W001") for concern in trust.concerns(time.time())]
