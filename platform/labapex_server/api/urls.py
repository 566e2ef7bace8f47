"""Addresses of the REST API, and of its description."""

from __future__ import annotations

from django.urls import include, path, re_path

from labapex_server.api import (
    alerts,
    deposits,
    description,
    disputes,
    offers,
    problems,
    statements,
    tokens,
    transparency,
    views,
)

_v1 = [
    path("me/", views.MeView.as_view()),
    path("statement/", statements.AccountStatement.as_view()),
    path("statement.csv", statements.StatementFile.as_view()),
    path("login/", tokens.Logins.as_view()),
    path("login/device/", tokens.Devices.as_view()),
    path("login/device/token/", tokens.DevicePolls.as_view()),
    path("tokens/", tokens.Tokens.as_view()),
    path("tokens/current/", tokens.OwnToken.as_view()),
    path("tokens/<int:token>/", tokens.OneToken.as_view()),
    re_path(r"^blobs/(?P<digest>[0-9a-f]{64})/$", views.BlobView.as_view()),
    path("storage/", views.Stores.as_view()),
    path("storage/files/", views.StoredFiles.as_view()),
    path("jobs/", views.Jobs.as_view()),
    path("jobs/<uuid:job>/", views.JobDetail.as_view()),
    path("jobs/<uuid:job>/events/", views.JobEvents.as_view()),
    path("jobs/<uuid:job>/stop/", views.JobStop.as_view()),
    path("jobs/<uuid:job>/data/", views.JobData.as_view()),
    path("jobs/<uuid:job>/resume/", views.JobResume.as_view()),
    path("jobs/<uuid:job>/verdict/", views.JobVerdict.as_view()),
    path("jobs/<uuid:job>/receipt/", views.JobReceipt.as_view()),
    path("jobs/<uuid:job>/weights/", views.JobWeights.as_view()),
    path("jobs/<uuid:job>/proof/", views.JobProof.as_view()),
    path("jobs/<uuid:job>/certificate/", transparency.JobCertificate.as_view()),
    path("alerts/", alerts.Alerts.as_view()),
    path("alerts/trial/", alerts.AlertTrial.as_view()),
    path("jobs/<uuid:job>/dispute/", disputes.Terms.as_view()),
    path("disputes/", disputes.Disputes.as_view()),
    path("disputes/<uuid:dispute>/", disputes.OneDispute.as_view()),
    path("offers/", offers.Offers.as_view()),
    path("keys/", transparency.Keys.as_view()),
    path("keys/verdict/", views.VerdictKeyView.as_view()),
    path("transparency/head", transparency.LogHead.as_view()),
    path("transparency/entries", transparency.LogEntries.as_view()),
    path("transparency/inclusion", transparency.LogInclusion.as_view()),
    path("transparency/consistency", transparency.LogConsistency.as_view()),
    re_path(r"^transparency/revocations/(?P<certificate>[0-9a-f]{64})$", transparency.LogRevocation.as_view()),
    path("workers/<uuid:worker>/deposit/", deposits.WorkerDeposit.as_view()),
    path("enrolments/", views.Enrolments.as_view()),
]
urlpatterns = [
    path("", description.page),
    path("schema", description.schema),
    path("v1/", include(_v1)),
    re_path(r"", problems.nothing_here),
]
