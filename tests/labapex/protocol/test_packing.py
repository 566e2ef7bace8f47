from __future__ import annotations

import uuid

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from labapex.errors import MalformedInput
from labapex.protocol import frames
from labapex.protocol.contract import Environment
from labapex.protocol.devices import Device
from labapex.protocol.frames import FromAgent, ToAgent
from labapex.protocol.packing import pack, unpack

_devices = st.builds(
    Device,
    kind=st.sampled_from(["cuda", "cpu"]),
    name=st.text(min_size=1, max_size=20),
    memory=st.none() | st.integers(0, 2**53),
    power_limit=st.none() | st.floats(0, 1000),
    ecc=st.none() | st.booleans(),
)
_ENVIRONMENT = Environment(python="3.11.2", torch="2.13.0", device="cpu: EPYC", capability="AVX2", threads=1)
_FROM_AGENT: TypeAdapter[FromAgent] = TypeAdapter(FromAgent)
_TO_AGENT: TypeAdapter[ToAgent] = TypeAdapter(ToAgent)

_hashes = st.binary(min_size=32, max_size=32)
_seqs = st.integers(0, 2**63 - 1)
_reasons = st.text(max_size=200)
_leases = st.uuids()

from_agent = st.one_of(
    st.builds(frames.Open, lease=_leases),
    st.builds(
        frames.Data,
        lease=_leases,
        seq=_seqs,
        first=_seqs,
        n=st.integers(0, 4096),
        prev=_hashes,
        payload=st.binary(),
        hash=_hashes,
    ),
    st.builds(
        frames.Fin, lease=_leases, seq=_seqs, total=_seqs, head=_hashes, signature=st.binary(min_size=64, max_size=64)
    ),
    st.builds(
        frames.KeyRequest, lease=_leases, hpke_key=_hashes, signing_key=_hashes, environment=st.just(_ENVIRONMENT)
    ),
    st.builds(
        frames.Hello,
        worker=_leases,
        signature=st.binary(min_size=64, max_size=64),
        devices=st.lists(_devices, max_size=3).map(tuple),
        leases=st.lists(_leases, max_size=3).map(tuple),
    ),
    st.builds(frames.Ready),
    st.builds(frames.Heartbeat, leases=st.lists(_leases, max_size=3).map(tuple)),
    st.builds(frames.Failed, lease=_leases, reason=_reasons),
)
to_agent = st.one_of(
    st.builds(frames.Nonce, nonce=_hashes),
    st.builds(frames.Greeting, heartbeat_seconds=st.floats(0.1, 60), leases=st.lists(_leases, max_size=3).map(tuple)),
    st.builds(
        frames.Grant,
        lease=_leases,
        job=_leases,
        name=_reasons,
        token=_reasons,
        size=_seqs,
        threads=st.integers(1, 256),
    ),
    st.builds(frames.Idle),
    st.builds(
        frames.OpenStates,
        lease=_leases,
        indices=st.lists(_seqs, max_size=5).map(tuple),
        deadline=st.floats(0, 1e12),
    ),
    st.builds(frames.Released, lease=_leases, reason=_reasons),
    st.builds(frames.Welcome, lease=_leases, seq=_seqs, next=_seqs, head=_hashes),
    st.builds(frames.Ack, lease=_leases, seq=_seqs, head=_hashes),
    st.builds(frames.Nack, lease=_leases, expected=_seqs),
    st.builds(frames.FinAck, lease=_leases),
    st.builds(frames.KeyRelease, lease=_leases, sealed=st.binary(max_size=4096)),
    st.builds(frames.Refusal, code=_reasons, message=_reasons, fatal=st.booleans(), lease=st.none() | _leases),
)


@given(from_agent)
def test_what_an_agent_says_is_what_the_platform_reads(message: FromAgent) -> None:
    assert frames.from_agent(pack(message)) == message


@given(to_agent)
def test_what_the_platform_says_is_what_an_agent_reads(message: ToAgent) -> None:
    assert frames.to_agent(pack(message)) == message


@given(from_agent, st.data())
def test_a_cut_message_is_malformed_never_another_message(message: FromAgent, data: st.DataObject) -> None:
    packed = pack(message)
    length = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(MalformedInput):
        frames.from_agent(packed[:length])


@given(from_agent, st.binary(min_size=1, max_size=8))
def test_bytes_after_a_message_are_refused(message: FromAgent, tail: bytes) -> None:
    with pytest.raises(MalformedInput):
        frames.from_agent(pack(message) + tail)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    try:
        message = frames.from_agent(data)
    except MalformedInput:
        return
    assert frames.from_agent(pack(message)) == message


def test_an_unknown_field_and_an_unknown_type_are_refused() -> None:
    documents: list[object] = [{"type": "ready", "extra": 1}, {"type": "reedy"}, {}, [], 1, None]
    for document in documents:
        with pytest.raises(MalformedInput):
            frames.from_agent(msgpack.packb(document))


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(MalformedInput):
        frames.from_agent(pack(frames.Idle()))
    with pytest.raises(MalformedInput):
        frames.to_agent(pack(frames.Ready()))
    with pytest.raises(MalformedInput):
        frames.from_executable(pack(frames.Heartbeat()))


def test_an_executable_reads_only_what_is_meant_for_it() -> None:
    ack = frames.Ack(lease=uuid.UUID(int=1), seq=0, head=b"h" * 32)
    assert frames.to_executable(pack(ack)) == ack
    with pytest.raises(MalformedInput):
        frames.to_executable(pack(frames.Released(lease=uuid.UUID(int=1), reason="")))


def test_a_message_over_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(MalformedInput, match="at most 1048576"):
        frames.from_agent(b"\xc1" * (frames.MAX_MESSAGE + 1))


def test_nesting_without_end_is_malformed_not_a_crash() -> None:
    with pytest.raises(MalformedInput):
        unpack(_FROM_AGENT, b"\x91" * 100_000, limit=1 << 20)


def test_bad_utf8_and_number_keys_are_malformed() -> None:
    for data in (b"\x81\xa4type\xa1\xff", b"\x81\x01\x02"):
        with pytest.raises(MalformedInput):
            unpack(_TO_AGENT, data, limit=100)


@pytest.mark.parametrize("seq", [-1, 2**63])
def test_a_sequence_number_that_no_database_holds_is_refused(seq: int) -> None:
    with pytest.raises(MalformedInput):
        frames.from_agent(
            msgpack.packb({"type": "fin", "lease": str(uuid.UUID(int=1)), "seq": seq, "total": 0, "head": b"h" * 32})
        )
