from __future__ import annotations

from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from labapex.errors import UsageError
from labapex.protocol.spec import CREDIT, JobSpec, Part, micro_credits, parse_spec, relative_path

LEAST = {"script": "train.py", "epochs": 3, "budget": "2.5"}
FIELDS = sorted(JobSpec.model_fields)


def test_the_least_spec_has_a_default_for_everything_else() -> None:
    spec = parse_spec(LEAST)
    assert (spec.name, spec.args, spec.data, spec.checkpoint_every, spec.threads) == ("job", (), None, 10, 1)
    assert spec.budget_micro == 2_500_000


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_misspelled_by_a_letter_is_answered_with_the_right_spelling(field: str) -> None:
    for wrong in (field[:-1], field + "s", field[0] + field[2:], field.replace("_", "-").upper() + "_"):
        if wrong in FIELDS or wrong.isupper():
            continue
        with pytest.raises(UsageError, match=rf"unknown field '{wrong}'; did you mean '{field}'\?"):
            parse_spec({**LEAST, wrong: 1})


@given(st.text(max_size=30).filter(lambda key: key not in FIELDS))
def test_no_unknown_field_is_ever_ignored(key: str) -> None:
    with pytest.raises(UsageError, match="unknown field") as caught:
        parse_spec({**LEAST, key: 1})
    assert "did you mean" in str(caught.value) or "known fields: args, audit_segments" in str(caught.value)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(FIELDS), _json) | _json)
def test_any_document_is_a_spec_or_a_usage_error_of_one_line(document: Any) -> None:
    try:
        spec = parse_spec(document)
    except UsageError as error:
        complaint = str(error)
    else:
        complaint = ""
        assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert "\n" not in complaint


@given(st.decimals(min_value=0, max_value=10**9, places=6).filter(lambda d: d > 0))
def test_a_budget_travels_exactly(budget: Decimal) -> None:
    spec = parse_spec({**LEAST, "budget": budget})
    again = JobSpec.model_validate_json(spec.model_dump_json())
    assert again.budget_micro == spec.budget_micro == budget * CREDIT


@pytest.mark.parametrize("budget", ["0", "-1", "0.0000001", "NaN", "Infinity", "lots", None, 10**10])
def test_a_budget_that_is_no_amount_of_credits_is_refused(budget: Any) -> None:
    with pytest.raises(UsageError, match="budget"):
        parse_spec({**LEAST, "budget": budget})


@pytest.mark.parametrize("memory", [24, 24.0, "24", "24GB", "24 gb", " 24G "])
def test_memory_is_in_gigabytes_however_they_are_written(memory: Any) -> None:
    assert parse_spec({**LEAST, "min_memory": memory}).min_memory == 24.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_memory", "24 MB"),
        ("min_memory", -1),
        ("max_price", 0),
        ("max_price", "0.0000001"),
        ("device", " "),
        ("min_speed", "nan"),
    ],
)
def test_a_constraint_that_is_none_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field):
        parse_spec({**LEAST, field: value})


def test_micro_credits_say_what_they_want() -> None:
    assert micro_credits("2.5") == 2_500_000
    with pytest.raises(ValueError, match=r"for example 2\.5"):
        micro_credits("two")
    with pytest.raises(ValueError, match="six decimals"):
        micro_credits("0.0000001")


@given(st.text(max_size=40))
def test_an_accepted_path_stays_inside_the_bundle(text: str) -> None:
    try:
        path = relative_path(text)
    except ValueError:
        return
    assert path == text
    joined = PurePosixPath("/bundle") / path
    assert not PurePosixPath(path).is_absolute()
    assert ".." not in joined.parts
    assert not any(ord(c) < 32 for c in path)


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "a\\b", "a\nb", "a" * 401]
)
def test_a_path_that_could_lead_elsewhere_or_has_two_spellings_is_refused(path: str) -> None:
    with pytest.raises(ValueError):
        relative_path(path)
    with pytest.raises(ValueError):
        Part(path=path, digest="0" * 64, size=0)


@pytest.mark.parametrize("path", [None, 1, b"train.py", [], {}])
def test_a_path_that_is_no_text_is_refused_like_any_other_bad_path(path: Any) -> None:
    with pytest.raises(ValidationError):
        Part(path=path, digest="0" * 64, size=0)


def test_the_script_must_be_a_python_file() -> None:
    with pytest.raises(UsageError, match="must be a Python file"):
        parse_spec({**LEAST, "script": "train.sh"})


def test_epochs_and_iterations_are_filled_into_the_arguments() -> None:
    args = ["--epochs", "{epochs}", "--max_iters={iterations}", "{other}"]
    declared = parse_spec({**LEAST, "args": args, "iterations_per_epoch": 20})
    assert declared.arguments() == ["--epochs", "3", "--max_iters=60", "{other}"]
    assert parse_spec({**LEAST, "args": args}).arguments()[2] == "--max_iters={iterations}"
