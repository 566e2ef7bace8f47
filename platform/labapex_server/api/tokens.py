"""Tokens over REST: made from a password or by a person's word in the portal, listed, and revoked."""

from __future__ import annotations

from django.conf import settings
from django.http import Http404, HttpResponse
from django.urls import reverse
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.exceptions import AuthenticationFailed, Throttled
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.throttling import ScopedRateThrottle
from rest_framework.views import APIView

from labapex.protocol.api import (
    DeviceCode,
    DevicePoll,
    Login,
    NewToken,
    Scope,
    TokenPage,
    TokenTerms,
    TokenView,
)
from labapex_server.accounts import devices, organisations
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import Token
from labapex_server.accounts.organisations import Acting
from labapex_server.api import pages
from labapex_server.api.authentication import SCHEME, needs
from labapex_server.api.exchange import answer, body
from labapex_server.lib import clock

_GONE = OpenApiResponse(description="It opens nothing any more.")


def view(token: Token) -> TokenView:
    """Times are Unix seconds."""
    return TokenView(
        id=token.pk,
        name=token.name,
        prefix=token.prefix,
        scopes=token.granted,
        created_at=token.created_at.timestamp(),
        last_used_at=clock.unix(token.last_used_at),
        expires_at=clock.unix(token.expires_at),
    )


def names(token: Token) -> tuple[str, str | None]:
    """The person, and the organisation for which the token acts."""
    return token.made_by.get_username(), token.user.get_username() if token.user.is_organisation else None


def _new(secret: str, token: Token) -> HttpResponse:
    expires = token.expires_at.timestamp() if token.expires_at else 0.0
    name, organisation = names(token)
    told = NewToken(token=secret, username=name, organisation=organisation, scopes=token.granted, expires_at=expires)
    return answer(told, 201)


def _token(request: Request) -> Token:
    assert isinstance(request.auth, Token)
    return request.auth


def _acting(request: Request) -> Acting:
    token = _token(request)
    return organisations.acting(token.made_by, token.user_id if token.user.is_organisation else None)


class Anonymous(APIView):
    """What a program calls before it has a token."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    def get_authenticate_header(self, request: Request) -> str:
        return SCHEME  # so that a failed login is 401, not 403


class Tokens(APIView):
    scopes = needs(GET=Scope.TOKENS_WRITE)

    @extend_schema(
        operation_id="list_tokens",
        tags=["account"],
        summary="Your tokens that still open something, the newest first",
        parameters=pages.PARAMETERS,
        responses=TokenPage,
    )
    def get(self, request: Request) -> HttpResponse:
        found, following = pages.page(accounts.live_tokens(_acting(request)), request)
        return answer(TokenPage(results=tuple(view(token) for token in found), next=following))


class Logins(Anonymous):
    throttle_classes = (ScopedRateThrottle,)
    throttle_scope = "login"

    @extend_schema(
        operation_id="log_in",
        tags=["account"],
        summary="A token for a user name and a password; an account with a second factor gets none this way",
        request=Login,
        responses={201: NewToken},
        auth=[],
    )
    def post(self, request: Request) -> HttpResponse:
        login = body(request, Login)
        try:
            user = accounts.authenticate_password(request._request, name=login.username, password=login.password)
        except accounts.WrongPassword as error:
            raise AuthenticationFailed(str(error)) from None
        except accounts.TooManyTries as error:
            raise Throttled(error.wait) from None
        by = organisations.acting(user, login.organisation)
        return _new(*accounts.new_token(by.principal, name=login.name, scopes=login.scopes, days=login.days, by=by))


class OneToken(APIView):
    scopes = needs(DELETE=Scope.TOKENS_WRITE)

    @extend_schema(
        operation_id="revoke_token",
        tags=["account"],
        summary="Revoke one of your tokens",
        responses={204: _GONE},
    )
    def delete(self, request: Request, token: int) -> HttpResponse:
        if not accounts.revoke_token(_acting(request), token_id=token):
            raise Http404
        return HttpResponse(status=204)


class OwnToken(APIView):
    scopes = needs(DELETE=None)

    @extend_schema(
        operation_id="log_out",
        tags=["account"],
        summary="Revoke the token that asks; it needs no scope",
        responses={204: _GONE},
    )
    def delete(self, request: Request) -> HttpResponse:
        accounts.revoke_token(_acting(request), token_id=_token(request).pk)
        return HttpResponse(status=204)


class Devices(Anonymous):
    throttle_classes = (ScopedRateThrottle,)
    throttle_scope = "login"

    @extend_schema(
        operation_id="begin_device_login",
        tags=["account"],
        summary="Begin a login that a person allows in the portal (RFC 8628)",
        request=TokenTerms,
        responses={201: DeviceCode},
        auth=[],
    )
    def post(self, request: Request) -> HttpResponse:
        address = str(request.META.get("REMOTE_ADDR", ""))
        device_code, user_code = devices.begin(body(request, TokenTerms), address=address)
        page = settings.LABAPEX.public_url.rstrip("/") + reverse("web:device")
        code = DeviceCode(
            device_code=device_code,
            user_code=user_code,
            verification_uri=page,
            verification_uri_complete=f"{page}?code={user_code}",
            expires_in=devices.LIFE_SECONDS,
            interval=devices.INTERVAL_SECONDS,
        )
        return answer(code, 201)


class DevicePolls(Anonymous):
    @extend_schema(
        operation_id="poll_device_login",
        tags=["account"],
        summary="The token of a device login, once it is allowed",
        description="Until then a problem with code authorization-pending, slow-down, access-denied or expired-token.",
        request=DevicePoll,
        responses={201: NewToken},
        auth=[],
    )
    def post(self, request: Request) -> HttpResponse:
        return _new(*devices.poll(body(request, DevicePoll).device_code))
