"""Writes bytes that each target takes into its corpus. Run once, when a format has changed: `python tests/fuzz/seeds.py`.

What fuzzing found beside them stays there, too: names tell which is which."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = map(str, (ROOT, ROOT / "client_sdk", ROOT / "worker_agent"))

from tests.fuzz.targets import CORPUS, LEASE, PROOF_FILES, SIGNING_KEY, TARGETS, VECTOR  # noqa: E402
from tests.labapex.authority import BEGAN, ENDS, Authority  # noqa: E402
from tests.labapex.certified import MemoryLog, a_statement  # noqa: E402
from tests.labapex_worker import fake_executable  # noqa: E402
from tests.labapex_worker.chains import a_chain, a_fin, a_key_request  # noqa: E402

from labapex import executable  # noqa: E402
from labapex.protocol import frames  # noqa: E402
from labapex.protocol.devices import Device, Observation  # noqa: E402
from labapex.protocol.packing import pack  # noqa: E402
from labapex.protocol.records import Console, FrameBody, Leaf, Series, column  # noqa: E402
from labapex.protocol.trust import Role  # noqa: E402
from labapex_runner import events  # noqa: E402

LEAF = Leaf(
    index=0, step=0, state="ab" * 32, size=9, chunks=3, settings="5e" * 32, update_norm=None, batches="ba" * 32,
    losses="10" * 32, prev="cd" * 32,
)  # fmt: skip
SPEC = """\
name: digits
script: train.py
args: ["--epochs", "{epochs}"]
data: data
epochs: 3
budget: 1.5
checkpoint_every: 5
requirements: ["einops>=0.8"]
limits: {memory: 8G, disk: 20G, processes: 1000}
device: H100
min_memory: 24GB
"""


def messages() -> Iterator[bytes]:
    chain = a_chain(LEASE, 2)
    device = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", memory=1 << 37, driver="580.1", capability="9.0")
    yield pack(chain[0])
    yield pack(a_fin(LEASE, chain))
    yield pack(a_key_request(LEASE))
    yield pack(frames.Hello(worker=LEASE, signature=bytes(64), devices=(device,), leases=(LEASE,), lacks_torch=True))
    yield pack(frames.Ready(price_per_hour=1_000_000))
    seen = Observation(at=1.0, device="GPU-1", utilisation=50.0, memory=1)
    yield pack(frames.Observed(lease=LEASE, readings=(seen,)))
    yield pack(frames.Failed(lease=LEASE, reason="the host was restarted"))
    yield pack(frames.Greeting(heartbeat_seconds=5.0, leases=(LEASE,)))
    yield pack(frames.Open(lease=LEASE))
    yield pack(frames.Nack(lease=LEASE, expected=1))


def bodies() -> Iterator[bytes]:
    for count in range(3):
        for text in ("", "a", "ab"):
            series = Series(name="loss/val", iterations=(1, 2), values=column([0.5, 0.25]))
            body = pack(
                FrameBody(
                    losses=column([0.5] * count),
                    times=column([1.0] * count),
                    leaves=(LEAF,),
                    series=(series,),
                    console=(Console(stream="stdout", text=f"epoch 1{text}\n"),),
                )
            )
            if len(body) % 3 == count:  # which the target announces
                yield body


def trainers() -> Iterator[bytes]:
    made = (
        events.Iteration(step=0, loss=0.5, at=1.0), events.Committed(leaf=LEAF), events.Scalars(values={"a": 1.0}),
        events.Failed(reason="Traceback"), events.Done(),
    )  # fmt: skip
    yield b"".join(struct.pack(">I", len(data)) + data for data in map(pack, made))


def executables() -> Iterator[bytes]:
    keys: dict[bytes, tuple[Role, int, int]] = {
        bytes([1]) * 32: ("manifest", BEGAN, ENDS),
        bytes([2]) * 32: ("release", BEGAN, ENDS),
    }
    with tempfile.TemporaryDirectory() as place:
        yield fake_executable.make(
            Path(place), authority=Authority(root=bytes([3]) * 32, named=keys),
            worker=LEASE, lease=LEASE, job=LEASE, plan={"a": "b"}, padding=200,
        )  # fmt: skip


def manifests() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as place:
        for data in executables():
            (Path(place) / "x").write_bytes(data)
            yield executable.inspect(Path(place) / "x").canonical_text


def wheels_of() -> Iterator[bytes]:
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", kind) as archive:
            archive.writestr(zipfile.ZipInfo("alpha/__init__.py"), "x = 1\n" * 5)
            archive.writestr(zipfile.ZipInfo("alpha-1.0.data/purelib/beta.py"), "y = 2\n")
            archive.writestr(zipfile.ZipInfo("alpha-1.0.dist-info/WHEEL"), "Wheel-Version: 1.0\n")
        yield file.getvalue()


def states() -> Iterator[bytes]:
    tensors = {
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "n": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
        "__metadata__": {"parameters": '["w"]', "structure": '{"step":1}'},
    }
    header = json.dumps(tensors).encode()
    yield struct.pack("<Q", len(header)) + header + bytes(32)


def jobs() -> Iterator[bytes]:
    part = {"path": "train.py", "digest": "ab" * 32, "size": 20}
    yield json.dumps(
        {"spec": {"script": "train.py", "epochs": 1, "budget": "1"}, "bundle": {"code": [part], "data": []}}
    ).encode()


def proofs() -> Iterator[bytes]:
    for number, name in enumerate(PROOF_FILES):
        yield bytes([number]) + (VECTOR / name).read_bytes()


SEEDS = {
    "message": messages,
    "frame": bodies,
    "events": trainers,
    "manifest": manifests,
    "executable": executables,
    "wheel": wheels_of,
    "record": lambda: iter([b"torch/a.py,sha256=" + b"A" * 43 + b",12\ntorch/b.txt,,\n"]),
    "memory-events": lambda: iter([b"low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n"]),
    "job": jobs,
    "yaml": lambda: iter([SPEC.encode()]),
    "requirement": lambda: iter([b"einops>=0.8", b"torchmetrics[image]>=1,<2; python_version > '3.8'"]),
    "state": states,
    "chunks": lambda: iter([(VECTOR / "chunks.bin").read_bytes()]),
    "folder": proofs,
}


def certificates() -> Iterator[tuple[str, bytes]]:
    log = MemoryLog(verdict_key=SIGNING_KEY, log_key=SIGNING_KEY)
    log.fill(3)
    statement = a_statement()
    bundle = log.bundle(*log.enter(statement))
    yield "certificate", bundle.model_dump_json().encode()
    yield "statement", statement.payload()
    yield "checkpoint", bundle.checkpoint.encode()


def main() -> None:
    for stale in CORPUS.glob("*/seed-*"):
        stale.unlink()
    found = [(name, data) for name, made in SEEDS.items() for data in made()] + list(certificates())
    for name, data in found:
        assert TARGETS[name](data), f"{name} does not take its own seed {data[:200]!r}"
        place = TARGETS[name].corpus
        place.mkdir(parents=True, exist_ok=True)
        (place / f"seed-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
    print(f"{len(found)} seeds of {len({name for name, _ in found})} targets")


if __name__ == "__main__":
    main()
