from __future__ import annotations

from tests.labapex.cli.document import DOCUMENT, codes, session, whole

from labapex import errors


def test_the_document_shows_what_the_commands_do() -> None:
    text = DOCUMENT.read_text()
    assert text.count("<!-- generated: ") == 3
    assert whole(text) == text, "run `python -m tests.labapex.cli.document`"


def test_every_error_with_an_exit_code_of_its_own_is_in_the_table() -> None:
    table = codes()
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.LabApexError):
            assert f"| {kind.exit_code} | `{name}` |" in table


def test_the_session_is_the_same_each_time_it_is_made() -> None:
    assert session() == session()
