"""Which packages a script runs with: what its client asks for, and the lock that came of it.

A requirement is a line of PEP 508 without an address. A lock names every wheel with its hash; what the hosts bring along
(torch, and what it runs with) and what is frozen into the runner is not in it, but `given` to it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version
from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from labapex.protocol.canonical import Digest, Message, digest

MAX_REQUIREMENTS = 64
MAX_REQUIREMENT_LENGTH = 300
MAX_WHEELS = 200
MAX_WHEEL_BYTES = 4 << 30
PACKAGES_SETTING = "LABAPEX_PACKAGES"
"""Where a runner finds the packages of its job: a folder, named in its environment; unset without requirements."""
OURS = "labapex"


def requirement(text: Any) -> str:
    """A requirement in its normal form. Raises `ValueError` with what to do."""
    if not isinstance(text, str):
        raise ValueError("must be text, for example 'einops>=0.8'")
    if len(text) > MAX_REQUIREMENT_LENGTH or not text.isascii() or not text.isprintable() or "$" in text:
        raise ValueError(f"must be one line of at most {MAX_REQUIREMENT_LENGTH} plain characters, without '$'")
    try:
        found = Requirement(text)
    except InvalidRequirement:
        raise ValueError(
            "must be a name and versions as in 'einops>=0.8' (PEP 508); options, files and folders are not taken"
        ) from None
    if found.url is not None:
        raise ValueError("must not name an address; packages come from the platform's index, by name")
    found.name = canonicalize_name(found.name)
    if found.name == OURS:
        raise ValueError("names labapex, which is in every executable; leave it out")
    return str(found)


RequirementLine = Annotated[str, BeforeValidator(requirement)]


class Package(Message):
    """A distribution. Both fields in their normal form (PEP 503, PEP 440)."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=200)]
    version: Annotated[str, StringConstraints(max_length=100)]

    @model_validator(mode="after")
    def _normal(self) -> Package:
        try:
            version = str(Version(self.version))
        except InvalidVersion:
            raise ValueError(f"{self.version!r} is no version") from None
        if (canonicalize_name(self.name), version) != (self.name, self.version):
            raise ValueError("name and version must be in their normal form")
        return self

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class Wheel(Package):
    """One file of a lock."""

    file: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.+!-]+\.whl$", max_length=300)]
    sha256: Digest
    size: int = Field(gt=0, le=MAX_WHEEL_BYTES)

    @model_validator(mode="after")
    def _named_so(self) -> Wheel:
        try:
            name, version, _, _ = parse_wheel_filename(self.file)
        except (InvalidWheelFilename, InvalidVersion):
            raise ValueError(f"{self.file!r} is no name of a wheel") from None
        if (name, str(version)) != (self.name, self.version):
            raise ValueError(f"{self.file} is not a wheel of {self.name} {self.version}")
        return self


class Lock(Message):
    """Exactly what is installed for a job, in the order of names; each name once. Without anything: no requirements."""

    format: Literal[1] = 1
    python: Annotated[str, StringConstraints(pattern=r"^(3\.[0-9]{1,2})?$")] = ""  # "3.11", for which it was made
    given: tuple[Package, ...] = Field(default=(), max_length=1000)  # what it was made to fit, and does not hold
    wheels: tuple[Wheel, ...] = Field(default=(), max_length=MAX_WHEELS)

    @model_validator(mode="after")
    def _in_order(self) -> Lock:
        for packages in (self.given, self.wheels):
            if any(one.name >= other.name for one, other in pairwise(packages)):
                raise ValueError("packages must stand in the order of their names, each once")
        if both := {p.name for p in self.given} & {w.name for w in self.wheels}:
            raise ValueError(f"{min(both)} is both given and locked")
        return self

    @property
    def size(self) -> int:
        """Bytes of all wheels."""
        return sum(wheel.size for wheel in self.wheels)

    @property
    def supplies_torch(self) -> bool:
        """It is no job's: it brings what the packages of jobs are given."""
        return any(wheel.name == "torch" for wheel in self.wheels)


NOTHING: str = digest(Lock())
"""`Contract.requirements` of a job that asks for no packages."""
