"""Each parser of hostile input on its corpus, and on a fixed number of mistakes in it. `make fuzz` looks for more."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from tests.fuzz.targets import TARGETS, Target

MISTAKES = 60  # for each seed


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_takes_what_is_valid_and_of_all_else_says_that_it_is_not(name: str) -> None:
    target = TARGETS[name]
    seeds = sorted(target.corpus.iterdir())
    assert any(path.name.startswith("seed-") for path in seeds), "run: python tests/fuzz/seeds.py"
    for path in seeds:
        took = target(path.read_bytes())
        assert took or not path.name.startswith("seed-"), f"{path} is valid"


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_names_every_mistake_as_one_of_the_sender(name: str) -> None:
    target = TARGETS[name]
    taken = [target(data) for data in (b"", *_mistakes(target))]
    assert taken


def _mistakes(target: Target) -> Iterator[bytes]:
    """The same ones each time."""
    for path in sorted(target.corpus.iterdir()):
        data, draw = path.read_bytes(), random.Random(path.name)
        for _ in range(MISTAKES):
            yield _mistaken(bytearray(data), draw)


def _mistaken(data: bytearray, draw: random.Random) -> bytes:
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(data) + 1)
        stop = min(len(data), start + draw.randint(0, 8))
        match draw.randrange(5):
            case 0:
                data[start:stop] = draw.randbytes(stop - start)
            case 1:
                del data[start:stop]
            case 2:
                data[start:start] = data[start:stop] * draw.randint(1, 40)
            case 3:
                del data[start:]
            case 4:
                data[start:stop] = draw.choice([b"9" * 30, b"-1", b"NaN", b"1e999", b"null", b"[]", b"\xff\xfe", b"\0"])
    return bytes(data)
