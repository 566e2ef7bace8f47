"""The portal: the door for people."""

from __future__ import annotations

from django.apps import AppConfig


class WebConfig(AppConfig):
    name = "labapex_server.web"
    label = "web"
