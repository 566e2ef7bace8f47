from __future__ import annotations

from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from labapex.protocol.frames import fin_bytes, frame_hash, frame_header, genesis, hello_bytes

_fields = st.fixed_dictionaries(
    {
        "lease": st.uuids(),
        "seq": st.integers(0, 2**63 - 1),
        "first": st.integers(0, 2**63 - 1),
        "n": st.integers(0, 4096),
        "prev": st.binary(min_size=32, max_size=32),
        "payload": st.binary(max_size=64),
    }
)


@given(_fields, _fields, st.sampled_from(["lease", "seq", "first", "n", "prev", "payload"]))
def test_a_change_of_any_field_changes_the_hash(one: dict[str, Any], other: dict[str, Any], name: str) -> None:
    changed = {**one, name: other[name]}
    assert (frame_hash(**one) == frame_hash(**changed)) == (one[name] == other[name])


@given(_fields)
def test_the_header_has_one_length_so_no_field_runs_into_the_next(fields: dict[str, Any]) -> None:
    header = {name: value for name, value in fields.items() if name != "payload"}
    assert len(frame_header(**header)) == 84


@given(st.uuids(), st.uuids())
def test_each_lease_begins_its_own_chain(one: UUID, other: UUID) -> None:
    assert (genesis(one) == genesis(other)) == (one == other)
    assert len(genesis(one)) == 32


def test_what_is_signed_for_one_purpose_can_serve_no_other() -> None:
    lease, head = UUID(int=1), b"h" * 32
    starts = {
        frame_header(lease=lease, seq=0, first=0, n=0, prev=head)[:16],
        fin_bytes(lease=lease, seq=0, total=0, head=head)[:16],
        hello_bytes(worker=lease, nonce=head)[:16],
    }
    assert len(starts) == 3
