"""The portal's addresses. A job's page is `/jobs/<uuid>/`."""

from __future__ import annotations

from django.urls import path, re_path

from labapex_server.web.views import (
    account,
    alerts,
    billing,
    compare,
    disputes,
    jobs,
    offers,
    organisations,
    storage,
    transparency,
    workers,
)

app_name = "web"
urlpatterns = [
    path("", jobs.index, name="index"),
    path("tokens/", account.tokens, name="tokens"),
    path("tokens/<int:token_id>/revoke/", account.revoke, name="revoke-token"),
    path("organisations/", organisations.listing, name="organisations"),
    path("organisations/<str:name>/", organisations.members, name="organisation"),
    path("organisations/<str:name>/members/<int:person_id>/", organisations.member, name="member"),
    path("organisations/<str:name>/withdraw/<int:invitation_id>/", organisations.withdraw, name="withdraw-invitation"),
    path("invitation/<str:secret>/", organisations.invitation, name="invitation"),
    path("acting/", organisations.act, name="act"),
    path("device/", account.device, name="device"),
    path("jobs/", jobs.listing, name="jobs"),
    path("jobs/new/", jobs.new, name="new-job"),
    path("jobs/new/check/", jobs.check, name="check-job"),
    path("jobs/<uuid:job_id>/", jobs.live, name="job"),
    path("jobs/<uuid:job_id>/timeline/", jobs.timeline, name="timeline"),
    path("jobs/<uuid:job_id>/commitments/", jobs.commitments, name="commitments"),
    path("jobs/<uuid:job_id>/chart/", jobs.chart, name="chart"),
    path("jobs/<uuid:job_id>/clock/", jobs.clock, name="clock"),
    path("jobs/<uuid:job_id>/stop/", jobs.stop, name="stop-job"),
    path("jobs/<uuid:job_id>/resume/", jobs.resume, name="resume-job"),
    path("jobs/<uuid:job_id>/delete/", storage.delete, name="delete-job"),
    path("jobs/<uuid:job_id>/verdict/", jobs.verdict, name="verdict"),
    path("jobs/<uuid:job_id>/verdict.json", jobs.verdict_json, name="verdict-json"),
    path("jobs/<uuid:job_id>/certificate.json", transparency.certificate_json, name="certificate-json"),
    path("jobs/<uuid:job_id>/dispute/", disputes.contest, name="contest"),
    path("disputes/", disputes.listing, name="disputes"),
    path("disputes/<uuid:dispute_id>/", disputes.one, name="dispute"),
    path("disputes/<uuid:dispute_id>/ruling.json", disputes.ruling_json, name="ruling-json"),
    path("transparency/", transparency.overview, name="transparency"),
    path("transparency/name/", transparency.name, name="public-name"),
    re_path(r"^transparency/claims/(?P<model>[0-9a-f]{64})/$", transparency.claims, name="claims"),
    path("jobs/<uuid:job_id>/series/", compare.series, name="series"),
    path("compare/", compare.compare, name="compare"),
    path("offers/", offers.listing, name="offers"),
    path("workers/", workers.listing, name="workers"),
    path("workers/code/", workers.code, name="new-code"),
    path("storage/", storage.overview, name="storage"),
    path("alerts/", alerts.channels, name="alerts"),
    path("alerts/trial/", alerts.trial, name="alerts-trial"),
    path("billing/", billing.overview, name="billing"),
    path("billing/statement.csv", billing.statement, name="statement"),
]
