"""A program that plays a conversation that was written beforehand, inside the sandbox in place of a frozen runner.

It needs next to nothing of Python, so it lives a moment after it was started. `fake_executable.py` is the one to take
where the contents matter. The score is a msgpack map:

    open request fin    messages, packed; no `fin`: it exits with 3 once all of its frames are acknowledged
    frames              messages, packed
    pause               frames before it waits for a file `go` in its folder
    files               name in its folder -> bytes, written first
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import msgpack

REFUSED = 4


class Player:
    def __init__(self, score: dict[str, Any], folder: Path) -> None:
        self.score, self.folder = score, folder
        self.frames: list[bytes] = score["frames"]
        self.keys = False
        self.made = self.kept = 0  # frames; those that the agent has
        self.socket: socket.socket | None = None

    def play(self) -> int:
        for name, data in self.score["files"].items():
            place = self.folder / name
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(data)
        while True:
            if self.socket is None:
                self.connect()
            elif select.select([self.socket], [], [], 0.02)[0]:
                try:
                    if (status := self.hear(self.message())) is not None:
                        return status
                except OSError:
                    self.socket = None
            elif self.keys and self.made < len(self.frames) and (self.folder / "go").exists():
                self.make(len(self.frames))
            if "fin" not in self.score and self.kept == len(self.frames):
                print("Traceback: it went wrong", file=sys.stderr)
                return 3

    def connect(self) -> None:
        attempt = socket.socket(socket.AF_UNIX)
        try:
            attempt.connect(os.environ["LABAPEX_AGENT_SOCKET"])
        except OSError:
            attempt.close()
            time.sleep(0.02)
            return
        self.socket = attempt
        self.say(self.score["open"])
        if not self.keys:
            self.say(self.score["request"])

    def hear(self, message: dict[str, Any]) -> int | None:
        match message["type"]:
            case "key-release" if not self.keys:
                self.keys = True
                self.make(self.score["pause"])
            case "ack":
                self.kept = max(self.kept, message["seq"] + 1)
            case "nack":
                self.tell(message["expected"])
            case "welcome" if self.keys:
                self.kept = max(self.kept, message["seq"])
                self.tell(message["seq"])
            case "finack":
                return 0
            case "refusal":
                return REFUSED
        return None

    def make(self, stop: int) -> None:
        first, self.made = self.made, stop
        self.tell(first)

    def tell(self, first: int) -> None:
        """The log from one of its frames on."""
        for frame in self.frames[first : self.made]:
            self.say(frame)
        if self.made == len(self.frames) and "fin" in self.score:
            self.say(self.score["fin"])

    def say(self, data: bytes) -> None:
        try:
            if self.socket is not None:
                self.socket.sendall(struct.pack(">I", len(data)) + data)
        except OSError:
            self.socket = None  # the agent says what it has at the next one

    def message(self) -> dict[str, Any]:
        (size,) = struct.unpack(">I", self.exactly(4))
        found: dict[str, Any] = msgpack.unpackb(self.exactly(size))
        return found

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if self.socket is None or not (piece := self.socket.recv(size - len(data))):
                raise ConnectionResetError
            data += piece
        return data


if __name__ == "__main__":
    written = msgpack.unpackb(Path(sys.argv[1]).read_bytes())
    raise SystemExit(Player(written, Path(os.environ["LABAPEX_JOB_FOLDER"])).play())
