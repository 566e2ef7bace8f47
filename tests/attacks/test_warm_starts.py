"""Runs that start from another model: what is certified of it, what is marked, and a worker who starts elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.attacks.court import Judgement, judgement
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import Lab, Recording

from labapex.protocol.contract import Parent
from labapex.protocol.replay import PreflightReport, PreflightRequest, ReplayReport

SCRIPT = """
import torch
from safetensors.torch import load_file
from torch import nn

x = (torch.arange(96.0) * 0.7).sin().reshape(24, 4)
y = (x[:, 0] > x[:, 1]).long()
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
model.load_state_dict(load_file("parents/0.safetensors"), strict=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(6):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
"""
SHAPES = {"0.weight": (8, 4), "0.bias": (8,), "2.weight": (2, 8), "2.bias": (2,)}
MODEL = "parents/0.safetensors"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


@dataclass
class Bench:
    """A job whose script loads a file, and what its contract says of that file."""

    lab: Lab
    folder: Path
    parents: tuple[Parent, ...] = ()

    def hold(self, seed: int, *names: str) -> None:
        """Put a model into the run's folder; only the tensors of these names, all where none is named."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        file = self.folder / "work" / MODEL
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensors[name] for name in names or SHAPES}, file)

    def certify(self) -> None:
        """Let the contract name the file as it lies there now."""
        digest = hashlib.sha256((self.folder / "work" / MODEL).read_bytes()).hexdigest()
        self.parents = (Parent(path=MODEL, weights=digest, certificate="c" * 64, success=0.9),)

    def preflight(self) -> PreflightReport:
        laboratory.place(SCRIPT, self.folder)
        request = PreflightRequest(
            script="train.py",
            args=(),
            epochs=1,
            iterations_per_epoch=6,
            checkpoint_every=3,
            threads=1,
            seed="a" * 64,
            parents=self.parents,
        )
        asked = request.model_dump(mode="json")
        return PreflightReport.model_validate(self.lab.ask("preflight", self.folder, request=asked))

    def record(self, tried: PreflightReport) -> Recording:
        assert tried.facts is not None, tried.problem
        terms = laboratory.contract(tried.facts, epochs=1, every=3)
        return self.lab.record(terms.model_copy(update={"parents": self.parents}), self.folder)

    def judge(self, recording: Recording) -> tuple[Judgement, ReplayReport]:
        opening = laboratory.challenge(recording, segments=100, ends=True)
        report = self.lab.replay(recording, opening)
        return judgement(laboratory.evidence(recording, opening, report)), report


@pytest.fixture
def bench(lab: Lab, tmp_path: Path) -> Bench:
    return Bench(lab, tmp_path)


def test_a_start_from_a_certified_model_is_verified_and_proven(bench: Bench) -> None:
    bench.hold(1)
    bench.certify()
    tried = bench.preflight()
    found, report = bench.judge(bench.record(tried))
    assert found.verdict == "verified", found.reason
    assert found.results["provenance"].result == "pass"
    assert found.results["provenance"].detail == "4 of 4 parameter tensors are those of certified models"
    assert tried.start == report.start


def test_a_start_that_nobody_vouches_for_is_verified_and_marked(bench: Bench) -> None:
    bench.hold(1)
    tried = bench.preflight()
    found, report = bench.judge(bench.record(tried))
    assert (found.verdict, found.results["provenance"].result) == ("verified", "fail")
    assert found.results["provenance"].detail.startswith(
        "4 of 4 parameter tensors neither follow from the seed nor come"
    )
    assert report.start is not None
    assert len(report.start.names) == 4
    assert tried.start == report.start


def test_only_what_is_loaded_is_marked(bench: Bench) -> None:
    bench.hold(1, "0.weight")
    start = bench.preflight().start
    assert start is not None
    assert (start.tensors, start.unproven) == (4, 1)
    assert start.names[0].endswith("0/_parameters/weight")


def test_a_stolen_model_in_place_of_the_certified_parent_is_no_start_of_this_contract(bench: Bench) -> None:
    """He fine-tunes a stolen model, says that it is the parent, and trains on from there: all but the first state fits."""
    bench.hold(1)
    bench.certify()
    tried = bench.preflight()
    bench.hold(2)
    recording = bench.record(tried)
    bench.hold(1)
    found, _ = bench.judge(recording)
    assert (found.verdict, found.rule) == ("rejected", "initialisation")
