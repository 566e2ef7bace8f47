"""Which worker a command is about, and as whom it acts there."""

from __future__ import annotations

import os
import pwd
import traceback
from collections.abc import Callable
from pathlib import Path

import typer

from labapex.cli.output import one_line, say
from labapex.errors import LabApexError, UsageError
from labapex_worker.config import Home


def home_of(path: Path | None) -> Home:
    """The worker's folder. Root becomes the user that the folder belongs to, for good: what lies in it was written by a
    program that strangers' jobs come near to, and root must not be led astray by links there."""
    home = Home.choose(path)
    if os.geteuid() == 0 and home.path.is_dir() and (owner := home.path.stat().st_uid) != 0:
        become(owner)
    return home


def as_user(user: int, act: Callable[[], None]) -> None:
    """Do something as another user, in a process of its own; an error of it ends this command with the same code."""
    if os.geteuid() == user:
        act()
        return
    child = os.fork()
    if child == 0:
        code = 1
        try:
            become(user)
            act()
            code = 0
        except LabApexError as error:
            say(f"error: {one_line(str(error))}")
            code = error.exit_code
        except BaseException:  # noqa: BLE001 (nothing may go on behind the fork)
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise typer.Exit(code if code > 0 else 1)


def become(user: int) -> None:
    """Give up root's rights. Raises `UsageError` where there is no such user."""
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        raise UsageError(f"the worker's folder belongs to user {user}, who does not exist; give it to one") from None
    os.initgroups(entry.pw_name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.environ.update(HOME=entry.pw_dir, USER=entry.pw_name, LOGNAME=entry.pw_name)
