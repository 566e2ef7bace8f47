"""The operator's pages: Django's admin, read-only but for actions that call the services and are written down with a reason.

Signing in is the portal's own; to whoever is no operator there is nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from django.contrib.admin import AdminSite
from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.urls import URLPattern, URLResolver

V = TypeVar("V", bound=Callable[..., HttpResponseBase])

_NOT_OURS = {"login", "logout", "password_change", "password_change_done", "autocomplete", "view_on_site"}


class Office(AdminSite):
    site_header = site_title = "Lab Apex: operator"
    index_title = "Books and what is to be decided"
    site_url = "/"
    final_catch_all_view = False
    enable_nav_sidebar = False

    def admin_view(self, view: V, cacheable: bool = False) -> V:
        guarded = super().admin_view(view, cacheable)

        @wraps(view)
        def guard(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if not request.user.is_authenticated:
                return redirect_to_login(request.get_full_path())
            if not self.has_permission(request):
                raise Http404
            return guarded(request, *args, **kwargs)

        return cast(V, guard)

    def get_urls(self) -> list[URLPattern | URLResolver]:
        """Without a way in and out of its own, and what no page here needs."""
        return [url for url in super().get_urls() if getattr(url, "name", None) not in _NOT_OURS]


office = Office(name="admin")
