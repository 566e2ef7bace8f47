"""Django's settings, derived from the typed `lib.config.Config`: set `LABAPEX_..`, not these."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from labapex_server.lib import logs
from labapex_server.lib.config import Config

LABAPEX = Config(_secrets_dir=os.environ.get("LABAPEX_SECRETS_DIR"))
LABAPEX.private_folder()

DEBUG = LABAPEX.debug
SECRET_KEY = LABAPEX.secret_key()
SECRET_KEY_FALLBACKS = LABAPEX.former_secret_keys()  # sessions that began under them go on
_public = urlsplit(LABAPEX.public_url)
ALLOWED_HOSTS = [_public.hostname or "localhost", "localhost", "127.0.0.1", "[::1]", *LABAPEX.allowed_hosts]
CSRF_TRUSTED_ORIGINS = [f"{_public.scheme}://{_public.netloc}"]

INSTALLED_APPS = [
    "labapex_server.staff",  # before the admin, whose templates it changes
    "django.contrib.admin.apps.SimpleAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "channels",
    "rest_framework",
    "drf_spectacular",
    "labapex_server.accounts",
    "labapex_server.ledger",
    "labapex_server.workers",
    "labapex_server.jobs",
    "labapex_server.marketplace",
    "labapex_server.telemetry",
    "labapex_server.verification",
    "labapex_server.transparency",
    "labapex_server.disputes",
    "labapex_server.alerts",
    "labapex_server.api",
    "labapex_server.gateway",
    "labapex_server.web",
    "labapex_server.pipeline",
    # after the portal, whose templates are to be found first
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.usersessions",
]
MIDDLEWARE = [
    "labapex_server.lib.middleware.Watched",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "labapex_server.web.middleware.OperatorsSecondFactor",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "labapex_server.web.middleware.ContentSecurityPolicy",
]
ROOT_URLCONF = "labapex_server.urls"
ASGI_APPLICATION = "labapex_server.asgi.application"
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "labapex_server.web.context.account",
            ]
        },
    }
]

DATABASES = {"default": LABAPEX.database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_USER_MODEL = "accounts.User"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "/login/"
LOGIN_REDIRECT_URL = "/"

# Signing in, by django-allauth. Who hands out addresses must be able to write to them: without a mail server an address is
# optional and nobody is asked to confirm one.
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
_tries = "{}/{:.1}/ip".format(*LABAPEX.login_rate.split("/"))
ACCOUNT_ADAPTER = "labapex_server.accounts.adapters.Accounts"
ACCOUNT_LOGIN_METHODS = {"username", "email"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "email*" if LABAPEX.mail_url else "email", "password1*", "password2*"]
ACCOUNT_USERNAME_VALIDATORS = "labapex_server.accounts.adapters.USERNAME"
ACCOUNT_EMAIL_VERIFICATION = "mandatory" if LABAPEX.mail_url else "none"
ACCOUNT_EMAIL_NOTIFICATIONS = True  # of a changed password, a second factor that is gone
ACCOUNT_EMAIL_SUBJECT_PREFIX = "Lab Apex: "
ACCOUNT_MAX_EMAIL_ADDRESSES = 5
ACCOUNT_DEFAULT_HTTP_PROTOCOL = _public.scheme
ACCOUNT_LOGOUT_REDIRECT_URL = LOGIN_URL
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_RATE_LIMITS = {"login": _tries, "signup": _tries, "login_failed": f"{_tries},5/300s/key"}
MFA_ADAPTER = "labapex_server.accounts.adapters.SecondFactors"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_ALLOW_UNVERIFIED_EMAIL = not LABAPEX.mail_url
MFA_WEBAUTHN_ALLOW_INSECURE_ORIGIN = _public.scheme == "http"  # browsers themselves allow it for localhost alone
MFA_TOTP_ISSUER = "Lab Apex"
MFA_TOTP_TOLERANCE = 1

EMAIL_BACKEND = f"django.core.mail.backends.{'smtp' if LABAPEX.mail_url else 'console'}.EmailBackend"
EMAIL_TIMEOUT = 20
DEFAULT_FROM_EMAIL = SERVER_EMAIL = LABAPEX.mail_from
if LABAPEX.mail_url:
    for _name, _value in LABAPEX.mail_server().items():
        globals()[_name] = _value

LANGUAGE_CODE = "en"
USE_TZ = True
TIME_ZONE = "UTC"

STATIC_URL = "/static/"
STATIC_ROOT = LABAPEX.private_folder("static")  # empty, but whitenoise wants it to be there
# Served from the apps' folders by whitenoise: no collectstatic step stands between a checkout and a page.
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG

SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _public.scheme == "https"
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if _public.scheme == "https" else None
SECURE_SSL_REDIRECT = _public.scheme == "https"
SECURE_REDIRECT_EXEMPT = [r"^(healthz|readyz|metrics)$"]  # who looks after the process asks the process
SECURE_HSTS_SECONDS = 365 * 24 * 3600 if _public.scheme == "https" else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = False  # its neighbours' names are not ours to speak for
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]  # which ask for those two

FILE_UPLOAD_MAX_MEMORY_SIZE = 1 << 20
DATA_UPLOAD_MAX_MEMORY_SIZE = 8 << 20  # bodies that are parsed; blobs and states are streamed past it
DATA_UPLOAD_MAX_NUMBER_FILES = 4096

CHANNEL_LAYERS = {"default": LABAPEX.channel_layer()}
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    if LABAPEX.channel_url is None
    else {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": LABAPEX.channel_url}
}

REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["labapex_server.api.authentication.TokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["labapex_server.api.authentication.Scoped"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "labapex_server.api.schema.Description",
    "DEFAULT_THROTTLE_CLASSES": ["labapex_server.api.limits.PerCaller"],
    "DEFAULT_THROTTLE_RATES": {"login": LABAPEX.login_rate},
    "EXCEPTION_HANDLER": "labapex_server.api.problems.handle",
    "DEFAULT_METADATA_CLASS": None,  # OPTIONS would describe a view to whoever asks; the description is public as it is
    "UNAUTHENTICATED_USER": None,
    "NUM_PROXIES": 0,  # who asks is the socket's address; uvicorn puts in what a trusted proxy says, and nobody else
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Lab Apex",
    "DESCRIPTION": "Buy GPU training and know that it was done.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVERS": [{"url": "/"}],
    "POSTPROCESSING_HOOKS": ["labapex_server.api.schema.complete"],
}

LOGGING = logs.logging_of(LABAPEX.log_format)
