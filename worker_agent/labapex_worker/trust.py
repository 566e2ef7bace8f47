"""What this host believes of its platform: the root that was pinned when it enrolled, and what followed from it since.

`labapex.trust` has the rules. Here is what they need of the world: HOME/trust.json, in which the newest document and the
newest releases are remembered, and `GET /gateway/trust/`, where the platform shows what is new.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import httpx

from labapex import durable, executable, trust
from labapex.errors import LabApexError, MalformedInput, PlatformUnreachable, UsageError
from labapex.protocol.canonical import Message, parse
from labapex.protocol.manifest import Manifest
from labapex.protocol.trust import MAX_CHAIN, PublicKey, SignedRelease, TrustChain
from labapex.trust import Trust
from labapex_worker import downloads
from labapex_worker.config import Config, Home

log = logging.getLogger(__name__)

PATH = "/gateway/trust/"
MAX_MEMORY = 1 << 20


class Memory(Message):
    """HOME/trust.json. What was learnt under another root than the one that is pinned now counts for nothing."""

    pinned: PublicKey
    trust: Trust


class Keeper:
    """Keeps what is believed, on disk before anybody acts on it. For use by several threads."""

    def __init__(self, home: Home, config: Config) -> None:
        self._path, self._config = home.trust, config
        self._lock = threading.Lock()
        self._trust = load(home, config)
        self._refused: str | None = None

    @property
    def trust(self) -> Trust:
        """Raises `trust.NotTrusted` where nothing could be learnt yet."""
        if self._trust is None:
            raise trust.NotTrusted("the platform has not shown a trust document yet that this host's root key leads to")
        return self._trust

    def problem(self, now: float) -> str | None:
        """Why nothing that the platform sends could be started at `now` (Unix time); None where it could."""
        if self._refused is not None:
            return self._refused
        try:
            return self.trust.why_not(now)
        except trust.NotTrusted as error:
            return str(error)

    async def refresh(self, http: httpx.AsyncClient) -> None:
        """Learn what the platform shows now. Without an answer all stays as it was; what is refused is a `problem`."""
        try:
            data = await downloads.document(http, PATH, limit=MAX_CHAIN, what="trust document")
        except PlatformUnreachable as error:
            log.warning("%s", error)
            return
        except MalformedInput as error:
            self._refuse(error)
            return
        if data is None:
            log.warning("the platform has no trust document")
        else:
            self.learn(data)

    def learn(self, data: bytes) -> None:
        """Take in a chain of trust documents as it was sent."""
        try:
            chain = trust.read_chain(data)
            with self._lock:
                before = self._trust
                after = trust.begin(self._config.root, chain) if before is None else before.follow(chain)
                if after != before:
                    self._keep(after)
        except LabApexError as error:
            self._refuse(error)
        else:
            self._refused = None

    def admit(self, path: Path, now: float) -> Manifest:
        """The manifest of an executable whose bytes were verified before, if it may still be started. Raises `Tampered`."""
        return executable.authorised(executable.inspect(path), self.trust, self._config.worker, now)

    def saw(self, release: SignedRelease) -> None:
        """Remember a release that was accepted: older ones are refused from now on."""
        with self._lock:
            before = self.trust
            after = before.saw(release)
            if after != before:
                self._keep(after)

    def _refuse(self, error: Exception) -> None:
        if self._refused != str(error):
            log.error("the platform's trust documents are refused: %s", error)
        self._refused = str(error)

    def _keep(self, after: Trust) -> None:
        if self._trust is None or after.document != self._trust.document:
            log.info("trust document %d of %s", after.document.version, trust.fingerprint(after.root))
        save(self._path, Memory(pinned=self._config.root, trust=after))
        self._trust = after


def load(home: Home, config: Config) -> Trust | None:
    """What is remembered. Raises `UsageError` for a file that was damaged."""
    try:
        memory = parse(Memory, home.trust.read_bytes(), limit=MAX_MEMORY)
    except FileNotFoundError:
        return None
    except MalformedInput as error:
        raise UsageError(
            f"{home.trust} cannot be used: {error}; remove it to begin anew from the root key that was pinned"
        ) from None
    return memory.trust if memory.pinned == config.root else None


def save(path: Path, memory: Memory) -> None:
    durable.write(path, memory.model_dump_json(indent=2).encode())


def pin(root: bytes, chain: TrustChain) -> Memory:
    """What a host remembers first. Raises `trust.NotTrusted` where the chain does not rest on that root."""
    return Memory(pinned=root, trust=trust.begin(root, chain))
