"""The submit form: what a browser sends becomes the same request as the one that programs send."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.utils.datastructures import MultiValueDict
from hypothesis import given
from hypothesis import strategies as st

from labapex_server.accounts.models import User
from labapex_server.jobs import blobs
from labapex_server.jobs.models import Job
from labapex_server.web.forms import SubmitForm

SCRIPT = b"print('loss')\n"
KEY = "6d1bbf1c-3d1c-4d39-8f4a-0d3f6c5b9a01"
FIELDS = {"mode": "fields", "epochs": "3", "checkpoint_every": "10", "budget": "2.5", "folder": "data", "key": KEY}


def upload(name: str, content: bytes = SCRIPT) -> SimpleUploadedFile:
    return SimpleUploadedFile(name, content)


def form(fields: dict[str, Any], **files: list[SimpleUploadedFile]) -> SubmitForm:
    return SubmitForm(fields, MultiValueDict({"script": [upload("train.py")]} | files))


@pytest.fixture
def browser(client: Client, researcher: User) -> Client:
    client.force_login(researcher)
    return client


def test_script_modules_data_and_fields_become_a_job(browser: Client, researcher: User) -> None:
    reply = browser.post(
        "/jobs/new/",
        FIELDS
        | {
            "args": "--lr 0.1 --note 'two words' {epochs}",
            "requirements": "Einops >= 0.8\r\n\r\n timm\r\n",
            "device": "H100",
            "min_memory": "80 GB",
            "max_price": "2.5",
            "script": upload("train.py"),
            "code": [upload("model.py", b"class Net: ...\n"), upload("loss.py", b"")],
            "data_files": [upload("x.bin", b"\x00" * 3000)],
        },
    )
    job = Job.objects.get()
    assert reply["Location"] == f"/jobs/{job.pk}/"
    assert job.owner == researcher
    assert job.name == "train"
    assert job.job_spec.arguments() == ["--lr", "0.1", "--note", "two words", "3"]
    assert job.job_spec.requirements == ("einops>=0.8", "timm")
    assert (job.job_spec.device, job.job_spec.min_memory, str(job.job_spec.max_price)) == ("H100", 80.0, "2.5")
    assert [part.path for part in job.files.code] == ["loss.py", "model.py", "train.py"]
    assert [part.path for part in job.files.data] == ["data/x.bin"]
    assert job.job_spec.data == "data"
    script = next(part for part in job.files.code if part.path == "train.py")
    assert blobs.find(researcher, script.digest) is not None


def test_a_folder_keeps_its_inner_paths_below_the_name_that_the_script_uses(browser: Client) -> None:
    files = [upload("a.npy", b"a"), upload("b.npy", b"b")]
    paths = json.dumps(["digits/train/a.npy", "digits/b.npy"])
    browser.post(
        "/jobs/new/",
        FIELDS | {"folder": "corpus", "script": upload("train.py"), "data_folder": files, "data_paths": paths},
    )
    assert [part.path for part in Job.objects.get().files.data] == ["corpus/b.npy", "corpus/train/a.npy"]


def test_a_pasted_yaml_is_read_as_the_command_line_reads_it(browser: Client) -> None:
    document = "name: mnist\nscript: train.py\nepochs: 2\nbudget: 1.25\nargs: [--quick]\n"
    reply = browser.post("/jobs/new/", {"mode": "yaml", "key": KEY, "document": document, "script": upload("train.py")})
    assert reply.status_code == 302
    assert Job.objects.get().job_spec.args == ("--quick",)


def test_the_form_sent_twice_is_one_job(browser: Client) -> None:
    for _ in range(2):
        assert browser.post("/jobs/new/", FIELDS | {"script": upload("train.py")}).status_code == 302
    assert Job.objects.count() == 1


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"budget": ""}, "budget", "What may the job cost at most?"),
        ({"budget": "lots"}, "budget", "valid decimal"),
        ({"budget": "0"}, "budget", "greater than 0"),
        ({"budget": "0.0000001"}, "budget", "at most six decimals"),
        ({"epochs": "0"}, "epochs", "greater than or equal to 1"),
        ({"epochs": ""}, "epochs", "At least 1"),
        ({"args": "--name 'open"}, "args", "close each quotation mark"),
        ({"min_memory": "much"}, "min_memory", "valid number"),
        ({"requirements": "einops\n--index-url x"}, "requirements", "options, files and folders are not taken"),
        ({"mode": "yaml", "document": "epoch: 3"}, "document", "did you mean 'epochs'?"),
        ({"mode": "yaml", "document": "script: [train.py"}, "document", "This is not YAML at line 1"),
        ({"mode": "yaml", "document": "- a list"}, "document", "must be a mapping"),
        ({"mode": "yaml", "document": ""}, "document", "must be a mapping"),
        (
            {"mode": "yaml", "document": "script: other.py\nepochs: 1\nbudget: 1"},
            "script",
            "names other.py, but train.py",
        ),
    ],
)
def test_a_mistake_is_explained_beside_its_field(change: dict[str, str], field: str, words: str) -> None:
    wrong = form(FIELDS | change)
    assert not wrong.is_valid()
    assert words in " ".join(wrong.errors[field])


def test_a_script_that_is_no_python_file_is_refused_beside_the_script() -> None:
    wrong = SubmitForm(FIELDS, MultiValueDict({"script": [upload("train.sh")]}))
    assert not wrong.is_valid()
    assert "Must be a Python file" in " ".join(wrong.errors["script"])


def test_too_much_data_is_refused_before_a_byte_is_stored(browser: Client, settings: Any) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"data_limit_bytes": 1000})
    reply = browser.post(
        "/jobs/new/", FIELDS | {"script": upload("train.py"), "data_files": [upload("x.bin", bytes(1001))]}
    )
    assert reply.status_code == 422
    assert "at most 1,000 are accepted" in reply.content.decode()
    assert not Job.objects.exists()
    assert not list(settings.LABAPEX.home.rglob("blobs/*"))


def test_a_budget_above_the_balance_is_refused_beside_the_budget(browser: Client) -> None:
    reply = browser.post("/jobs/new/", FIELDS | {"budget": "100.5", "script": upload("train.py")})
    assert reply.status_code == 422
    assert "100 are available" in str(reply.context["form"].errors["budget"])


@pytest.mark.parametrize("path", ["../../etc/passwd", "a/../../b", "/abs", "a//b", "a/\x00b", "a\\b"])
def test_a_folder_path_that_leads_elsewhere_is_refused(browser: Client, path: str) -> None:
    reply = browser.post(
        "/jobs/new/",
        FIELDS
        | {
            "script": upload("train.py"),
            "data_folder": [upload("x.bin", b"x")],
            "data_paths": json.dumps([f"top/{path}"]),
        },
    )
    assert reply.status_code == 422
    assert not Job.objects.exists()


@given(text=st.text(max_size=200))
def test_no_list_of_paths_breaks_the_form(text: str) -> None:
    asked = form(FIELDS | {"data_paths": text}, data_folder=[upload("x.bin", b"x")])
    asked.is_valid()


def test_errors_are_tied_to_their_fields_for_screen_readers() -> None:
    wrong = form(FIELDS | {"budget": ""})
    wrong.is_valid()
    drawn = str(wrong["budget"])
    assert 'aria-invalid="true"' in drawn
    assert "id_budget_error" in drawn
