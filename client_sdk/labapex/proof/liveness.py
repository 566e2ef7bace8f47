"""Which local variables a suspended frame will still read: only these are state at a loop's top.

Without this every left-over of the last turn (the batch, the logits, a loss with its autograd graph) would be saved with
each checkpoint. The analysis is the textbook backward data flow over a code object's instructions, on CPython's bytecode:
live-in(i) = use(i) | (live-out(i) - def(i)), live-out(i) = union of live-in over i's successors, exception handlers included.
"""

from __future__ import annotations

import dis
from bisect import bisect_right
from functools import lru_cache
from types import CodeType

_USE = {"LOAD_FAST", "LOAD_NAME", "LOAD_GLOBAL", "LOAD_FAST_CHECK", "LOAD_FAST_AND_CLEAR", "DELETE_FAST", "DELETE_NAME"}
_DEFINE = {"STORE_FAST", "STORE_NAME", "STORE_GLOBAL"}
_NO_FALL_THROUGH = {
    "RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE",
    "JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE",
}  # fmt: skip


def live_names(code: CodeType, lasti: int) -> frozenset[str]:
    """Names of `code` that may be read after the instruction at byte offset `lasti` (a frame's `f_lasti`).

    Cell variables count as live always: a closure may read them at any time. So does, in module code, every name that
    a function or class of that module mentions.
    """
    offsets, after, always = _liveness(code)
    return after[max(bisect_right(offsets, lasti) - 1, 0)] | always


@lru_cache(maxsize=256)
def _liveness(code: CodeType) -> tuple[list[int], list[frozenset[str]], frozenset[str]]:
    """Offsets of the instructions, the names live after each, and the names that are live everywhere.

    While a call is under way `f_lasti` points at one of the call's inline caches, so it is looked up by range."""
    instructions = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "EXTENDED_ARG")]
    position = {instruction.offset: n for n, instruction in enumerate(instructions)}
    # An EXTENDED_ARG prefix may be the target of a jump; it belongs to the instruction that follows it.
    for instruction in reversed(list(dis.get_instructions(code))):
        position.setdefault(
            instruction.offset, min((n for o, n in position.items() if o > instruction.offset), default=0)
        )

    successors: list[set[int]] = []
    for n, instruction in enumerate(instructions):
        follow: set[int] = set()
        if instruction.opname not in _NO_FALL_THROUGH and n + 1 < len(instructions):
            follow.add(n + 1)
        if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
            follow.add(position[instruction.argval])
        successors.append(follow)
    for entry in dis._parse_exception_table(code):  # type: ignore[attr-defined]
        for n, instruction in enumerate(instructions):
            if entry.start <= instruction.offset < entry.end:
                successors[n].add(position[entry.target])

    live_in: list[frozenset[str]] = [frozenset()] * len(instructions)
    live_out: list[frozenset[str]] = [frozenset()] * len(instructions)
    changed = True
    while changed:
        changed = False
        for n in range(len(instructions) - 1, -1, -1):
            instruction = instructions[n]
            out: frozenset[str] = frozenset().union(*(live_in[s] for s in successors[n]))
            name = str(instruction.argval)
            into = out
            if instruction.opname in _DEFINE:
                into = out - {name}
            elif instruction.opname in _USE:
                into = out | {name}
            if into != live_in[n] or out != live_out[n]:
                live_in[n], live_out[n], changed = into, out, True

    always = set(code.co_cellvars) | set(code.co_freevars)
    for inner in _inner(code):
        always |= set(inner.co_names)
    return [i.offset for i in instructions], live_out, frozenset(always)


def _inner(code: CodeType) -> list[CodeType]:
    found: list[CodeType] = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found += [constant, *_inner(constant)]
    return found
