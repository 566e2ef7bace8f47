"""Order and augmentation follow from the seed: told in advance, the same with any number of workers, sought anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest
from tests.labapex.proof.lab import SOURCES

from labapex.proof.clock import Reading
from labapex.proof.determinism import pin
from labapex.proof.randomness import derive

HEAD = """
import os, pathlib, random, tempfile, time
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from labapex import landlock
from labapex.errors import UsageError
from labapex.proof import clock, loaders, randomness
from labapex.proof.loaders import Numbering, pass_digests
torch.set_num_threads(1)

class Noisy(Dataset):
    def __len__(self): return 23
    def __getitem__(self, i): return i, torch.rand(1).item(), random.random(), float(np.random.rand())

def fresh(seed="a" * 64):
    global numbering, taken
    taken = []
    numbering = Numbering(seed)
    numbering.consumed = taken.append
    numbering.created = lambda each: "loop"
    return numbering

def hook(seed="a" * 64):
    loaders.install(fresh(seed))

def make(workers=0, **more):
    return DataLoader(Noisy(), batch_size=5, num_workers=workers, **{"shuffle": True, **more})

def listed(batches):
    return [[part.tolist() for part in batch] for batch in batches]

hook()
"""

CLAIMS = {
    "without a sandbox workers hand over what they made below a path of any length, or it is said why they cannot": """
place = os.path.join(tempfile.gettempdir(), "long" * 40)
os.mkdir(place)
tempfile.tempdir = place
landlock.restrict([pathlib.Path(place)])  # all of /tmp is then the host's
numbering.passes.clear()
one = listed(make(0))
numbering.passes.clear()
loaders._room_for_sockets()
assert listed(make(2, timeout=60)) == one
try:
    iter(make(2, multiprocessing_context="spawn"))
except UsageError as error:
    assert "shorter LABAPEX_WORKER_HOME" in str(error)
else:
    assert landlock.version() == 0
""",
    "the order is told in advance": """
loader = make()
each = iter(loader)
told = [list(pass_digests(each, n)) for n in range(3)]
list(each), list(loader), list(loader)
assert taken == sum(told, []) and len(set(taken)) == 15
""",
    "any number of workers gives the same batches": """
one, two = make(0), make(2)
first = [listed(one), listed(one)]
numbering.passes.clear()
assert [listed(two), listed(two)] == first
assert first[0] != first[1]
""",
    "a pass can begin anywhere": """
loader = make()
whole = listed(loader)
for position in range(6):
    each = iter(loader)
    each.seek(each.stream, 0, position)
    assert listed(each) == whole[position:]
""",
    "what happens outside does not change the batches": """
loader = make()
whole = listed(loader)
numbering.passes.clear()
seen = []
for batch in loader:
    torch.rand(7), random.random(), np.random.rand(3)
    seen.append([part.tolist() for part in batch])
assert seen == whole
""",
    "and batches do not change what happens outside": """
randomness.seed_everything(5)
expected = torch.rand(1), random.random(), np.random.rand()
randomness.seed_everything(5)
list(make())
assert (torch.rand(1), random.random(), np.random.rand()) == expected
""",
    "overlapping passes do not disturb each other": """
loader = make()
one, other = listed(loader), listed(loader)
numbering.passes.clear()
a, b = iter(loader), iter(loader)
mixed = [listed([next(a)])[0] if n % 2 == 0 else listed([next(b)])[0] for n in range(10)]
assert mixed[::2] == one and mixed[1::2] == other
""",
    "another seed is another order": """
here = listed(make())
numbering.seed = "b" * 64
numbering.passes.clear()
assert listed(make()) != here
""",
    "a loader made anew for each pass gives the batches of one that is kept": """
kept = make()
whole = [listed(kept) for _ in range(3)]
told = list(taken)
numbering.passes.clear(), taken.clear()
assert [listed(make()) for _ in range(3)] == whole and taken == told
""",
    "a loop's position is not taken by another loop": """
one = iter(make())
numbering.created = lambda each: "other loop"
other = iter(make())
try:
    other.seek(*one.place())
except ValueError:
    pass
else:
    raise AssertionError
""",
    "a script's own seeding draws from the lease": """
randomness.mix_in("a" * 64)
torch.manual_seed(1); np.random.seed(1); random.seed(1)
first = torch.rand(1).item(), np.random.rand(), random.random()
rng = np.random.default_rng().random()
torch.manual_seed(1); np.random.seed(1); random.seed(1)
assert (torch.rand(1).item(), np.random.rand(), random.random()) == first
assert np.random.default_rng().random() != rng
plain = torch.Generator().manual_seed(1)
assert torch.rand(1, generator=plain).item() != first[0]
""",
    "a stream of randomness goes on where it was left": """
stream = randomness.Stream(9)
with randomness.keyed(9):
    expected = [torch.rand(1).item(), torch.rand(1).item()]
found = []
for _ in range(2):
    torch.rand(3)
    with stream:
        found.append(torch.rand(1).item())
assert found == expected
""",
    "clocks say that they are clocks": """
clock.mark_clocks()
started = time.time()
assert all(isinstance(x, clock.Reading) for x in (started, time.perf_counter() - started, (time.time() - started) / 2 * 1e3))
""",
}


@pytest.fixture(scope="module")
def failures() -> str:
    """All claims in one process, each in a fork of its own: hooks are for a process."""
    programs = "\n".join(f"check({name!r}, {text!r})" for name, text in CLAIMS.items())
    check = """
import os, traceback
def check(name, text):
    child = os.fork()
    if child == 0:
        try:
            exec(text, globals())
            os._exit(0)
        except BaseException:
            print("FAILED", name, traceback.format_exc(), flush=True)
            os._exit(1)
    os.waitpid(child, 0)
"""
    path = os.pathsep.join([str(SOURCES), *sys.path])
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        done = subprocess.run(
            [sys.executable, "-c", HEAD + check + programs + "\nprint('all tried')"],
            env={**os.environ, **pin(1), "PYTHONPATH": path, "TMPDIR": temporary},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert "all tried" in done.stdout, done.stderr
    return done.stdout


@pytest.mark.parametrize("claim", CLAIMS)
def test_of_loaders_and_randomness(claim: str, failures: str) -> None:
    assert f"FAILED {claim} " not in failures, failures


def test_derived_seeds_are_pinned_and_apart() -> None:
    """Another derivation would be another protocol: recorded runs could not be replayed any more."""
    assert derive("a" * 64, "step", 1) == int.from_bytes(_sha("a" * 64 + "\x1fstep\x1f1")[:8], "big") >> 1
    assert len({derive("a" * 64, "step", n) for n in range(1000)}) == 1000
    assert derive("a", "b", "c") != derive("a", "bc")


def _sha(text: str) -> bytes:
    import hashlib

    return hashlib.sha256(text.encode()).digest()


def test_what_is_computed_from_a_clock_is_one_too() -> None:
    reading = Reading(3.0)
    sums = (reading + 1, 1 + reading, reading - 1, 5 - reading, reading * 2, reading / 2)
    for value in (*sums, -reading, abs(reading), round(reading, 1)):
        assert isinstance(value, Reading)
    assert not isinstance(reading > 1, Reading)
    assert f"{reading:.1f}" == "3.0"
