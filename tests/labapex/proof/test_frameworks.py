"""Scripts that train with a library, as its own guide writes them: no word of Lab Apex, and every bit the same.

The preflight's windows and one more are replayed here; `make bench-styles` replays all.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import SCRIPTS, Lab
from tests.labapex.proof.test_styles import FRAMEWORKS, Style

from labapex.protocol.records import uncolumn

OTHER_NAME = """
import torch

package = {"__name__": "pytorch_lightning.loops", "torch": torch}
exec("def fit(weights, optimizer):\\n  for _ in range(9): weights.sum().backward(); optimizer.step()", package)
weights = torch.ones(3, requires_grad=True)
package["fit"](weights, torch.optim.SGD([weights], lr=0.1))
"""
SLOW = ("transformers.models.gpt2.modeling_gpt2", "torchmetrics")  # that do not import a loop


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One in which the libraries are imported before it forks, but for those of their modules that hold loops."""
    there = tuple(name for name in SLOW if find_spec(name.partition(".")[0]) is not None)
    laboratory = Lab(imports=there)
    yield laboratory
    laboratory.close()


@pytest.mark.parametrize("style", FRAMEWORKS, ids=lambda s: s.name)
def test_a_script_that_trains_with_a_library_is_reproduced_bit_for_bit(lab: Lab, style: Style, tmp_path: Path) -> None:
    if style.missing:
        pytest.skip(f"{style.needs} is not installed: make setup")
    tried = lab.preflight(SCRIPTS / f"{style.name}.py", tmp_path, per_epoch=style.per_epoch)
    assert tried.problem is None
    assert tried.facts is not None
    assert not Path(tried.facts.loop).is_absolute()

    recording = lab.record(laboratory.contract(tried.facts), tmp_path)
    assert len(recording.losses) == recording.contract.iterations
    leaf = len(recording.leaves) - 2
    (segment,) = lab.replay(recording, laboratory.window(leaf)).segments
    assert segment.state == recording.leaves[leaf + 1].state
    assert segment.batches == recording.leaves[leaf + 1].batches
    assert list(uncolumn(segment.losses)) == recording.losses[segment.start : segment.stop]


def test_a_library_under_a_name_that_is_not_known_is_refused_with_the_one_that_is(lab: Lab, tmp_path: Path) -> None:
    problem = lab.preflight(OTHER_NAME, tmp_path).problem
    assert problem is not None
    assert "import it by its newer name, lightning.pytorch" in problem
