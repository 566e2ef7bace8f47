"""Pages: who sees what, what a POST does, and that nothing foreign can run in them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from django.core.cache import cache
from django.test import Client
from django.urls import reverse
from tests.browser.stage import Story
from tests.labapex_server.scenes import upload
from tests.labapex_server.signing_in import signed_in

from labapex.protocol.api import Scope
from labapex.protocol.states import JobState
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.accounts.services import TokenRefused
from labapex_server.jobs import services as jobs
from labapex_server.workers import services as workers

PAGES = ("/jobs/", "/jobs/new/", "/offers/", "/workers/", "/storage/", "/billing/", "/tokens/", "/device/")


@pytest.fixture
def browser(client: Client, researcher: User) -> Client:
    return signed_in(researcher, client)


@pytest.fixture(autouse=True)
def _nobody_tried_before() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def story(researcher: User, host: User) -> Story:
    return Story(owner=researcher, host=host, began=1_790_000_000, epochs=2)


@pytest.mark.django_db
@pytest.mark.parametrize("path", PAGES)
def test_a_stranger_is_sent_to_the_sign_in_page(client: Client, path: str) -> None:
    reply = client.get(path)
    assert reply.status_code == 302
    assert reply["Location"] == f"/login/?next={path}"


@pytest.mark.parametrize("path", [*PAGES, "/login/", "/signup/"])
def test_no_page_runs_anything_inline_or_foreign(browser: Client, path: str) -> None:
    reply = Client().get(path) if path in {"/login/", "/signup/"} else browser.get(path)
    text = reply.content.decode()
    assert "script-src 'self'" in reply["Content-Security-Policy"]
    assert not re.search(r"<script(?![^>]*(src=|application/json))", text)
    assert not re.search(r"\s(style|on[a-z]+)=", text)
    assert not re.search(r"(src|href)=\"(https?:)?//", text)


def test_empty_pages_say_what_to_do(browser: Client) -> None:
    assert "labapex run labapex.yaml" in browser.get("/jobs/").content.decode()
    assert "Offer a machine of yours" in browser.get("/offers/").content.decode()
    assert "Enrol a machine" in browser.get("/workers/").content.decode()
    assert "operator" not in browser.get("/billing/").content.decode()  # this one has credit


@pytest.mark.django_db
def test_signing_up_signs_in(client: Client) -> None:
    fields = {"username": "newcomer", "password1": "correct horse battery", "password2": "correct horse battery"}
    assert client.post("/signup/", fields)["Location"] == "/"
    assert client.get("/jobs/").status_code == 200


@pytest.mark.django_db
def test_a_weak_password_is_refused_beside_its_field(client: Client) -> None:
    reply = client.post("/signup/", {"username": "newcomer", "password1": "password", "password2": "password"})
    assert "too short" in reply.content.decode()
    assert not User.objects.exists()


def test_a_wrong_password_does_not_say_which_half_was_wrong(client: Client, researcher: User) -> None:
    answers = [client.post("/login/", {"login": name, "password": "guess"}) for name in ("researcher", "nobody")]
    told = [re.findall(r'role="alert"><p>([^<]+)', reply.content.decode()) for reply in answers]
    assert told == [["The username and/or password you specified are not correct."]] * 2


def test_signing_in_never_leads_to_another_site(client: Client, researcher: User) -> None:
    fields = {"login": "researcher", "password": "researcher has a password", "next": "https://evil.example/"}
    assert client.post("/login/", fields)["Location"] == "/"


def test_a_token_is_shown_once_and_works_until_it_is_revoked(browser: Client, researcher: User) -> None:
    reply = browser.post("/tokens/", {"name": "laptop", "scopes": ["jobs:read"], "days": "30"})
    secret = re.search(r"apex_\w{46}", reply.content.decode())
    assert secret is not None
    assert "no-store" in reply["Cache-Control"]
    token = accounts.authenticate_token(secret[0])
    assert (token.user, token.granted) == (researcher, (Scope.JOBS_READ,))
    assert secret[0] not in browser.get("/tokens/").content.decode()
    browser.post(reverse("web:revoke-token", args=[researcher.tokens.get().pk]))
    with pytest.raises(TokenRefused, match="revoked"):
        accounts.authenticate_token(secret[0])


def test_a_token_without_a_scope_is_not_made(browser: Client, researcher: User) -> None:
    for fields in ({"days": "30"}, {"days": "30", "scopes": ["root"]}, {"days": "9999", "scopes": ["jobs:read"]}):
        assert browser.post("/tokens/", {"name": "laptop", **fields}).status_code == 422
    assert not researcher.tokens.exists()


def test_nobody_revokes_anothers_token(browser: Client, other_researcher: User) -> None:
    secret = accounts.issue_token(other_researcher, name="theirs")
    browser.post(reverse("web:revoke-token", args=[other_researcher.tokens.get().pk]))
    assert accounts.authenticate_token(secret).user == other_researcher


def test_an_enrolment_code_is_shown_with_its_commands_and_enrols_one_machine(browser: Client, researcher: User) -> None:
    text = browser.post("/workers/code/").content.decode()
    code = re.search(r"labapex-worker enrol (\S+) --platform", text)
    assert code is not None
    assert workers.enrol(code[1], "attic", bytes(32)).owner == researcher
    assert "attic" in browser.get("/workers/").content.decode()
    assert code[1] not in browser.get("/workers/").content.decode()


def test_the_page_says_why_a_worker_takes_no_work(browser: Client, researcher: User) -> None:
    code, _ = workers.new_code(researcher)
    worker = workers.enrol(code, "attic", bytes(32))
    workers.seen(worker)
    workers.paused(worker, "<b>the GPU is too hot")
    text = browser.get("/workers/").content.decode()
    assert "&lt;b&gt;the GPU is too hot" in text
    assert ">paused<" in text
    assert "new: nothing of it was judged yet" in text
    workers.ready(worker, None)
    text = browser.get("/workers/").content.decode()
    assert "too hot" not in text
    assert "supplies no torch" not in text
    workers.arrived(worker, (), lacks_torch=True)
    assert (
        "this platform supplies no torch; install one, or ask its operator" in browser.get("/workers/").content.decode()
    )


@pytest.mark.parametrize("path", ["/workers/code/", "/tokens/1/revoke/"])
def test_what_changes_something_is_never_done_by_following_a_link(browser: Client, path: str) -> None:
    assert browser.get(path).status_code == 405


def test_signing_out_asks_first_where_only_a_link_was_followed(browser: Client) -> None:
    assert "Are you sure" in browser.get("/logout/").content.decode()
    assert browser.get("/jobs/").status_code == 200


def test_forms_without_their_token_are_refused(researcher: User) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(researcher)
    assert strict.post("/tokens/", {"name": "stolen"}).status_code == 403


def test_the_list_shows_only_ones_own_jobs(browser: Client, story: Story, other_researcher: User) -> None:
    story.submitted()
    assert story.name in browser.get("/jobs/").content.decode()
    other = Client()
    other.force_login(other_researcher)
    assert story.name not in other.get("/jobs/").content.decode()
    for name in ("job", "timeline", "clock", "verdict", "verdict-json"):
        assert other.get(reverse(f"web:{name}", args=[story.job.pk])).status_code == 404
    assert other.post(reverse("web:stop-job", args=[story.job.pk])).status_code == 404


def test_the_list_costs_the_same_number_of_queries_for_one_job_and_for_twenty(
    browser: Client, story: Story, researcher: User, host: User, django_assert_max_num_queries: object
) -> None:
    for number in range(20):
        Story(owner=researcher, host=host, began=story.began + number).submitted()
    with django_assert_max_num_queries(12):  # type: ignore[operator]
        browser.get("/jobs/", HTTP_HX_REQUEST="true")


def test_offers_are_listed_filtered_and_a_wrong_filter_is_told_beside_its_field(browser: Client, story: Story) -> None:
    story.submitted().queued().running(worker="basement-h200")
    page = browser.get("/offers/?device=h200&sort=value").content.decode()
    assert "basement-h200" in page
    assert "141 GiB" in page
    assert "busy" in page
    assert "GPU-1f6e2c34" not in page
    assert 'hx-get="/offers/?device=h200&amp;sort=value"' in page
    assert 'href="/jobs/new/?device=h200"' in page
    assert 'value="h200"' in browser.get("/jobs/new/?device=h200&key=x").content.decode()
    fragment = browser.get("/offers/?device=h200", headers={"HX-Request": "true"}).content.decode()
    assert "basement-h200" in fragment
    assert "<html" not in fragment
    none = browser.get("/offers/?min_memory=200").content.decode()
    assert "no host with 200 GB; 1 host has less" in none
    wrong = browser.get("/offers/?max_price=cheap")
    assert wrong.status_code == 422
    assert "id_max_price_error" in wrong.content.decode()


def test_the_billing_page_gives_a_month_as_a_file(browser: Client) -> None:
    page = browser.get("/billing/").content.decode()
    (month,) = re.findall(r"<option>(\d{4}-\d{2})</option>", page)
    reply = browser.get(f"/billing/statement.csv?month={month}")
    assert reply["Content-Disposition"] == f'attachment; filename="labapex-{month}.csv"'
    assert reply.content.decode().splitlines()[1].endswith(",posted,100,,test")
    assert browser.get("/billing/statement.csv?month=x").status_code == 400


def test_hostile_text_stays_text(browser: Client, researcher: User, host: User) -> None:
    name = "<script>alert(1)</script>"
    story = Story(owner=researcher, host=host, began=1_790_000_000, name=name).submitted()
    jobs.advance(story.job, JobState.REFUSED, reason="</pre><img src=x onerror=alert(1)>")
    for path in ("/jobs/", f"/jobs/{story.job.pk}/"):
        text = browser.get(path).content.decode()
        assert "<script>alert" not in text
        assert "<img src=x" not in text


def test_the_verdict_is_a_page_and_a_signed_file(browser: Client, story: Story) -> None:
    story.submitted().queued().running().trained().challenged().opened(0, 17, 18, 64, 92).judged(failing="replay")
    page = browser.get(f"/jobs/{story.job.pk}/verdict/").content.decode()
    assert "rejected" in page
    assert "Segment 17 ends in another state" in page
    assert "4.50 credits" in page
    document = browser.get(f"/jobs/{story.job.pk}/verdict.json").json()
    assert document["verdict"]["deciding_rule"] == "replay"
    assert document["key_id"] == "verdict-2f9c"


def test_a_job_without_a_verdict_has_no_verdict_page(browser: Client, story: Story) -> None:
    story.submitted()
    assert browser.get(f"/jobs/{story.job.pk}/verdict/").status_code == 404


def test_stopping_a_job_whose_training_is_complete_is_refused_with_the_reason(browser: Client, story: Story) -> None:
    story.submitted().queued().running().trained().challenged()
    reply = browser.post(f"/jobs/{story.job.pk}/stop/", follow=True)
    assert "can no longer be stopped" in reply.content.decode()


@pytest.mark.parametrize("path", ["/login/", "/signup/"])
@pytest.mark.django_db
def test_guessing_is_slowed_down(client: Client, path: str) -> None:
    replies = [client.post(path, {"username": "researcher", "password": str(i)}) for i in range(11)]
    assert {reply.status_code for reply in replies[:10]} <= {200, 422}
    assert replies[10].status_code == 429
    assert "Wait a minute" in replies[10].content.decode()


@pytest.mark.django_db
def test_a_fragment_asked_for_after_the_session_ended_sends_its_page_to_the_sign_in(client: Client) -> None:
    reply = client.get("/jobs/", headers={"HX-Request": "true"})
    assert reply.status_code == 401
    assert reply["HX-Refresh"] == "true"


# -- what is stored ----------------------------------------------------------------------------------------------------


def test_an_ended_jobs_page_offers_to_delete_its_data_and_says_what_was_deleted(browser: Client, story: Story) -> None:
    path = f"/jobs/{story.submitted().job.pk}/"
    assert "Delete its data…" not in browser.get(path).content.decode()
    assert "needs its data" in browser.post(f"{path}delete/", follow=True).content.decode()
    browser.post(f"{path}stop/")
    assert "Delete its data…" in browser.get(path).content.decode()
    told = browser.post(f"{path}delete/", follow=True).content.decode()
    for part in ("files", "states", "results"):
        assert f"The {part} were deleted" in told
    assert "Delete its data…" not in told


def test_files_that_no_job_needs_are_deleted_from_the_page_of_ones_data(browser: Client, researcher: User) -> None:
    upload(researcher, b"unused", "x")
    assert "1 files" in browser.get("/storage/").content.decode()
    assert "1 files deleted." in browser.post("/storage/", follow=True).content.decode()
    assert "none was deleted" in browser.post("/storage/", follow=True).content.decode()
