"""`pause`, `resume` and `drain`: what the owner wants of the worker as a whole."""

from __future__ import annotations

from labapex.cli.output import counted, print_json, say
from labapex_worker import control, wishes
from labapex_worker.cli.options import HomeOption, JsonOption
from labapex_worker.cli.place import home_of
from labapex_worker.cli.state import at_rest
from labapex_worker.wishes import Wish


def pause(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Take no new job until `resume`, also after a restart. What runs goes on."""
    _want(Wish.PAUSE, home, as_json)


def resume(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Take jobs again, after `pause` or `drain`."""
    _want(Wish.WORK, home, as_json)


def drain(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Take no new job, and end the daemon when the last job is over and its verdict is there."""
    _want(Wish.DRAIN, home, as_json)


def _want(wish: Wish, home: HomeOption, as_json: bool) -> None:
    chosen = home_of(home)
    config = chosen.load()
    wishes.write(chosen.wish, wish)
    told = control.ask(chosen.control, "reload")
    status = told or at_rest(chosen, config)
    if as_json:
        print_json(status)
        return
    left = counted(len(status.leases), "job")
    if told is None:
        later = {
            Wish.WORK: "takes jobs",
            Wish.PAUSE: "takes no job until labapex-worker resume",
            Wish.DRAIN: f"finishes {left}, takes no other, and ends",
        }[wish]
        say(f"No daemon runs here. The next labapex-worker run {later}.")
    elif wish is Wish.WORK:
        say(f"It takes no jobs all the same: {status.held}" if status.held else "It takes jobs again.")
    else:
        end = ", then it ends" if wish is Wish.DRAIN else ""
        say(f"No new job is taken. {left} to go on with{end}.")
