"""Scripts in the styles that people write, unchanged: recorded whole, replayed from the middle, every bit the same."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import SCRIPTS, Lab

from labapex.proof.policy import decide
from labapex.proof.rules import judge, replay_max_error
from labapex.protocol.records import uncolumn


@dataclass(frozen=True)
class Style:
    name: str
    per_epoch: int | None = None  # declared where no loader tells it
    epochs: int = 3
    needs: str | None = None  # a package that it imports besides torch

    @property
    def missing(self) -> bool:
        return self.needs is not None and find_spec(self.needs) is None


STYLES = [
    Style("functions"),
    Style("trainer_class"),
    Style("generator_batches", per_epoch=6),
    Style("infinite_iterator", per_epoch=5),
    Style("while_loop", per_epoch=5),
    Style("amp_scaler"),
    Style("accumulation"),
    Style("gan"),
    Style("wgan", per_epoch=4),
    Style("lbfgs", epochs=4),
    Style("schedulers"),
    Style("onecycle"),
    Style("samplers"),
    Style("weighted_sampler"),
    Style("iterable", per_epoch=5),
    Style("workers"),
    Style("persistent_workers"),
    Style("ema"),
    Style("swa"),
    Style("tbptt", per_epoch=6),
    Style("dqn", per_epoch=5),
    Style("early_stopping"),
    Style("no_zero_grad"),
    Style("bf16_parameters", per_epoch=4),
    Style("compiled"),
    Style("curriculum"),
    Style("phases"),
    Style("second_loader"),
    Style("two_loaders", per_epoch=5),
    Style("fresh_loaders"),
    Style("folds", epochs=6),
    Style("progress_bar", needs="tqdm"),
    Style("memory_bank"),
    Style("late_layers"),
    Style("reparametrized"),
]
FRAMEWORKS = [
    Style("accelerated", needs="accelerate"),
    Style("fabric", needs="lightning"),
    Style("lightning_trainer", needs="lightning"),
    Style("hf_trainer", needs="transformers"),
    Style("hf_stream", per_epoch=5, needs="transformers"),
]


@pytest.mark.parametrize("style", STYLES, ids=lambda s: s.name)
def test_a_script_of_this_style_is_recorded_and_reproduced_bit_for_bit(lab: Lab, style: Style, tmp_path: Path) -> None:
    if style.missing:
        pytest.skip(f"{style.needs} is not installed: make setup")
    tried = lab.preflight(SCRIPTS / f"{style.name}.py", tmp_path, epochs=style.epochs, per_epoch=style.per_epoch)
    assert tried.problem is None
    assert tried.facts is not None

    recording = lab.record(laboratory.contract(tried.facts, epochs=style.epochs), tmp_path)
    assert len(recording.losses) == recording.contract.iterations
    assert [b.prev for _, b in pairwise(recording.leaves)] == [a.digest() for a, _ in pairwise(recording.leaves)]

    for leaf in (2, len(recording.leaves) - 3):  # a window by itself: no earlier one has led the process there
        alone = laboratory.window(leaf)
        (segment,) = lab.replay(recording, alone).segments
        assert segment.state == recording.leaves[leaf + 1].state
        assert list(uncolumn(segment.losses)) == recording.losses[segment.start : segment.stop]

    whole = laboratory.challenge(recording, segments=100, ends=True)  # every window, over every epoch's end
    report = lab.replay(recording, whole, foretell=60)
    assert report.problem is None
    evidence = laboratory.evidence(recording, whole, report)
    results = judge(evidence)
    assert decide(results)[0] == "verified", results
    assert replay_max_error(evidence) == 0.0
    foretold = next(r.result for r in results if r.rule == "skeleton")
    assert foretold == "pass" or (style.needs and foretold == "not-applicable")


@pytest.mark.parametrize("every", [1, 3])
def test_schedulers_that_share_what_they_know_are_told_apart_at_every_leaf(
    lab: Lab, every: int, tmp_path: Path
) -> None:
    """The sequence and its running part hold one list: a replay that begins before the change of parts takes it apart."""
    tried = lab.preflight(SCRIPTS / "schedulers.py", tmp_path, every=every)
    assert tried.problem is None
    assert tried.facts is not None
    recording = lab.record(laboratory.contract(tried.facts, every=every), tmp_path)
    whole = laboratory.challenge(recording, segments=100, ends=True)
    assert replay_max_error(laboratory.evidence(recording, whole, lab.replay(recording, whole))) == 0.0
