from __future__ import annotations

import uuid
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from labapex.protocol.contract import Contract, ScriptFacts


def contract(epochs: int, per_epoch: int, every: int) -> Contract:
    facts = ScriptFacts(
        loop="train.py:41",
        iterations_per_epoch=per_epoch,
        has_loader=True,
        gradients_are_state=False,
        parameters=1,
        state_bytes=4,
    )
    return Contract(
        job=uuid.UUID(int=1),
        lease=uuid.UUID(int=2),
        seed="0" * 64,
        code="1" * 64,
        data="2" * 64,
        script="train.py",
        args=(),
        epochs=epochs,
        checkpoint_every=every,
        threads=1,
        facts=facts,
    )


@given(st.integers(1, 20), st.integers(1, 50), st.integers(1, 200))
def test_leaves_are_due_at_the_start_every_k_steps_and_at_each_epochs_end(epochs: int, per: int, every: int) -> None:
    terms = contract(epochs, per, every)
    steps = terms.leaf_steps()
    assert steps[0] == 0
    assert steps[-1] == terms.iterations == epochs * per
    assert steps == sorted(set(steps))
    assert all(end in steps for end in range(per, terms.iterations + 1, per))
    assert all(later - earlier <= every for earlier, later in pairwise(steps))
