"""Two certificates over one model: whose is it? The rule is pure, so that anyone who reads the log comes to the same end.

1. Validity: a claim stands if its envelope opens under the platform's key, it is about this model, the log does
   not revoke it, and each parent that it names was entered in the log before it.
2. Provenance: a claim that names another claim of this model among its ancestors says itself that it came from there.
3. Time: of the rest, the claim whose terms were fixed first. A result follows from code, data and a seed that is drawn
   when the terms are fixed; nobody can hand in somebody else's model as data under terms that were fixed before that
   model's own. So the later terms are the copy's. Where two are equal, the place in the log decides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from labapex.certificate import Envelope, Statement, certificate_digest, open_envelope
from labapex.errors import MalformedInput

_MAX_ANCESTORS = 10_000


@dataclass(frozen=True)
class Entry:
    """What the log holds at `index`."""

    index: int
    envelope: Envelope


@dataclass(frozen=True)
class Claim:
    """A certificate over the model in question. `problem`: why it does not stand; None if it does."""

    index: int
    digest: str | None
    statement: Statement | None
    problem: str | None


@dataclass(frozen=True)
class Ruled:
    """A claim, and in words why it stands where it stands."""

    claim: Claim
    holds: bool
    because: str


def examine(
    model: str, entry: Entry, public_key: bytes, places: Mapping[str, int], revoked: Collection[str] = ()
) -> Claim:
    """A log entry as a claim to the model with this SHA-256. `places` gives the index of each certificate by digest; `revoked`
    holds the digests of those that the log takes back."""
    try:
        statement = open_envelope(entry.envelope, public_key)
    except MalformedInput as error:
        return Claim(entry.index, None, None, str(error))
    digest = certificate_digest(statement.payload())
    problem = None
    if model not in {each.digest.sha256 for each in statement.subject}:
        problem = "it is a certificate of another model"
    elif digest in revoked:
        problem = "the log revokes it: a dispute was ruled against its job"
    elif any(places.get(parent, entry.index) >= entry.index for parent in statement.predicate.parents):
        problem = "it names a parent that was not in the log before it"
    elif statement.predicate.contracted_at > statement.predicate.issued_at:
        problem = "its terms would be younger than itself"
    return Claim(entry.index, digest, statement, problem)


def rule(claims: Sequence[Claim], parents: Mapping[str, Sequence[str]]) -> list[Ruled]:
    """All claims, the one that holds first. `parents` gives the parents of each certificate in the log by digest."""
    standing = [claim for claim in claims if claim.problem is None]
    by_digest = {claim.digest: claim for claim in standing}
    derived = {
        claim.index: origin
        for claim in standing
        if (origin := _claimed_ancestor(claim, by_digest, parents)) is not None
    }
    own = sorted((claim for claim in standing if claim.index not in derived), key=_terms)
    ruled = []
    for place, claim in enumerate(own):
        if place == 0:
            ruled.append(Ruled(claim, True, _why_first(claim, own[1:], derived)))
        else:
            first = own[0]
            why = (
                f"its terms were fixed after those of entry {first.index}, and it does not say that it came from there"
            )
            if _time(claim) == _time(first):
                why = f"its terms are as old as those of entry {first.index}, which stands before it in the log"
            ruled.append(Ruled(claim, False, why))
    ruled.extend(
        Ruled(claim, False, f"it says itself that it came from entry {derived[claim.index].index}")
        for claim in sorted((each for each in standing if each.index in derived), key=_terms)
    )
    ruled.extend(
        Ruled(claim, False, f"it does not stand: {claim.problem}")
        for claim in sorted(claims, key=lambda each: each.index)
        if claim.problem is not None
    )
    return ruled


def _why_first(claim: Claim, later: Sequence[Claim], derived: Mapping[int, Claim]) -> str:
    if not later and not derived:
        return "it is the only claim that stands"
    if not later:
        return "every other claim says itself that it came from it"
    if any(_time(other) == _time(claim) for other in later):
        return "its terms are the oldest, and it stands first in the log"
    return "its terms were fixed first: the code, the data and the seed that decide this model"


def _claimed_ancestor(
    claim: Claim, by_digest: Mapping[str | None, Claim], parents: Mapping[str, Sequence[str]]
) -> Claim | None:
    """The claim among this one's ancestors that it reaches first."""
    assert claim.statement is not None
    waiting, seen = list(claim.statement.predicate.parents), set[str]()
    while waiting and len(seen) < _MAX_ANCESTORS:
        digest = waiting.pop(0)
        if digest in seen:
            continue
        seen.add(digest)
        if (found := by_digest.get(digest)) is not None:
            return found
        waiting.extend(parents.get(digest, ()))
    return None


def _terms(claim: Claim) -> tuple[float, int]:
    return _time(claim), claim.index


def _time(claim: Claim) -> float:
    assert claim.statement is not None
    return claim.statement.predicate.contracted_at
