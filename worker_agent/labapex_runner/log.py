"""The sending end of a lease's log, as a pure machine: no socket, no clock, no thread.

It numbers, seals and chains frames, keeps each until the receiver has it durably, and says what to send next. Whatever
the socket loses, doubles or reorders, the receiver ends with the exact log: a frame leaves memory only when an
acknowledgement names it together with the hash that the chain has there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from uuid import UUID

from labapex import sealing
from labapex.errors import MalformedInput, Tampered
from labapex.protocol.frames import Ack, Data, Fin, FinAck, Nack, Open, Welcome, fin_bytes, genesis
from labapex.protocol.records import FrameBody


class Log:
    """One lease's log, from the first frame to the receiver's `FinAck`."""

    def __init__(self, lease: UUID, run_key: bytes, first: int = 0) -> None:
        """`first`: the iteration with which it begins, where another host has made those before."""
        self._lease = lease
        self._run_key = run_key
        self._kept: deque[Data] = deque()  # frames base .. next - 1
        self._base = 0
        self._base_head = genesis(lease)  # hash of frame base - 1
        self._head = self._base_head
        self._first = first  # the next iteration
        self._fin: Fin | None = None
        self._open_due = False
        self._cursor: int | None = None  # next frame to send; None until the receiver said what it holds
        self._fin_sent = False
        self.complete = False

    @property
    def next(self) -> int:
        """The number of the next frame."""
        return self._base + len(self._kept)

    @property
    def drained(self) -> bool:
        """Whether the receiver holds every frame."""
        return not self._kept

    def append(self, body: FrameBody) -> None:
        """Seal one more frame. Raises `MalformedInput` for a body that is too large, and leaves the log as it was."""
        if self._fin is not None:
            raise RuntimeError("the log is finished")
        frame = sealing.seal_frame(
            self._run_key, lease=self._lease, seq=self.next, first=self._first, prev=self._head, body=body
        )
        self._kept.append(frame)
        self._head = frame.hash
        self._first += frame.n

    def finish(self, sign: Callable[[bytes], bytes]) -> None:
        """No more frames: sign the head."""
        signature = sign(fin_bytes(lease=self._lease, seq=self.next, total=self._first, head=self._head))
        self._fin = Fin(lease=self._lease, seq=self.next, total=self._first, head=self._head, signature=signature)

    def connected(self) -> None:
        """There is a new connection; nothing is known of what the receiver holds."""
        self._open_due, self._cursor, self._fin_sent = True, None, False

    def retry(self) -> None:
        """Nothing was heard for long: ask and send again."""
        if self._cursor is None:
            self._open_due = True
        else:
            self._cursor, self._fin_sent = self._base, False

    def outgoing(self, limit: int) -> Iterator[Open | Data | Fin]:
        """What is to be sent now, until about `limit` bytes of payload were given out."""
        if self._open_due:
            self._open_due = False
            yield Open(lease=self._lease)
        while self._cursor is not None and self._cursor < self.next and limit > 0:
            frame = self._kept[self._cursor - self._base]
            self._cursor += 1
            limit -= len(frame.payload) + 256
            yield frame
        if self._cursor == self.next and self._fin is not None and not self._fin_sent:
            self._fin_sent = True
            yield self._fin

    def receive(self, message: Welcome | Ack | Nack | FinAck) -> None:
        """Take in the receiver's word. Raises `MalformedInput` where it cannot be true of this log: reconnect then.

        Words about frames that were acknowledged before are late, and are passed over."""
        if message.lease != self._lease:
            raise MalformedInput("a message about another lease")
        if isinstance(message, FinAck):
            if self._fin is None:
                raise MalformedInput("the end was acknowledged before it was announced")
            self.complete = True
        elif isinstance(message, Nack):
            self._rewind(message.expected)
        elif isinstance(message, Ack):
            self._release(message.seq + 1, message.head)
        elif message.seq >= self._base:
            self._release(message.seq, message.head)
            self._rewind(message.seq)

    def _release(self, held: int, head: bytes) -> None:
        """The receiver holds frames 0 .. held - 1, the last of which has the hash `head`."""
        if held > self.next:
            raise MalformedInput(f"the receiver claims {held} frames; {self.next} were made")
        if held < self._base:
            return
        known = self._base_head if held == self._base else self._kept[held - 1 - self._base].hash
        if head != known:
            raise Tampered(f"the receiver holds another frame {held - 1} than was made here")
        while self._base < held:
            self._kept.popleft()
            self._base += 1
        self._base_head = known
        if self._cursor is not None:
            self._cursor = max(self._cursor, self._base)

    def _rewind(self, expected: int) -> None:
        if expected > self.next:
            raise MalformedInput(f"the receiver asks for frame {expected}; {self.next} were made")
        if expected >= self._base:
            self._cursor, self._fin_sent = expected, False
