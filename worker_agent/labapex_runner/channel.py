"""The executable's one way out: the agent's unix socket, with messages as length-prefixed msgpack.

Never blocks. The agent may be killed and come back at any time, so a broken connection is an everyday event.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from labapex.errors import MalformedInput
from labapex.protocol import frames
from labapex.protocol.canonical import Message
from labapex.protocol.packing import pack

BACKLOG = 4 << 20  # bytes that may wait in memory for the socket; what is beyond stays in the log
_LENGTH = struct.Struct(">I")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
ToExecutable = frames.Welcome | frames.Ack | frames.Nack | frames.FinAck | frames.KeyRelease | frames.Refusal


class Channel:
    """A connection that is made again whenever it breaks. Times are monotonic seconds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._out = bytearray()
        self._in = bytearray()
        self._pause = _FIRST_PAUSE
        self.retry_at = 0.0

    @property
    def socket(self) -> socket.socket | None:
        return self._socket

    @property
    def wants_write(self) -> bool:
        return bool(self._out)

    @property
    def room(self) -> int:
        """Bytes that may be queued now; 0 without a connection."""
        return max(0, BACKLOG - len(self._out)) if self._socket is not None else 0

    def connect(self, now: float) -> bool:
        """Try to connect if it is time to; True if there is a new connection."""
        if self._socket is not None or now < self.retry_at:
            return False
        attempt = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            attempt.setblocking(False)
            attempt.connect(str(self._path))
        except OSError:  # no agent at the other end just now
            attempt.close()
            self.broken(now)
            return False
        self._socket = attempt
        return True

    def broken(self, now: float) -> None:
        """Drop the connection and what was on its way; try again after a pause that grows, with jitter."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._out.clear()
        self._in.clear()
        self.retry_at = now + self._pause * random.uniform(0.5, 1.5)  # noqa: S311  (not a secret)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def send(self, message: Message) -> None:
        """Queue a message; `flush` writes it."""
        data = pack(message)
        self._out += _LENGTH.pack(len(data)) + data

    def flush(self, now: float) -> None:
        """Write what the socket takes."""
        if self._socket is None or not self._out:
            return
        try:
            sent = self._socket.send(self._out)
        except BlockingIOError:
            return
        except OSError:
            self.broken(now)
            return
        del self._out[:sent]

    def receive(self, now: float) -> Iterator[ToExecutable]:
        """The messages that have come. A connection that ended or talks nonsense is dropped."""
        if self._socket is None:
            return
        try:
            data = self._socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.broken(now)
            return
        self._in += data
        while len(self._in) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._in)
            if length > frames.MAX_MESSAGE:
                raise MalformedInput(f"the agent announces a message of {length} bytes")
            if len(self._in) < _LENGTH.size + length:
                return
            message = frames.to_executable(bytes(self._in[_LENGTH.size : _LENGTH.size + length]))
            del self._in[: _LENGTH.size + length]
            self._pause = _FIRST_PAUSE  # the other end is alive and knows the protocol
            yield message
