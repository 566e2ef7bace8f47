"""The trust document that this platform hands out, and what it may sign with while that document counts.

`home/trust.json` is the chain that workers follow; it is public. The root key that signs it belongs on another machine
(`manage.py trust`), and no server needs it. A platform that is given none makes one for itself, so that it can be tried
without any setup; then the root lies beside all other keys, and `concerns` says so.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings

from labapex import trust
from labapex.errors import UsageError
from labapex.protocol.canonical import canonical
from labapex.protocol.trust import Role, SignedTrust, TrustChain, TrustDocument, TrustedKey
from labapex.sealing import public_signing_key
from labapex.trust import NotTrusted, Trust
from labapex_server.lib import keys
from labapex_server.lib.errors import Conflict
from labapex_server.lib.files import fsync_folder

DAY = 24 * 3600
LOCAL_DAYS = 365  # of a document that the platform signs for itself
WARNING_DAYS = 21  # before its end a document is spoken of; one that the platform signs itself is renewed
_cache: dict[Path, tuple[tuple[int, int], TrustChain]] = {}


def path() -> Path:
    home: Path = settings.LABAPEX.home
    return home / "trust.json"


def chain() -> TrustChain:
    """What workers are told; made at the first use. Raises `MalformedInput` for a file that was damaged."""
    found = _read()
    if found is None or _renewable(found):
        with _locked():
            found = _read()
            if found is None or _renewable(found):
                found = _sign_for_itself(found)
    return found


def current() -> Trust:
    """What a worker believes that read today's document."""
    return Trust(signed=chain().documents[-1])


def root() -> bytes:
    """The public root key that counts."""
    return current().root


def signs_for_itself() -> bool:
    """Whether this platform set itself up, and so states by itself what it froze."""
    return _own(chain())


def signer(role: Role) -> tuple[str, bytes]:
    """Id and private half of the key to sign with: of those that lie here and count now the latest.

    Raises `Conflict` where there is none."""
    believed, here, now = current(), keys.held(role), time.time()
    usable = []
    for key in believed.document.keys:
        try:
            if key.id in here:
                usable.append(believed.key(key.id, role, now))
        except NotTrusted:
            continue
    if not usable:
        why = believed.why_not(now) or f"the trust document names no {role} key that lies here and is valid now"
        raise Conflict(f"{why}; sign a new one: manage.py trust sign")
    latest = max(usable, key=lambda key: (key.not_before, key.not_after, key.id))
    return latest.id, here[latest.id]


def private(role: Role, identity: str) -> bytes:
    """The private half of a key. Raises `Conflict` where it does not lie here."""
    try:
        return keys.held(role)[identity]
    except KeyError:
        raise Conflict(f"the {role} key {identity} does not lie here") from None


def publish(signed: SignedTrust) -> None:
    """Hand out another document from now on. Raises `NotTrusted` where workers that know today's would refuse it."""
    with _locked():
        before = _read()
        new = _extended(before, signed)
        believed = (
            trust.begin(signed.document.root, new) if before is None else Trust(signed=before.documents[-1]).follow(new)
        )
        if (why := believed.why_not(time.time())) is not None:
            raise NotTrusted(why)
        if before is None or canonical(new) != canonical(before):
            _write(new)


def concerns(now: float) -> list[str]:
    """What the operator must hear about. Changes nothing, and says nothing where no document was made yet."""
    found = _read()
    if found is None:
        return []
    said = list(ending(now))
    if _own(found):
        said.append(
            f"the root key lies on this machine ({path().parent / 'keys' / 'root'}): who breaks in here can name keys of"
            " his own to every worker, for ever. Before others rely on this platform make one elsewhere and hand over to"
            " it: manage.py trust root FILE, manage.py trust sign --new-root FILE (docs/operations.md, Trust)"
        )
    elif keys.local_root() is not None:
        said.append(f"{path().parent / 'keys' / 'root'} counts no longer: delete it")
    return said


def ending(now: float) -> Iterator[str]:
    """What will soon keep workers from starting jobs, or does."""
    found = _read()
    if found is None:
        return
    believed = Trust(signed=found.documents[-1])
    if (why := believed.why_not(now)) is not None:
        yield f"{why}: no worker starts a job (manage.py trust sign)"
        return
    days = (believed.document.expires_at - now) / DAY
    if days < WARNING_DAYS:
        yield f"the trust document expires in {days:.1f} days; then no worker starts a job (manage.py trust sign)"
    last = max((key.not_after for key in believed.document.keys if key.role == "manifest"), default=0)
    if last < now + WARNING_DAYS * DAY and last < believed.document.expires_at:
        left = max(0.0, (last - now) / DAY)
        yield f"the last manifest key is valid for {left:.1f} days more (manage.py trust key, manage.py trust sign --add)"


# ----------------------------------------------------------------------------------------------------------------------


def _extended(before: TrustChain | None, signed: SignedTrust) -> TrustChain:
    """The chain with one more document: of the earlier ones those stay that exchanged the root."""
    exchanged = () if before is None else tuple(each for each in before.documents if len(each.signatures) == 2)
    earlier = tuple(each for each in exchanged if each.document.version < signed.document.version)
    return TrustChain(documents=(*earlier, signed))


def _renewable(found: TrustChain) -> bool:
    """Whether the document nears its end and is the platform's own to renew."""
    return found.documents[-1].document.expires_at - time.time() <= WARNING_DAYS * DAY and _own(found)


def _own(found: TrustChain) -> bool:
    """Whether the root key that counts lies here."""
    local = keys.local_root()
    return local is not None and public_signing_key(local) == found.documents[-1].document.root


def _sign_for_itself(before: TrustChain | None) -> TrustChain:
    """The first document of a platform that nobody gave a root, or the next one: the same keys for longer."""
    now = int(time.time())
    ends, local = now + LOCAL_DAYS * DAY, keys.make_local_root()
    last = None if before is None else before.documents[-1].document
    if last is None:
        roles: tuple[Role, ...] = ("manifest", "release")
        named = tuple(TrustedKey(role=role, key=keys.new(role), not_before=now, not_after=ends) for role in roles)
    else:
        named = tuple(
            key.model_copy(update={"not_after": ends if key.not_after >= last.expires_at else key.not_after})
            for key in last.keys
        )
    document = TrustDocument(
        version=1 if last is None else last.version + 1,
        root=public_signing_key(local),
        issued_at=now,
        expires_at=ends,
        keys=named,
    )
    made = _extended(before, trust.sign(document, local))
    _write(made)
    return made


def _read() -> TrustChain | None:
    file = path()
    try:
        stat = file.stat()
        stamp = stat.st_mtime_ns, stat.st_ino
        if file not in _cache or _cache[file][0] != stamp:
            _cache[file] = stamp, trust.read_chain(file.read_bytes())
    except FileNotFoundError:
        return None
    return _cache[file][1]


def _write(made: TrustChain) -> None:
    settings.LABAPEX.private_folder()
    file = path()
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with part.open("wb") as out:
        out.write(canonical(made))
        out.flush()
        os.fsync(out.fileno())
    part.replace(file)
    fsync_folder(file.parent)


@contextmanager
def _locked() -> Iterator[None]:
    """One process at a time makes documents. Raises `UsageError` where the home cannot be written."""
    folder: Path = settings.LABAPEX.private_folder("keys")
    try:
        lock = os.open(folder / ".lock", os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error}") from None
    with os.fdopen(lock, "w"):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
