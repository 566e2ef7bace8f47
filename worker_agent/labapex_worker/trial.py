"""The worker's side of speed trials: one program in the sandbox, for as long as the platform asks it something."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import labapex
from labapex import sandbox
from labapex.errors import LabApexError
from labapex.protocol.frames import (
    TRIAL_PART,
    TrialAnswer,
    TrialBegin,
    TrialOver,
    TrialPart,
    TrialPrepare,
    TrialReady,
    TrialShow,
)
from labapex_worker import packages, supervisor, trial_program
from labapex_worker.config import Config, Home
from labapex_worker.owner import Owner
from labapex_worker.tasks import Tasks

log = logging.getLogger(__name__)


class TrialFailed(LabApexError):
    """The program that measures this host's speed ended; the message has its last words."""


class Program:
    """Started in the thread that makes it, with which it dies; its methods may wait for long."""

    def __init__(self, asked: TrialPrepare, folder: Path, config: Config, torch: Path | None) -> None:
        self.asked = asked
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        self._folder = folder
        file, library = Path(trial_program.__file__), Path(labapex.__file__).parent
        see = (*sandbox.python_paths(), file.parent, library)
        box = supervisor.confinement(config, folder, see=see, threads=os.cpu_count() or 1, torch=torch)
        line = [sys.executable, "-I", "-S", "-B", str(file), str(asked.trial), str(asked.size), str(asked.rounds)]
        line += [str(library.parent), *map(str, config.site_packages if torch is None else (torch,))]
        with (folder / "errors").open("wb") as errors:
            self._process = sandbox.popen(line, box, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)

    async def ready(self) -> None:
        """Return once torch is loaded and the device is warm. Raises `TrialFailed`."""
        await self._ask(b"", b"R", 0)

    async def answer(self, seed: bytes) -> bytes:
        """The digest for a seed. Raises `TrialFailed`."""
        return await self._ask(b"B" + seed, b"D", 32)

    async def matrix(self, number: int) -> bytes:
        """What the digest of so-manieth seed was made of. Raises `TrialFailed`."""
        return await self._ask(b"S" + bytes([number]), b"M", self.asked.size**2)

    def end(self) -> None:
        """Kill it and delete what it left."""
        sandbox.kill_tree(self._process)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _ask(self, command: bytes, kind: bytes, size: int) -> bytes:
        def talk() -> bytes:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            try:
                self._process.stdin.write(command)
                self._process.stdin.flush()
            except BrokenPipeError:
                return b""
            return self._process.stdout.read(1 + size)

        said = await asyncio.to_thread(talk)
        if len(said) != 1 + size or said[:1] != kind:
            raise TrialFailed(f"the speed of this host could not be measured: {self._last_words()}")
        return said[1:]

    def _last_words(self) -> str:
        lines = (self._folder / "errors").read_bytes()[-4000:].decode(errors="replace").strip().splitlines()
        return "".join(c if c.isprintable() else " " for c in lines[-1])[:500] if lines else "it ended without a word"


class Trials:
    """At most one at a time, with its files in HOME/trial; what it says goes out by `send`."""

    def __init__(
        self,
        home: Home,
        owner: Owner,
        tasks: Tasks,
        send: Callable[[TrialReady | TrialAnswer | TrialPart], None],
    ) -> None:
        self._home, self._owner, self._tasks, self._send = home, owner, tasks, send
        self._folder = home.path / "trial"
        self._program: Program | None = None

    def heed(self, asked: TrialPrepare | TrialBegin | TrialShow | TrialOver) -> None:
        """Begin a trial, go on with it or end it; what takes long is done beside other things."""
        if isinstance(asked, TrialPrepare):
            self.end()
            log.info("the platform measures the speed of this host")
            try:
                # In this thread: the program dies with the thread that started it.
                config = self._owner.config
                self._program = Program(asked, self._folder, config, packages.torch(self._home, config))
            except (LabApexError, OSError) as error:
                self.decline(asked.trial, str(error))
                return
        if self._program is None or self._program.asked.trial != asked.trial:
            return  # of another connection
        if isinstance(asked, TrialOver):
            self.end()
        else:
            self._tasks.spawn(self._step(self._program, asked))

    def decline(self, trial: UUID, reason: str) -> None:
        """Say why there can be none."""
        self._send(TrialReady(trial=trial, problem=reason[:500]))

    def end(self) -> None:
        program, self._program = self._program, None
        if program is not None:
            program.end()

    async def _step(self, program: Program, asked: TrialPrepare | TrialBegin | TrialShow) -> None:
        try:
            if isinstance(asked, TrialPrepare):
                await program.ready()
                self._send(TrialReady(trial=asked.trial))
            elif isinstance(asked, TrialBegin):
                self._send(TrialAnswer(trial=asked.trial, digest=await program.answer(asked.seed)))
            else:
                result = await program.matrix(asked.number)
                for offset in range(0, len(result), TRIAL_PART):
                    self._send(TrialPart(trial=asked.trial, offset=offset, data=result[offset : offset + TRIAL_PART]))
        except LabApexError as error:
            if program is self._program:  # not one that was ended meanwhile
                log.warning("%s", error)
                self.decline(asked.trial, str(error))
                self.end()
