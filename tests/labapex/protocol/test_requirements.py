from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from pydantic import ValidationError

from labapex.errors import UsageError
from labapex.protocol.canonical import canonical, digest, parse
from labapex.protocol.requirements import NOTHING, Lock, Package, Wheel, requirement
from labapex.protocol.spec import parse_spec

LEAST = {"script": "train.py", "epochs": 3, "budget": "2.5"}

names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,12}[A-Za-z0-9])?", fullmatch=True).filter(
    lambda name: name.lower() != "labapex"
)
versions = st.from_regex(r"(==|>=|<|~=|!=)[0-9]{1,3}\.[0-9]{1,3}", fullmatch=True)
extras = st.sampled_from(["", "[fast]", "[b,a]"])
markers = st.sampled_from(["", "; python_version < '3.12'", '; sys_platform == "linux"'])
lines = st.builds("{}{}{}{}".format, names, extras, st.lists(versions, max_size=2).map(",".join), markers)


@given(lines)
def test_a_requirement_has_one_spelling_and_means_the_same(line: str) -> None:
    plain = requirement(line)
    assert requirement(plain) == plain
    before, after = Requirement(line), Requirement(plain)
    assert (before.extras, before.specifier, str(before.marker)) == (after.extras, after.specifier, str(after.marker))


@given(st.text(max_size=60) | lines | st.builds("{}{}".format, st.sampled_from("-/.@$\\"), lines))
@example("--index-url=elsewhere")
@example("a @ file:///etc/passwd")
@example("a; '${SECRET}' > 'h'")
@example("a\n--pre")
@example("../wheel.whl")
def test_whatever_is_written_never_becomes_an_option_an_address_or_a_second_line(text: str) -> None:
    try:
        plain = requirement(text)
    except ValueError:
        return
    assert plain[0].isascii()
    assert plain[0].isalnum()
    assert plain.isprintable()
    assert "@" not in plain.partition(";")[0]
    assert "$" not in plain


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("git+https://example.org/x.git", "a name and versions"),
        ("x @ https://example.org/x-1.0-py3-none-any.whl", "must not name an address"),
        ("-r other.txt", "options, files and folders are not taken"),
        ("./x", "options, files and folders are not taken"),
        ("LabApex>=1", "leave it out"),
        ("x" * 301, "at most 300"),
    ],
)
def test_a_requirement_that_is_not_taken_says_what_to_write(line: str, advice: str) -> None:
    with pytest.raises(UsageError, match=f"requirements.0: .*{advice}"):
        parse_spec({**LEAST, "requirements": [line]})


def test_a_spec_holds_requirements_in_their_normal_form() -> None:
    spec = parse_spec({**LEAST, "requirements": ["Einops >= 0.8", "timm"]})
    assert spec.requirements == ("einops>=0.8", "timm")


def test_no_requirements_are_the_empty_lock() -> None:
    assert digest(Lock()) == NOTHING
    assert parse(Lock, canonical(Lock()), limit=1000) == Lock()


WHEEL = Wheel(name="a-b", version="1.0", file="a_b-1.0-py3-none-any.whl", sha256="00" * 32, size=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "A-B"},
        {"name": "a_b"},
        {"version": "1.00"},
        {"version": "1.1"},
        {"version": "one"},
        {"file": "../a_b-1.0-py3-none-any.whl"},
        {"file": "c-1.0-py3-none-any.whl"},
        {"file": "a_b-1.0.tar.gz"},
        {"sha256": "00"},
        {"size": 0},
        {"size": 2**40},
        {"url": "x"},
    ],
    ids=str,
)
def test_a_line_of_a_lock_that_is_not_exact_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Wheel.model_validate({**WHEEL.model_dump(), **changes})


def test_a_lock_names_each_package_once_and_in_order() -> None:
    other = Wheel(name="b", version="1.0", file="b-1.0-py3-none-any.whl", sha256="00" * 32, size=1)
    assert Lock(wheels=(WHEEL, other)).size == 2
    for wheels in ((other, WHEEL), (WHEEL, WHEEL)):
        with pytest.raises(ValidationError, match="in the order of their names"):
            Lock(wheels=wheels)
    with pytest.raises(ValidationError, match="both given and locked"):
        Lock(wheels=(WHEEL,), given=(Package(name="a-b", version="1.0"),))
