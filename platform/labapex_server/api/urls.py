from __future__ import annotations

from django.urls import path, re_path
from drf_spectacular.views import SpectacularAPIView

from labapex_server.api import problems, schema, transparency, views

__all__ = ["schema", "urlpatterns"]

urlpatterns = [
    path("tokens/", views.Tokens.as_view()),
    path("me/", views.MeView.as_view()),
    re_path(r"^blobs/(?P<digest>[0-9a-f]{64})/$", views.BlobView.as_view()),
    path("jobs/", views.Jobs.as_view()),
    path("jobs/<uuid:job>/", views.JobDetail.as_view()),
    path("jobs/<uuid:job>/events/", views.JobEvents.as_view()),
    path("jobs/<uuid:job>/stop/", views.JobStop.as_view()),
    path("jobs/<uuid:job>/verdict/", views.JobVerdict.as_view()),
    path("jobs/<uuid:job>/receipt/", views.JobReceipt.as_view()),
    path("jobs/<uuid:job>/weights/", views.JobWeights.as_view()),
    path("jobs/<uuid:job>/proof/", views.JobProof.as_view()),
    path("jobs/<uuid:job>/certificate/", transparency.JobCertificate.as_view()),
    path("keys/", transparency.Keys.as_view()),
    path("keys/verdict/", views.VerdictKey.as_view()),
    path("transparency/head", transparency.LogHead.as_view()),
    path("transparency/entries", transparency.LogEntries.as_view()),
    path("transparency/inclusion", transparency.LogInclusion.as_view()),
    path("transparency/consistency", transparency.LogConsistency.as_view()),
    path("enrolments/", views.Enrolments.as_view()),
    path("schema/", SpectacularAPIView.as_view()),
    re_path(r"", problems.nothing_here),
]
