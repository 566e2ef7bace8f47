from __future__ import annotations

from django.apps import AppConfig


class StaffConfig(AppConfig):
    name = "labapex_server.staff"

    def ready(self) -> None:
        from labapex_server.staff import pages

        pages.register()
