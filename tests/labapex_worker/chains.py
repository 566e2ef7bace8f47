"""Frames of a log as an executable makes them, without encryption: the agent cannot look inside anyway."""

from __future__ import annotations

from uuid import UUID, uuid4

from labapex.protocol.contract import Environment
from labapex.protocol.frames import Data, Fin, Grant, KeyRequest, frame_hash, genesis


def a_grant(name: str = "digits", size: int = 1) -> Grant:
    return Grant(lease=uuid4(), job=uuid4(), name=name, token="token", size=size, threads=1)


def a_key_request(lease: UUID, byte: int = 1) -> KeyRequest:
    environment = Environment(python="3.11", torch="2.13", device="cpu: x", capability="AVX2", threads=1)
    return KeyRequest(lease=lease, hpke_key=bytes([byte]) * 32, signing_key=bytes([byte]) * 32, environment=environment)


def a_frame(lease: UUID, seq: int, first: int, prev: bytes, n: int = 2, payload: bytes | None = None) -> Data:
    payload = b"payload %d" % seq if payload is None else payload
    hashed = frame_hash(lease=lease, seq=seq, first=first, n=n, prev=prev, payload=payload)
    return Data(lease=lease, seq=seq, first=first, n=n, prev=prev, payload=payload, hash=hashed)


def a_chain(lease: UUID, length: int, n: int = 2) -> list[Data]:
    frames: list[Data] = []
    for seq in range(length):
        frames.append(a_frame(lease, seq, seq * n, frames[-1].hash if frames else genesis(lease), n))
    return frames


def a_fin(lease: UUID, frames: list[Data]) -> Fin:
    head = frames[-1].hash if frames else genesis(lease)
    total = sum(frame.n for frame in frames)
    return Fin(lease=lease, seq=len(frames), total=total, head=head, signature=bytes(64))
