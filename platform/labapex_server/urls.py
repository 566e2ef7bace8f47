"""The doors by path: REST for programs, the gateway for workers, pages for people, a pulse for the operator."""

from __future__ import annotations

from importlib.util import find_spec

from django.urls import URLPattern, URLResolver, include, path

from labapex_server.pulse import views as pulse
from labapex_server.staff.site import office

_DOORS = (
    ("api/", "labapex_server.api.urls"),
    ("gateway/", "labapex_server.gateway.urls"),
    ("", "labapex_server.web.urls"),
    ("", "allauth.urls"),
)

urlpatterns: list[URLPattern | URLResolver] = [
    path("healthz", pulse.healthz),
    path("readyz", pulse.readyz),
    path("metrics", pulse.metrics),
]
urlpatterns += [path("admin/", office.urls)]
urlpatterns += [path(prefix, include(module)) for prefix, module in _DOORS if find_spec(module)]
