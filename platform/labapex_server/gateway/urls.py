"""The gateway's addresses that Django serves. The socket and the big files are mounted in `labapex_server.asgi`."""

from __future__ import annotations

from django.urls import path

from labapex_server.gateway import trust, views

urlpatterns = [
    path("enrol/", views.enrol),
    path("earnings/", views.earned),
    path("trust/", trust.chain),
    path("releases/agent", trust.agent),
    path("releases/agent/<str:digest>", trust.wheel),
]
