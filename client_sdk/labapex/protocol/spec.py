"""What a client asks for: `labapex.yaml` is a `JobSpec`, field for field."""

from __future__ import annotations

import difflib
import re
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationError, field_validator

from labapex.errors import UsageError
from labapex.protocol.canonical import Digest, Message, explain
from labapex.protocol.limits import Wish
from labapex.protocol.requirements import MAX_REQUIREMENTS, RequirementLine

CREDIT = 1_000_000
"""Micro-credits in a credit. Every amount on the wire and in the ledger is an integer of micro-credits."""

MAX_FILES = 4096
MAX_CODE_BYTES = 16 * 2**20
MAX_DATA_BYTES = 2 * 2**30  # a platform may set another limit; this one is refused before a byte is sent
MAX_PATH_LENGTH = 400
MAX_PARENTS = 16
MAX_AUDIT_SEGMENTS = 1000
PARENTS = "parents"
"""The folder of a run in which the models that it starts from lie, as `0.safetensors`, `1.safetensors` and so on."""


def relative_path(text: str) -> str:
    """A path inside the bundle: relative, POSIX, without `..`. Raises `ValueError`."""
    if not isinstance(text, str):  # runs before pydantic has looked at the type
        raise ValueError("must be text")
    path = PurePosixPath(text)
    if not text or len(text) > MAX_PATH_LENGTH or path.is_absolute() or ".." in path.parts or "\\" in text:
        raise ValueError("must be a relative path inside the job's folder, with '/' and without '..'")
    if str(path) != text or any(ord(c) < 32 for c in text):
        raise ValueError(f"must be written in its plain form, for example {str(path)!r}")
    return text


BundlePath = Annotated[str, BeforeValidator(relative_path)]


def micro_credits(value: Any) -> Any:
    """Credits as written by people ("2.5") to micro-credits; raises `ValueError` for a fraction below one millionth."""
    try:
        amount = Decimal(str(value)) * CREDIT
    except ArithmeticError:
        raise ValueError("must be a number of credits, for example 2.5") from None
    if not amount.is_finite() or amount != amount.to_integral_value():
        raise ValueError("must be a finite number of credits with at most six decimals")
    return amount


def one_or_many(value: Any) -> Any:
    """A single name as a list of one, as people write it."""
    return (value,) if isinstance(value, str) else value


def _whole_micro_credits(value: Decimal) -> Decimal:
    micro_credits(value)
    return value


def _gigabytes(value: Any) -> Any:
    """`24`, `24G`, `24 GB`: the number alone."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*(?:GB?)?", value.strip(), re.I) if isinstance(value, str) else None
    return match[1] if match else value


Credits = Annotated[Decimal, Field(gt=0, le=1_000_000_000), AfterValidator(_whole_micro_credits)]
Gflops = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class Constraints(Message):
    """Which hosts a job may go to. A host's device and its memory are its own words; its speed it has shown."""

    device: Annotated[str, StringConstraints(min_length=1, max_length=180, strip_whitespace=True)] | None = (
        None  # a part of its name, "cuda: NVIDIA H200", in upper or lower case
    )
    min_memory: Annotated[float, BeforeValidator(_gigabytes), Field(ge=0, le=1e6, allow_inf_nan=False)] = (
        0.0  # of the device, in gigabytes (10^9 bytes) as it is sold
    )
    max_price: Credits | None = None  # credits an hour
    min_speed: Gflops = 0.0  # GFLOP/s that it has shown in a speed trial
    min_deposit: Credits | None = None  # credits that its owner loses when it is found to have lied


class JobSpec(Constraints):
    """A training job as its client describes it. Every field has a default but `script`, `epochs` and `budget`."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=80, strip_whitespace=True)] = "job"
    script: BundlePath
    args: tuple[Annotated[str, StringConstraints(max_length=4096)], ...] = Field(default=(), max_length=256)
    data: BundlePath | None = None
    requirements: tuple[RequirementLine, ...] = Field(default=(), max_length=MAX_REQUIREMENTS)
    epochs: int = Field(ge=1, le=100_000)
    iterations_per_epoch: int | None = Field(default=None, ge=1, le=100_000_000)
    checkpoint_every: int = Field(default=10, ge=1, le=1_000_000)
    budget: Credits
    threads: int = Field(default=1, ge=1, le=256)
    audit_segments: int = Field(
        default=0, ge=0, le=MAX_AUDIT_SEGMENTS
    )  # at random; 0: as many as its host's reputation asks for
    top_q: int = Field(default=1, ge=0, le=100)
    start_from: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=MAX_PATH_LENGTH)], ...],
        BeforeValidator(one_or_many),
    ] = Field(
        default=(), max_length=MAX_PARENTS
    )  # own job, certificate's digest, or (before it is sent) a local folder
    priority: int = Field(default=0, ge=-10, le=10)  # which of the same client's waiting jobs goes first
    limits: Wish | None = None  # memory, disk and processes of a run
    takeover: bool = True  # where a host is lost, another one goes on with the run instead of beginning anew
    require_proven_start: bool = False  # refuse initial weights that neither the seed nor a certified model explains

    @field_validator("script")
    @classmethod
    def _python(cls, value: str) -> str:
        if not value.endswith(".py"):
            raise ValueError("must be a Python file, for example train.py")
        return value

    @property
    def budget_micro(self) -> int:
        """The budget in micro-credits."""
        return int(self.budget * CREDIT)

    def arguments(self) -> list[str]:
        """The script's arguments with `{epochs}`, and where I is declared `{iterations}` (E x I), filled in."""
        filled = [arg.replace("{epochs}", str(self.epochs)) for arg in self.args]
        if self.iterations_per_epoch is None:
            return filled
        return [arg.replace("{iterations}", str(self.epochs * self.iterations_per_epoch)) for arg in filled]


def parse_spec(document: Any) -> JobSpec:
    """A `JobSpec` from a loaded YAML or JSON document; raises `UsageError` with the right spelling."""
    if not isinstance(document, dict):
        raise UsageError("labapex.yaml must be a mapping of fields, for example 'script: train.py'")
    known = set(JobSpec.model_fields)
    for key in document:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; known fields: {', '.join(sorted(known))}"
            raise UsageError(f"unknown field {str(key)!r}{hint}")
    try:
        return JobSpec.model_validate(document)
    except ValidationError as error:
        raise UsageError(explain(error)) from None


class Part(Message):
    """One uploaded file of a job: where it lies in the bundle and which bytes it has."""

    path: BundlePath
    digest: Digest
    size: int = Field(ge=0, le=2**40)


class Bundle(Message):
    """All files of a job. Paths of data files begin with the spec's `data` folder; order is by path."""

    code: tuple[Part, ...] = Field(min_length=1, max_length=MAX_FILES)
    data: tuple[Part, ...] = Field(default=(), max_length=MAX_FILES)
