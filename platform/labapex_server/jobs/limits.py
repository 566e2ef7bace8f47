"""What jobs may take of a host: as their clients ask, else as the operator has set, never more than is there to try them here."""

from __future__ import annotations

from django.conf import settings

from labapex.protocol.limits import Limits
from labapex.protocol.spec import JobSpec
from labapex_server.lib.errors import Refused

_SETTINGS = {"memory": "memory_bytes", "disk": "disk_bytes", "processes": "processes"}


def of_script(spec: JobSpec) -> Limits:
    """What a job's script may take; `disk` is what it writes itself."""
    config, found = settings.LABAPEX, {}
    for name, setting in _SETTINGS.items():
        asked, most = getattr(spec.limits, name, None), getattr(config, f"child_{setting}")
        wanted = getattr(config, f"job_{setting}") if asked is None else asked
        found[name] = wanted if most is None else min(wanted, most)
    return Limits(**found)


def check(spec: JobSpec) -> None:
    """Raise `Refused` where a client asks for more than this platform has to try it."""
    for name, setting in _SETTINGS.items():
        asked, most = getattr(spec.limits, name, None), getattr(settings.LABAPEX, f"child_{setting}")
        if asked is not None and most is not None and asked > most:
            raise Refused(f"limits.{name}: {asked} is more than this platform has to try a job; ask for {most} at most")
