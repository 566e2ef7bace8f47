"""What each document of a folder looks like."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

Document = dict[str, Any]
NAMES = re.compile(
    r"(contract|environment|files|requirements|challenge|verdict)\.json|leaves\.jsonl|(losses|times)\.f64|chunks\.bin"
    r"|weights\.safetensors|states/(0|[1-9][0-9]{0,5})\.safetensors|code/[0-9a-f]{64}"
)
Form = Callable[[Any], bool]


def whole(least: int = 0, most: int = 2**53 - 1) -> Form:
    return lambda value: type(value) is int and least <= value <= most


def text(pattern: str = r"[\s\S]*", most: int = 1 << 20) -> Form:
    return lambda value: isinstance(value, str) and len(value) <= most and re.fullmatch(pattern, value) is not None


def number(least: float = 0, most: float = math.inf) -> Form:
    return lambda value: type(value) in (int, float) and least <= value <= most


def listed(form: Form, least: int = 0, most: int = 200_000) -> Form:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(form, value))


def fields(**forms: Form) -> Form:
    return lambda value: (
        isinstance(value, dict) and value.keys() == forms.keys() and all(forms[key](value[key]) for key in forms)
    )


def one_of(*values: Any) -> Form:
    return lambda value: any(type(value) is type(each) and value == each for each in values)


def either(*forms: Form) -> Form:
    return lambda value: any(form(value) for form in forms)


def relative(value: Any) -> bool:
    if not isinstance(value, str) or not value or "\0" in value or "\\" in value:
        return False
    path = PurePosixPath(value)
    return str(path) == value and not path.is_absolute() and value != "." and ".." not in path.parts


NONE, FLAG, SHA = one_of(None), one_of(True, False), text(r"[0-9a-f]{64}")
UUID = text(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PART = fields(digest=SHA, path=relative, size=whole(0, 2**40))
ENVIRONMENT = fields(
    capability=text(most=40), device=text(most=200), python=text(most=40), threads=whole(1, 256), torch=text(most=80)
)
MANIFEST = fields(
    contract=SHA,
    files=listed(fields(digest=SHA, path=text(NAMES.pattern), size=whole(0, 2**40))),
    format=one_of(1),
    origin=one_of("recorded", "platform"),
    proof_root=SHA,
)
LEAF = fields(
    batches=SHA,
    chunks=whole(1, 2**40 - 1),
    index=whole(),
    losses=SHA,
    prev=SHA,
    settings=SHA,
    size=whole(),
    state=SHA,
    step=whole(),
    update_norm=either(NONE, number()),
)
HANDOVER = fields(held=listed(whole(), least=1, most=100_000), leaf=LEAF, lease=UUID)
CONTRACT = fields(
    args=listed(text()),
    checkpoint_every=whole(1),
    code=SHA,
    data=SHA,
    epochs=whole(1),
    facts=fields(
        gradients_are_state=FLAG,
        has_loader=FLAG,
        iterations_per_epoch=whole(1),
        layout=listed(fields(size=whole(1), type=text(most=20)), most=4096),
        loop=text(most=500),
        parameters=whole(),
        state_bytes=whole(),
    ),
    format=one_of(1),
    handovers=listed(HANDOVER, most=64),
    job=UUID,
    keep_every=whole(1),
    lease=UUID,
    limits=either(NONE, fields(disk=whole(), memory=whole(), processes=whole())),
    parents=listed(fields(certificate=SHA, path=relative, success=number(0, 1), weights=SHA)),
    requirements=SHA,
    script=relative,
    seed=SHA,
    stopped=either(NONE, whole(1)),
    threads=whole(1),
    upload_every=whole(),
)
PACKAGE = {"name": text(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", 200), "version": text(most=100)}
NO_PACKAGES: Document = {"format": 1, "given": [], "python": "", "wheels": []}
REQUIREMENTS = fields(
    format=one_of(1),
    given=listed(fields(**PACKAGE), most=1000),
    python=text(r"(3\.[0-9]{1,2})?"),
    wheels=listed(
        fields(file=text(r"[A-Za-z0-9_.+!-]+\.whl", 300), sha256=SHA, size=whole(1, 4 << 30), **PACKAGE), most=200
    ),
)
FILES = fields(code=listed(PART, least=1, most=4096), data=listed(PART, most=4096), data_root=either(NONE, relative))
CHALLENGE = fields(
    audit_segments=whole(0, 100_000),
    chunk=either(NONE, whole()),
    chunk_nonce=SHA,
    ends=FLAG,
    evaluations=listed(fields(epoch=whole(1), iterations=listed(whole(-(2**53))), leaf=whole())),
    further=listed(whole(-(2**53))),
    further_segments=listed(whole(-(2**53))),
    indices=listed(whole(-(2**53))),
    nonce=either(NONE, SHA),
    pev_percent=lambda value: number(0, 100)(value) and value > 0,
    segments=listed(whole(-(2**53))),
    top_q=whole(0, 100_000),
)
SIGNED = fields(key_id=text(), signature=text(r"[A-Za-z0-9_-]{86}=="), verdict=lambda value: isinstance(value, dict))
