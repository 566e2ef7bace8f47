"""Small mistakes in the session, each of which some sentence about it must notice: one that none does is a line that nothing
holds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType

import pytest
from tests.labapex_worker import test_session, test_session_leases, test_session_log

from labapex_worker import session, work
from labapex_worker.session import Session

SOURCES = {module: inspect.getsource(module) for module in (session, work)}
SENTENCES: list[Callable[[Session], None]] = [
    getattr(module, name)
    for module in (test_session, test_session_leases, test_session_log)
    for name in dir(module)
    if name.startswith("test_")
]

# method of the session -> mistake -> what stands there, what takes its place
MUTANTS: dict[str, dict[str, tuple[str, str]]] = {
    "longest_pause": {
        "it is a single heartbeat": ("PAUSE_HEARTBEATS * ", ""),
        "it is none before the first greeting": (" or math.inf", ""),
    },
    "restored": {
        "a download is not begun again": ("effects.append(Fetch(work.lease))", "pass"),
        "a deletion is not begun again": ("effects.append(Discard(work.lease, work.reason))", "pass"),
    },
    "connected": {
        "a failure that was said on the line before is not said again": ("work.reported = False", "pass"),
        "work that was asked for on the line before is not asked for": (", self._asked = True, False, False", " = True, False"),
    },
    "disconnected": {"the line counts as greeted": ("self._connected = self._greeted", "self._connected")},
    "nonce": {
        "a second one is answered": ("if self._greeted:", "if False:"),
        "no lease is named": ("tuple(work.lease for work in self._live())", "()"),
    },
    "greeting": {
        "a second one is taken": (" or self._greeted:", ":"),
        "a lease that the platform does not know is kept": ("if work.lease not in known:", "if False:"),
        "keys are not asked for again": ("effects.append(Send(work.key_request))", "pass"),
        "keys that came are asked for again": (" and work.key_release is None", ""),
        "no log goes on": ("effects += work.resume(self._greeted)", "pass"),
        "no work is asked for": (" + self._ask()", ""),
    },
    "tick": {
        "it speaks before the greeting": ("if not self._greeted:", "if False:"),
        "a heartbeat with each tick": ("self._heartbeat_at = now + self._heartbeat_seconds", "pass"),
        "a heartbeat keeps a failed lease": (" if work.phase is not Phase.FAILED", ""),
        "nothing is ever asked again": ("effects += work.resume(self._greeted)", "pass"),
    },
    "hold": {
        "the same reason is said each time": ("if reason == self.held:", "if False:"),
        "another reason is not said": (", self._asked = reason, False", " = reason"),
    },
    "go": {
        "the same price is said each time": (
            "if self.held is None and (price, room, hours) == (self.price, self.room, self.hours):",
            "if False:",
        ),
        "the price is lost": (
            "self.price, self.room, self.hours, self._asked = None, price, room, hours, False",
            "self.room, self.hours, self._asked = None, room, hours, False",
        ),
        "the room is lost": (
            "self.room, self.hours, self._asked = None, price, room, hours, False",
            "self.hours, self._asked = None, price, hours, False",
        ),
        "the hours are lost": ("self.hours, self._asked = None, price, room, hours", "self._asked = None, price, room"),
        "other room is not told": (
            "(price, room, hours) == (self.price, self.room, self.hours)",
            "(price, hours) == (self.price, self.hours)",
        ),
        "other hours are not told": (
            "(price, room, hours) == (self.price, self.room, self.hours)",
            "(price, room) == (self.price, self.room)",
        ),
    },
    "give_back": {"what has finished is given back": ("if work.phase in TRAINS", "")},
    "refusal": {
        "a log that is refused is sent on": ("work.drains = False", "pass"),
        "a failure that waited for the log is never said": ("effects += work.flush(self._greeted)", "pass"),
        "a lease whose log is closed fails": ("not in (*OVER, Phase.RELEASED)", "is not Phase.RELEASED"),
        "a fatal one leaves the line as it is": ("if message.fatal:", "if False:"),
    },
    "measure": {"a trial begins beside a job": (" and self._busy()", " and False")},
    "grant": {
        "a repeated one is fetched twice": ("[Accept(message)]", "[Accept(message), Fetch(message.lease)]"),
        "a repeated one's token is lost": ("[Accept(message)]", "[]"),
        "it is taken without a free slot": ("if busy >= self.slots:", "if False:"),
        "it is not remembered": ("[Accept(message), Fetch", "[Fetch"),
        "no work is asked for behind it": ("self._asked = False", "pass"),
    },
    "key_release": {
        "keys are taken that nobody asked for": (" or work.key_request is None", ""),
        "keys are taken twice": (" or work.key_release is not None", ""),
        "they are not remembered": ("KeepRelease(message), ", ""),
        "they are not told": (", Tell(message.lease, message)", ""),
    },
    "open_chunks": {"chunks are shown while it trains": ("(Phase.FINISHED,", "(Phase.RUNNING, Phase.FINISHED,")},
    "open_states": {"states of a failed lease are shown": ("(Phase.RUNNING,", "(Phase.FAILED, Phase.RUNNING,")},
    "stop": {
        "one that was not started is stopped": ("not in (Phase.RUNNING, Phase.FINISHED)", "is Phase.STOPPED"),
        "one that has just ended is not stopped": ("(Phase.RUNNING, Phase.FINISHED)", "(Phase.RUNNING,)"),
        "it is not remembered": ("Move(work.lease, Phase.STOPPED, work.reason), ", ""),
        "its process lives on": (", Kill(work.lease)", ""),
    },
    "released": {
        "a repeated one is carried out twice": (" or work.phase is Phase.RELEASED", ""),
        "it is not remembered": ("Move(work.lease, Phase.RELEASED, message.reason), ", ""),
        "nothing is deleted": (", Discard(work.lease, message.reason)", ""),
    },
    "fetched": {
        "it is started in any phase": (" or work.phase is not Phase.GRANTED", ""),
        "it is started before that is remembered": (
            "[Move(lease, Phase.STARTING), Start(lease)]",
            "[Start(lease), Move(lease, Phase.STARTING)]",
        ),
        "it is not remembered": ("Move(lease, Phase.STARTING), ", ""),
    },
    "started": {
        "it is not remembered": ("Move(lease, Phase.RUNNING), ", ""),
        "a stranger's process lives on": ("return [Kill(lease)]", "return []"),
        "a failed lease's process lives on": ("else [Kill(lease)]", "else []"),
        "its process counts as none": ("work.alive = True", "pass"),
    },
    "exited": {
        "its process counts as one": ("work.alive = False", "pass"),
        "an end that was kept is overlooked": ("if work.fin is not None:", "if False:"),
        "it is no failure": ("if work.phase in (Phase.STARTING, Phase.RUNNING):", "if False:"),
        "no work is asked for behind it": ("        return self._ask()", "        return []"),
    },
    "observed": {
        "readings are taken in any phase": (" or work.phase is not Phase.RUNNING", ""),
        "readings are kept without a limit": ("[-MAX_OBSERVATIONS:]", ""),
        "the newest readings go": ("[-MAX_OBSERVATIONS:]", "[:MAX_OBSERVATIONS]"),
    },
    "declined": {
        "it is a failure": ("work.declined = True", "pass"),
        "one that runs is declined": ("work.phase in (Phase.GRANTED, Phase.STARTING)", "True"),
        "one that was fetched is not declined": ("(Phase.GRANTED, Phase.STARTING)", "(Phase.GRANTED,)"),
        "one that was not fetched is not declined": ("(Phase.GRANTED, Phase.STARTING)", "(Phase.STARTING,)"),
    },
    "failed": {
        "a lease fails twice": ("(Phase.FAILED, Phase.RELEASED)", "(Phase.RELEASED,)"),
        "a released lease fails": ("(Phase.FAILED, Phase.RELEASED)", "(Phase.FAILED,)"),
        "a reason of any length": ("[:2000]", ""),
        "its process lives on": ("Kill(lease), ", ""),
        "it is not remembered": ("Move(lease, Phase.FAILED, work.reason), ", ""),
        "its process is killed before it is remembered": (
            "[Move(lease, Phase.FAILED, work.reason), Kill(lease)",
            "[Kill(lease), Move(lease, Phase.FAILED, work.reason)",
        ),
        "it is not said": ("*work.flush(self._greeted), ", ""),
    },
    "discarded": {
        "the lease stays": ("self.works.pop(lease, None)", "pass"),
        "no work is asked for behind it": ("return self._ask()", "return []"),
    },
    "key_requested": {
        "keys are not asked for": ("[Send(message)] if self._greeted else []", "[]"),
        "keys are asked for before the greeting": (" if self._greeted else []", ""),
        "keys that are here are not told again": ("else [Tell(message.lease, work.key_release)]", "else []"),
    },
    "spooled": {
        "frames are not counted": ("work.end = end", "pass"),
        "frames are not sent": ("work.flush(self._greeted)", "[]"),
    },
    "finished": {
        "the end is lost": ("work.fin = fin", "pass"),
        "it is not remembered": ("effects.append(Move(work.lease, Phase.FINISHED))", "pass"),
        "the lease still counts as running": ("work.phase = Phase.FINISHED", "pass"),
        "the last readings are lost": ("effects += work.report(self._greeted)", "pass"),
        "the end is not sent": (" + work.flush(self._greeted)", ""),
        "a failed lease finishes": ("if work.phase in (Phase.STARTING, Phase.RUNNING):", "if True:"),
    },
    "welcomed": {"no frame follows": ("work.flush(self._greeted)", "[]")},
    "acknowledged": {
        "an older one takes acknowledgements back": (" or base <= work.base", ""),
        "the window does not move": ("work.flush(self._greeted)", "[]"),
    },
    "nacked": {
        "no complaint is answered": ("work.flush(self._greeted)", "[]"),
    },
    "finacked": {
        "a lease is closed in any phase": (" or work.phase is not Phase.FINISHED", ""),
        "it is not remembered": ("[Move(lease, Phase.CLOSED)]", "[]"),
        "the lease still counts as finished": ("work.phase = Phase.CLOSED", "pass"),
    },
    "_live": {"what was released lives": (" if work.phase is not Phase.RELEASED", "")},
    "_ask": {
        "work is asked for without end": (" or self._asked", ""),
        "work is asked for before the greeting": ("not self._greeted or ", ""),
        "work is asked for though the owner holds it": ("if self.held is not None:", "if False:"),
        "work is asked for without a free slot": ("if self._busy() >= self.slots:", "if False:"),
        "the price is not said": ("price_per_hour=self.price, ", ""),
        "the room is not said": (", room=self.room", ""),
        "the hours are not said": (", hours=self.hours", ""),
    },
}  # fmt: skip

# the same of a lease's work
OF_WORK: dict[str, dict[str, tuple[str, str]]] = {
    "busy": {
        "a process that still runs is forgotten": ("self.alive or ", ""),
        "a lease that has no process yet is forgotten": (" or self.phase in TRAINS", ""),
    },
    "open": {
        "what a failed lease logged is not sent": ("return self.drains and self.base < self.end", "return False"),
        "a failed lease waits for ever": (" and self.base < self.end", ""),
        "an empty log has no end": (" or self.fin is not None", ""),
        "a log is opened before there is one": (" and (self.end > 0 or self.fin is not None)", ""),
    },
    "welcomed": {
        "no frame may follow": ("= True, False, -1, now", "= False, False, -1, now"),
        "an end that it does not have counts as sent": ("= True, False, -1, now", "= True, self.ended, -1, now"),
        "a gap that was filled before is not filled again": ("= True, False, -1, now", "= True, False, self.nacked, now"),
        "an older one takes acknowledgements back": ("max(self.base, base)", "base"),
        "frames that were sent are not sent again": ("self.cursor = self.base", "pass"),
        "a frame is left out": ("self.cursor = self.base", "self.cursor = self.base + 1"),
    },
    "acknowledged": {
        "a gap that was filled before is not filled again": ("= base, -1, now", "= base, self.nacked, now"),
        "it is no progress": ("= base, -1, now", "= base, -1, self.moved_at"),
        "what the platform holds is sent": ("self.cursor = max(self.cursor, base)", "pass"),
        "what is on its way is sent again": ("max(self.cursor, base)", "base"),
    },
    "go_back": {
        "a gap in what the platform holds": ("self.base <= ", ""),
        "a gap in what was not sent": (" < self.cursor", ""),
        "each complaint is answered": (" or self.nacked == expected", ""),
        "a frame is left out": ("self.cursor = self.nacked = expected", "self.nacked, self.cursor = expected, expected + 1"),
    },
    "overdue": {
        "all is asked again at once": ("now - self.moved_at >= RETRY_SECONDS", "True"),
        "it is asked though nothing is missing": (" or not waits:", ":"),
        "a missing answer to the end is not seen": (" or self.ended", ""),
        "a missing acknowledgement is not seen": (" or self.cursor > self.base", ""),
        "a missing welcome is not seen": ("not self.synced or ", ""),
        "the time is not taken": ("self.moved_at = now", "pass"),
    },
    "report": {
        "readings are sent twice": (", self.observations = tuple(self.observations), []", " = tuple(self.observations)"),
        "readings are sent without a line": ("not line or ", ""),
    },
    "resume": {
        "frames follow before it has answered": ("self.synced = self.asked", "self.asked"),
        "it is not asked": ("self.synced = self.asked", "self.synced"),
    },
    "flush": {
        "the log is sent without a line": ("if not line:", "if False:"),
        "it is asked with each frame": (" and not self.asked", ""),
        "it is never asked": ("effects.append(Send(Open(lease=self.lease)))", "pass"),
        "frames are sent before it has answered": ("if self.open and self.synced:", "if self.open:"),
        "there is no window": ("min(self.end, self.base + WINDOW)", "self.end"),
        "the window begins behind what was sent": ("self.base + WINDOW", "self.cursor + WINDOW"),
        "the window is one frame too wide": ("self.base + WINDOW", "self.base + WINDOW + 1"),
        "frames are sent twice": ("self.cursor = stop", "pass"),
        "the first frame is left out": ("self.cursor, stop)", "self.cursor + 1, stop)"),
        "the last frame is left out": ("self.cursor, stop)", "self.cursor, stop - 1)"),
        "what is on its way is sent again": ("self.cursor, stop)", "self.base, stop)"),
        "the end overtakes the frames": ("self.base == self.end", "self.cursor == self.end"),
        "the end is sent each time": (" and not self.ended", ""),
        "the end is never sent": ("effects.append(Send(self.fin))", "pass"),
        "a failure overtakes the log": ("not self.open and not self.reported", "not self.reported"),
        "a failure is said each time": (" and not self.reported", ""),
        "a failure is said without its reason": ("reason=self.reason", 'reason=""'),
    },
}  # fmt: skip


def mutated(of: ModuleType, method: str, old: str, new: str) -> ModuleType:
    before, start, rest = SOURCES[of].partition(f"def {method}(")
    body, end, after = rest.partition("\n\n")
    assert body.count(old) == 1, f"{method} has changed: so must its mutant"
    module = ModuleType(of.__name__)
    exec(f"{before}{start}{body.replace(old, new)}{end}{after}", module.__dict__)
    return module


def holds(sentence: Callable[[Session], None], of: Session) -> bool:
    try:
        sentence(of)
    except (AssertionError, LookupError, TypeError, ValueError):
        return False
    return True


def noticed(of: ModuleType) -> bool:
    return not all(holds(sentence, of.Session()) for sentence in SENTENCES)


def all_of(mutants: dict[str, dict[str, tuple[str, str]]]) -> list[tuple[str, str]]:
    return [(method, mistake) for method, mistakes in mutants.items() for mistake in mistakes]


@pytest.mark.parametrize(("method", "mistake"), all_of(MUTANTS))
def test_a_mistake_in_the_session_is_noticed(method: str, mistake: str) -> None:
    assert noticed(mutated(session, method, *MUTANTS[method][mistake])), "no sentence notices it"


@pytest.mark.parametrize(("method", "mistake"), all_of(OF_WORK))
def test_a_mistake_in_a_leases_work_is_noticed(monkeypatch: pytest.MonkeyPatch, method: str, mistake: str) -> None:
    monkeypatch.setattr(session, "Work", mutated(work, method, *OF_WORK[method][mistake]).Work)
    assert noticed(session), "no sentence notices it"


def test_without_a_mistake_every_sentence_holds() -> None:
    assert all(holds(sentence, Session()) for sentence in SENTENCES)
