"""Forms of the portal. They translate what a browser sends into the protocol's models; those hold the rules."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import uuid
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, cast

import yaml
from django import forms
from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from pydantic import ValidationError

from labapex.errors import UsageError
from labapex.protocol.api import MAX_TOKEN_DAYS, MEANING, TOKEN_DAYS, DepositChoice, JobRequest, OfferOrder, Scope
from labapex.protocol.ruling import MAX_REASON
from labapex.protocol.spec import MAX_FILES, Bundle, Constraints, JobSpec, Part, micro_credits, parse_spec
from labapex_server.accounts.models import Role, User
from labapex_server.accounts.organisations import MAX_NAME
from labapex_server.accounts.organisations import MEANING as ROLES
from labapex_server.jobs import blobs

MAX_YAML = 64 * 1024

if TYPE_CHECKING:
    Upload = UploadedFile[Any]
else:  # Django's own class knows no type argument
    Upload = UploadedFile


class TokenForm(forms.Form):
    name = forms.CharField(
        label="What is it for?", max_length=80, help_text="For example the name of the machine that will use it."
    )
    scopes = forms.TypedMultipleChoiceField(
        label="What may it do?",
        coerce=Scope,
        initial=[Scope.JOBS_READ.value, Scope.JOBS_WRITE.value],
        widget=forms.CheckboxSelectMultiple,
    )
    days = forms.TypedChoiceField(
        label="How long is it valid?",
        choices=[(str(days), f"{days} days") for days in (7, 30, TOKEN_DAYS, MAX_TOKEN_DAYS)],
        coerce=int,
        initial=str(TOKEN_DAYS),
    )

    def __init__(self, allowed: Collection[Scope], *args: Any, **kwargs: Any) -> None:
        """`allowed`: what whoever makes it may do themselves."""
        super().__init__(*args, **kwargs)
        scopes = cast(forms.ChoiceField, self.fields["scopes"])
        scopes.choices = [(scope.value, f"{scope.value}: {MEANING[scope]}") for scope in Scope if scope in allowed]


class InvitationForm(forms.Form):
    role = forms.ChoiceField(
        label="Role",
        choices=[(role, f"{role}: may {meaning}") for role, meaning in ROLES.items()],
        initial=Role.MEMBER,
        widget=forms.RadioSelect,
    )
    email = forms.EmailField(
        label="E-mail address",
        required=False,
        help_text="Where the link is to be sent; it is shown to you in any case.",
    )


class OrganisationForm(forms.Form):
    name = forms.CharField(label="Name", max_length=MAX_NAME, help_text="Letters, digits and . + - _")


class DisputeForm(forms.Form):
    reason = forms.CharField(
        label="What is wrong with it?",
        max_length=MAX_REASON,
        widget=forms.Textarea(attrs={"rows": 5}),
        help_text="Both sides read this.",
    )


class DepositForm(forms.Form):
    amount = forms.CharField(label="Credits", max_length=20, help_text="0 takes all back.")

    def clean_amount(self) -> int:
        """Micro-credits."""
        text: str = self.cleaned_data["amount"].strip()
        if text == "0":
            return 0
        try:
            return int(micro_credits(DepositChoice.model_validate({"credits": text}).credits))
        except ValidationError as error:
            raise forms.ValidationError(_sentence(error.errors(include_input=False)[0]["msg"])) from None


class PublicNameForm(forms.Form):
    """Empty: none is published."""

    name = forms.CharField(label="Name to publish", max_length=80, required=False)

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if not name.isprintable():  # nothing that turns the text around it or hides in it
            raise forms.ValidationError("Use printable characters only.")
        return name


class ChannelsForm(forms.Form):
    """How to be told of alerts; `alerts.services` holds the rules."""

    mail = forms.BooleanField(label="By mail", required=False)
    webhook = forms.CharField(
        label="Webhook",
        max_length=2000,
        required=False,
        help_text="An https address that is called with JSON. A new one gets a secret with which its calls are signed.",
    )
    budget_share = forms.IntegerField(
        label="Budget, percent",
        min_value=1,
        max_value=100,
        help_text="An alert when so much of a job's budget is spent.",
    )


class ConstraintsForm(forms.Form):
    """Which hosts are wanted."""

    device = forms.CharField(
        label="Device", max_length=180, required=False, help_text="A part of its name: H100, cuda."
    )
    min_memory = forms.CharField(label="Memory, GB at least", max_length=20, required=False)
    max_price = forms.CharField(label="Credits an hour at most", max_length=20, required=False)
    min_speed = forms.CharField(label="GFLOP/s shown at least", max_length=20, required=False)
    min_deposit = forms.CharField(
        label="Deposit, credits at least", max_length=20, required=False, help_text="Lost when a host is found to lie."
    )

    def constraints(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those that were filled in, as the protocol's models take them."""
        return {name: given[name] for name in Constraints.model_fields if given.get(name)}


class OffersForm(ConstraintsForm):
    """Which offers to list, and in which order."""

    sort = forms.TypedChoiceField(
        label="First",
        choices=[
            (OfferOrder.PRICE, "the cheapest"),
            (OfferOrder.VALUE, "most speed for a credit"),
            (OfferOrder.SPEED, "the fastest"),
            (OfferOrder.REPUTATION, "the best reputation"),
        ],
        coerce=OfferOrder,
        required=False,
        empty_value=OfferOrder.PRICE,
    )

    def clean(self) -> dict[str, Any]:
        given = super().clean() or {}
        try:
            given["wanted"] = Constraints.model_validate(self.constraints(given))
        except ValidationError as error:
            for complaint in error.errors(include_input=False):
                self.add_error(str(complaint["loc"][0]), _sentence(complaint["msg"]))
        return given


class ManyFilesInput(forms.ClearableFileInput):
    allow_multiple_selected = True


class ManyFiles(forms.FileField):
    """Zero or more uploaded files. An empty one is a file too: think of `__init__.py`."""

    widget = ManyFilesInput

    def __init__(self, *, label: str) -> None:
        super().__init__(label=label, required=False, allow_empty_file=True)

    def clean(self, data: Any, initial: Any = None) -> list[Upload]:
        single = super().clean
        if isinstance(data, list | tuple):
            return [single(each, initial) for each in data]
        return [single(data, initial)] if data else []


class SubmitForm(ConstraintsForm):
    """A new job: its files, and either the fields or a pasted labapex.yaml."""

    mode = forms.ChoiceField(
        choices=[("fields", "Fill in the fields"), ("yaml", "Paste a labapex.yaml")], initial="fields"
    )
    script = forms.FileField(
        label="Script",
        help_text="The Python file that trains, unmodified.",
        allow_empty_file=True,
        error_messages={"required": "Choose the Python file that trains."},
    )
    code = ManyFiles(label="Further code files")
    data_files = ManyFiles(label="Data files")
    data_folder = ManyFiles(label="… or a folder of data")
    code_paths = forms.CharField(required=False, widget=forms.HiddenInput(attrs={"data-paths-of": "code"}))
    data_paths = forms.CharField(required=False, widget=forms.HiddenInput(attrs={"data-paths-of": "data_folder"}))
    name = forms.CharField(label="Name", max_length=80, required=False, help_text="Empty: the script's name.")
    args = forms.CharField(
        label="Arguments",
        required=False,
        max_length=4096,
        help_text="As in a shell. {epochs} becomes the number of epochs.",
    )
    requirements = forms.CharField(
        label="Packages",
        required=False,
        max_length=MAX_YAML,
        widget=forms.Textarea(attrs={"rows": 2, "spellcheck": "false", "autocapitalize": "off"}),
        help_text="Besides torch, one a line, for example einops>=0.8.",
    )
    folder = forms.CharField(
        label="Data folder's name",
        required=False,
        initial="data",
        max_length=400,
        help_text="Where the script looks for its data.",
    )
    epochs = forms.IntegerField(
        label="Epochs", required=False, initial=3, help_text="E: each verified epoch is paid on its own."
    )
    iterations_per_epoch = forms.IntegerField(
        label="Iterations an epoch", required=False, help_text="Only for a loop without a DataLoader; else it is found."
    )
    checkpoint_every = forms.IntegerField(
        label="Commit every … iterations",
        required=False,
        initial=10,
        help_text="k: smaller means cheaper checks and more states.",
    )
    budget = forms.CharField(
        label="Budget, credits", required=False, help_text="Held once the preflight has passed, and never exceeded."
    )
    document = forms.CharField(
        label="labapex.yaml",
        required=False,
        max_length=MAX_YAML,
        widget=forms.Textarea(attrs={"spellcheck": "false", "autocapitalize": "off"}),
        help_text="The file that `labapex run` reads, as it is.",
    )
    key = forms.UUIDField(widget=forms.HiddenInput, initial=uuid.uuid4)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["budget"].widget.attrs["inputmode"] = "decimal"
        self.fields["data_folder"].widget.attrs["webkitdirectory"] = True
        self.fields["script"].widget.attrs["accept"] = ".py"
        self.fields["code"].help_text = "Modules that the script imports; they lie beside it."
        for name in ("data_files", "data_folder"):
            self.fields[name].help_text = f"Up to {settings.LABAPEX.data_limit_bytes >> 20:,} MiB in all."

    def clean(self) -> dict[str, Any]:
        given = super().clean() or {}
        given["spec"] = spec = self._spec(given)
        if spec is not None and not self.errors:
            given["files"] = self._files(given, spec)
        return given

    def _spec(self, given: dict[str, Any]) -> JobSpec | None:
        if given.get("mode") == "yaml":
            return self._pasted(given)
        script = given.get("script")
        wanted = {"script": script.name if script else "train.py", **self.constraints(given)}
        wanted["name"] = given.get("name") or PurePosixPath(wanted["script"]).stem
        for field, missing in (
            ("epochs", "How many epochs are to be trained? At least 1."),
            ("budget", "What may the job cost at most? For example 2.5."),
        ):
            if given.get(field) in (None, "") and field not in self.errors:
                self.add_error(field, missing)
            wanted[field] = given.get(field)
        for field in ("iterations_per_epoch", "checkpoint_every"):
            if given.get(field) is not None:
                wanted[field] = given[field]
        wanted["requirements"] = tuple(filter(None, map(str.strip, (given.get("requirements") or "").splitlines())))
        if given.get("data_files") or given.get("data_folder"):
            wanted["data"] = given.get("folder") or "data"
        try:
            wanted["args"] = tuple(shlex.split(given.get("args") or ""))
        except ValueError as error:
            self.add_error("args", f"This cannot be split into arguments ({error}): close each quotation mark.")
        if self.errors:
            return None
        try:
            return JobSpec.model_validate(wanted)
        except ValidationError as error:
            for complaint in error.errors(include_input=False):
                field = str(complaint["loc"][0]) if complaint["loc"] else ""
                field = "folder" if field == "data" else field
                self.add_error(field if field in self.fields else None, _sentence(complaint["msg"]))
            return None

    def _pasted(self, given: dict[str, Any]) -> JobSpec | None:
        if "document" in self.errors:
            return None
        try:
            return read_document(given.get("document") or "")
        except UsageError as error:
            self.add_error("document", str(error))
        return None

    def _files(self, given: dict[str, Any], spec: JobSpec) -> dict[str, list[tuple[str, Upload]]]:
        """The uploaded files by the path that they will have in the job's folder."""
        code = [(spec.script, given["script"])]
        if PurePosixPath(spec.script).name != given["script"].name:
            self.add_error("script", f"labapex.yaml names {spec.script}, but {given['script'].name} was chosen here.")
        code += zip(_relative(given["code"], given.get("code_paths")), given["code"], strict=True)
        folder = zip(_relative(given["data_folder"], given.get("data_paths")), given["data_folder"], strict=True)
        data = [(f"{spec.data}/{path}", f) for path, f in [*((f.name or "", f) for f in given["data_files"]), *folder]]
        if data and spec.data is None:
            self.add_error("document", "Data was chosen, but labapex.yaml names no data folder: add 'data: data'.")
        limits = settings.LABAPEX
        for field, files, limit in (
            ("code", code, limits.code_limit_bytes),
            ("data_files", data, limits.data_limit_bytes),
        ):
            total = sum(file.size or 0 for _, file in files)
            if total > limit:
                self.add_error(field, f"{total:,} bytes are too many: at most {limit:,} are accepted.")
            if len(files) > MAX_FILES:
                self.add_error(
                    field, f"{len(files):,} files are too many: at most {MAX_FILES:,}. Pack them into fewer."
                )
        return {"code": code, "data": data}

    def upload(self, owner: User) -> JobRequest:
        """Store the files and make the request. Raises `Refused` and `pydantic.ValidationError` like the REST doors."""
        files = self.cleaned_data["files"]
        return JobRequest(
            spec=self.cleaned_data["spec"],
            bundle=Bundle(code=_parts(owner, files["code"]), data=_parts(owner, files["data"])),
        )


def read_document(text: str) -> JobSpec:
    """A pasted labapex.yaml. Raises `UsageError` with a sentence that names the line."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(
            f"This is not YAML{where}: {getattr(error, 'problem', None) or 'it cannot be read'}."
        ) from None
    except (RecursionError, ValueError):
        raise UsageError("This YAML is nested too deeply, or holds a value that is none.") from None
    try:
        return parse_spec(document)
    except UsageError as error:
        said = str(error)
        line = _line(text, said)
        raise UsageError(_sentence(said if line is None else f"line {line}: {said}")) from None


def _line(text: str, complaint: str) -> int | None:
    """Where the field stands that a complaint names."""
    found = re.match(r"unknown field '([^']*)'|(\w+)", complaint)
    node = yaml.compose(text, yaml.SafeLoader)
    if found is None or not isinstance(node, yaml.MappingNode):
        return None
    name = found[1] if found[1] is not None else found[2]
    return next((key.start_mark.line + 1 for key, _ in node.value if key.value == name), None)


def _relative(files: list[Upload], told: str | None) -> list[str]:
    """Where the files of a chosen folder lie below it. The page's script says so: a browser sends bare names."""
    try:
        paths = json.loads(told or "null")
    except (ValueError, RecursionError):
        paths = None
    if not isinstance(paths, list) or len(paths) != len(files) or not all(isinstance(path, str) for path in paths):
        return [file.name or "" for file in files]
    return [path.partition("/")[2] or path for path in paths]


def _parts(owner: User, files: Iterable[tuple[str, Upload]]) -> tuple[Part, ...]:
    parts = []
    for path, file in files:
        digest = hashlib.sha256()
        for chunk in file.chunks():
            digest.update(chunk)
        part = Part(path=path, digest=digest.hexdigest(), size=file.size or 0)
        file.seek(0)
        blobs.store(owner, part.digest, file, size=part.size)
        parts.append(part)
    return tuple(parts)


def _sentence(complaint: str) -> str:
    text = complaint.removeprefix("Value error, ").strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")
