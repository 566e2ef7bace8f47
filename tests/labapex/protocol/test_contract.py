from __future__ import annotations

import uuid
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

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


@given(st.integers(1, 20), st.integers(1, 50), st.integers(1, 200), st.integers(1, 4), st.data())
def test_a_stopped_run_is_the_beginning_of_the_whole_one(
    epochs: int, per: int, every: int, keep: int, data: st.DataObject
) -> None:
    whole = contract(epochs, per, every).model_copy(update={"keep_every": keep})
    counted = data.draw(st.integers(1, epochs))
    terms = Contract.model_validate(whole.model_dump() | {"stopped": counted})
    steps = terms.leaf_steps()
    assert steps == [step for step in whole.leaf_steps() if step <= counted * per]
    assert steps[-1] == terms.until == counted * per
    assert terms.iterations == whole.iterations
    assert terms.first == whole
    assert terms.stints()[-1].stop == terms.until
    assert terms.kept_leaves() <= whole.kept_leaves(), "more is asked of nobody than he kept"
    assert terms.kept_leaves() == {index for index in range(len(steps)) if index % keep == 0}


@given(st.integers(1, 5))
def test_no_more_epochs_count_than_there_are(epochs: int) -> None:
    with pytest.raises(ValidationError, match="no more epochs"):
        Contract.model_validate(contract(epochs, 2, 3).model_dump() | {"stopped": epochs + 1})
