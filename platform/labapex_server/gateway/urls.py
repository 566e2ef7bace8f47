"""The gateway's addresses that Django serves. The socket and the big files are mounted in `labapex_server.asgi`."""

from __future__ import annotations

from django.urls import path

from labapex_server.gateway import views

urlpatterns = [path("enrol/", views.enrol)]
