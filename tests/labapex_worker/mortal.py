"""Daemons that die by their own hand at a named moment: the product's code, and a `kill -9` between two of its acts.

An act is whatever the daemon does for a lease: an effect of the session (`effects.py`), by the agent where it is
remembered and by the daemon where it is carried out, or a change of the spool. A moment is `before` or `after` an act in
the phase that is on the disk, written

    running: ToPlatform Open: after

Before an act that follows another one at once it is the same moment as after that one, and is left out.

This program imports everything once and then forks a daemon for each order that it reads, `{"home", "moment", "trace",
"log"}`: it answers with the daemon's pid, and, once it has ended, with its status. `trace` is a file that moments are
appended to, `log` one for what the daemon says.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from labapex import sandbox
from labapex_worker import connection, daemon, effects, session
from labapex_worker.agent import Agent, Errand, ToExecutable, ToPlatform
from labapex_worker.config import Home
from labapex_worker.spool import Spool

REMEMBERED = (effects.Accept, effects.Move, effects.KeepRelease)
CHANGES = ("keep_request", "append", "finish", "acknowledge", "forget")
"""Of the spool, but for those that are effects."""

_fate: Callable[[str], None]


class MortalSpool(Spool):
    def phase(self, lease: UUID) -> str:
        held = self.lease(lease)
        return "no lease" if held is None else held.phase.value


def _mortal(name: str) -> Callable[..., Any]:
    change = getattr(Spool, name)

    def changed(spool: MortalSpool, about: Any, *rest: Any) -> Any:
        lease = about if isinstance(about, UUID) else about.lease
        act = f"{spool.phase(lease)}: spool.{name}"
        _fate(f"{act}: before")
        result = change(spool, about, *rest)
        _fate(f"{act}: after")
        return result

    return changed


for _name in CHANGES:
    setattr(MortalSpool, _name, _mortal(_name))


class MortalAgent(Agent):
    _spool: MortalSpool

    def _do(self, wanted: list[effects.Effect]) -> list[Errand]:
        errands = []
        for effect in wanted:
            _fate(f"effect {type(effect).__name__}")
            if not isinstance(effect, REMEMBERED):
                errands += super()._do([effect])
                continue
            to = f" {effect.phase.value}" if isinstance(effect, effects.Move) else ""
            act = f"{_phase(self._spool, effect)}: {type(effect).__name__}{to}"
            _fate(f"{act}: before")
            errands += super()._do([effect])
            _fate(f"{act}: after")
        return errands


class MortalDaemon(daemon.Daemon):
    _spool: MortalSpool

    def _do(self, errands: list[Errand]) -> None:
        for errand in errands:
            what = type(errand).__name__
            if isinstance(errand, ToPlatform | ToExecutable):
                what += f" {type(errand.message).__name__}"
            act = f"{_phase(self._spool, errand)}: {what}"
            _fate(f"{act}: before")
            super()._do([errand])
            _fate(f"{act}: after")


def _phase(spool: MortalSpool, what: Any) -> str:
    """The phase that is on the disk of the lease that an effect or an errand is about."""
    about = next((part for name in ("grant", "release", "message") if (part := getattr(what, name, None))), what)
    lease = getattr(about, "lease", None) or getattr(what, "lease", None)
    return spool.phase(lease) if isinstance(lease, UUID) else "no lease"


def live(home: Home, moment: str, trace: Path) -> None:
    """Be a daemon, up to that moment."""
    global _fate
    told = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    acted = False  # in this turn of the loop

    def turn() -> None:
        nonlocal acted
        acted = False

    def fate(now: str) -> None:
        nonlocal acted
        if acted and now.endswith("before") and now != moment:
            return
        os.write(told, f"{now}\n".encode())
        if now == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        if not acted and now.endswith("after"):
            acted = True
            asyncio.get_running_loop().call_soon(turn)

    _fate = fate
    daemon.run(home, slots=1, once=False)


def main() -> None:
    daemon.Agent, daemon.Daemon, daemon.Spool = MortalAgent, MortalDaemon, MortalSpool  # type: ignore[misc]
    daemon.TICK_SECONDS = 0.02
    session.RETRY_SECONDS = 0.3
    connection.FIRST_PAUSE = 0.02
    sandbox.available()  # tried out once for all of them
    for order in map(json.loads, sys.stdin):
        if (pid := os.fork()) == 0:
            log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for descriptor, of in ((0, nothing), (1, log), (2, log)):
                os.dup2(of, descriptor)
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
            live(Home(Path(order["home"])), order["moment"], Path(order["trace"]))
            sys.exit()
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
