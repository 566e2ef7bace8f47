"""Whose is a model? Every reader of the log comes to the same end, and the thief's claim stands behind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.labapex.certified import KEYS, LOG_KEY, MODEL, VERDICT_KEY, a_statement

from labapex.certificate import Statement, certificate_digest, seal
from labapex.claims import Claim, Entry, Ruled, examine, rule

NOON = 1_790_000_000.0


def stated(contracted: float = 0, parents: tuple[str, ...] = (), **more: Any) -> Statement:
    at = NOON + contracted
    return a_statement(contracted_at=at, issued_at=at + 600, parents=parents, **more)


def named(statement: Statement) -> str:
    return certificate_digest(statement.payload())


def ruled(*entries: Statement | None, others: dict[str, int] | None = None) -> list[Ruled]:
    """The ruling on statements in the log's order; for None there is a certificate that the platform never signed."""
    places = {named(each): index for index, each in enumerate(entries) if each} | (others or {})
    claims = []
    for index, each in enumerate(entries):
        envelope = seal(each or a_statement(), VERDICT_KEY if each else LOG_KEY)
        claims.append(examine(MODEL, Entry(index, envelope), KEYS.verdict, places))
    return rule(claims, {named(each): each.predicate.parents for each in entries if each})


def order(found: list[Ruled]) -> list[int]:
    assert [each.holds for each in found] == [True, *[False] * (len(found) - 1)]
    return [each.claim.index for each in found]


def test_the_only_claim_holds() -> None:
    found = ruled(stated())
    assert order(found) == [0]
    assert found[0].because == "it is the only claim that stands"


def test_a_thief_whose_certificate_came_first_stands_behind_the_older_terms() -> None:
    """A host sees the finished weights and hurries to have them certified before the client's job is settled."""
    found = ruled(stated(contracted=500), stated(contracted=0))
    assert order(found) == [1, 0]
    assert "fixed first" in found[0].because
    assert "fixed after those of entry 1" in found[1].because


def test_of_equal_terms_the_earlier_entry_holds() -> None:
    found = ruled(stated(job="00000000-0000-0000-0000-000000000002"), stated())
    assert order(found) == [0, 1]
    assert "stands before it in the log" in found[1].because


def test_who_says_that_it_came_from_another_claim_stands_behind_it() -> None:
    first = stated(contracted=100)
    between = stated(contracted=150, model="0" * 64, parents=(named(first),))
    copy = stated(contracted=50, parents=(named(between),))  # though its terms are older
    places = {named(first): 0, named(between): 1, named(copy): 2}
    claims = [examine(MODEL, Entry(place, seal(each, VERDICT_KEY)), KEYS.verdict, places) for each, place in
              ((first, 0), (copy, 2))]  # fmt: skip
    found = rule(claims, {named(each): each.predicate.parents for each in (first, between, copy)})
    assert order(found) == [0, 2]
    assert found[0].because == "every other claim says itself that it came from it"
    assert found[1].because == "it says itself that it came from entry 0"


@pytest.mark.parametrize("place", [None, 0, 1, 5], ids=["nowhere", "itself", "itself again", "later"])
def test_a_parent_that_was_not_in_the_log_before_makes_a_claim_invalid(place: int | None) -> None:
    parent = "ab" * 32
    others = {} if place is None else {parent: max(place, 1)}
    found = ruled(stated(contracted=9), stated(contracted=0, parents=(parent,)), others=others)
    assert order(found) == [0, 1]
    assert "parent that was not in the log" in found[1].because


def test_what_the_platform_never_signed_does_not_stand() -> None:
    found = ruled(None, stated())
    assert order(found) == [1, 0]
    assert "does not stand" in found[1].because
    assert found[1].claim.statement is None


def test_a_certificate_of_another_model_is_no_claim() -> None:
    found = ruled(stated(model="0" * 64), stated(contracted=9))
    assert order(found) == [1, 0]
    assert "another model" in found[1].because


def test_terms_that_are_younger_than_their_certificate_are_none() -> None:
    found = ruled(a_statement(contracted_at=NOON + 1, issued_at=NOON), stated(contracted=50))
    assert order(found) == [1, 0]


def test_where_no_claim_stands_none_holds() -> None:
    assert [each.holds for each in ruled(None, None)] == [False, False]


def test_names_that_go_round_in_a_circle_come_to_an_end() -> None:
    one, two = (Claim(index, digest, stated(contracted=index, parents=(other,)), None)
                for index, digest, other in ((0, "aa" * 32, "bb" * 32), (1, "bb" * 32, "cc" * 32)))  # fmt: skip
    found = rule([one, two], {"cc" * 32: ["dd" * 32], "dd" * 32: ["cc" * 32], "bb" * 32: ["cc" * 32]})
    assert order(found) == [1, 0]


@given(st.permutations(range(4)), st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_the_order_in_which_claims_are_read_decides_nothing(reading: list[int], times: list[int]) -> None:
    statements = [stated(contracted=at, code=f"{index:064x}") for index, at in enumerate(times)]
    places = {named(each): index for index, each in enumerate(statements)}
    claims = [examine(MODEL, Entry(index, seal(each, VERDICT_KEY)), KEYS.verdict, places) for index, each in
              enumerate(statements)]  # fmt: skip
    assert order(rule([claims[i] for i in reading], {})) == [i for _, i in sorted(zip(times, range(4), strict=True))]
