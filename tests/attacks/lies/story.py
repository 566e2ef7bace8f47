"""Lies in the story: a run is told otherwise than it was, from its first leaf to its last."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tests.attacks.lies.telling import Job, enter, run
from torch import Tensor

from labapex.proof import merkle
from labapex.proof.record import Recorder, batches_digest, step_digest
from labapex.proof.sink import Notes
from labapex.proof.state import State, losses_digest, parameter_change
from labapex.protocol.canonical import digest
from labapex.protocol.records import Leaf, column


@dataclass
class Story:
    """A run as it will be told. `leaves` say which batches were taken; the rest of them follows when it is told."""

    job: Job
    states: list[State]
    losses: list[float]
    batches: list[str]
    settings: list[str]
    stolen: list[State]
    norms: dict[int, float | None] = field(default_factory=dict)  # claimed updates, where they are not the true ones

    @property
    def steps(self) -> list[int]:
        return self.job.contract.leaf_steps()

    def tell(self) -> None:
        prev, at, before = digest(self.job.contract), 0, None
        for index, state in enumerate(self.states):
            step = self.steps[index] if index < len(self.steps) else self.steps[-1]
            for number in range(at, step):
                if number < len(self.losses):
                    self.job.sink.iteration(number, self.losses[number], 1e9 + number)
            norm = parameter_change(before, state) if before is not None else 0.0
            tree = state.tree()
            leaf = Leaf(
                index=index,
                step=step,
                state=merkle.root_of_hashes(tree).hex(),
                size=state.save(self.job.folder / "states" / f"{index}.safetensors"),
                chunks=len(tree),
                settings=self.settings[min(index, len(self.settings) - 1)],
                update_norm=self.norms.get(index, norm),
                batches=self.batches[index] if index < len(self.batches) else self.batches[-1],
                losses=losses_digest(column(self.losses[at:step])),
                prev=prev,
            )
            self.job.sink.leaf(leaf)
            prev, at, before = leaf.digest(), step, state
        for number in range(at, len(self.losses)):
            self.job.sink.iteration(number, self.losses[number], 1e9 + number)


def in_the_story(rule: str, **more: Any) -> Callable[[Callable[[Story], None]], Callable[[Story], None]]:
    def enlist(lie: Callable[[Story], None]) -> Callable[[Story], None]:
        def train(job: Job) -> None:
            notes, states = Notes(), job.folder / "states"
            run(job, Recorder(job.contract, states, notes))
            files = range(len(notes.leaves))
            story = Story(
                job,
                states=[State.load(states / f"{n}.safetensors") for n in files],
                losses=notes.losses,
                batches=[leaf.batches for leaf in notes.leaves],
                settings=[leaf.settings for leaf in notes.leaves],
                stolen=[State.load(path) for n in files if (path := job.stolen / f"{n}.safetensors").exists()],
            )
            lie(story)
            story.tell()

        enter(rule, lie, train, **more)
        return lie

    return enlist


def moved(state: State, parameters: Callable[[str, Tensor], Tensor]) -> State:
    """The state with other parameters."""
    tensors = {n: parameters(n, t) if n in state.parameters else t for n, t in state.tensors.items()}
    return State(state.structure, tensors, state.parameters)


@in_the_story("replay")
def retraining_spoof(story: Story) -> None:
    """Trains for itself and hands in a stolen model as the result of the last segment."""
    story.states[-1] = moved(story.states[-1], lambda n, t: story.stolen[-1].tensors[n])


@in_the_story("point-loss")
def straight_line(story: Story) -> None:
    """Draws a straight line from the genuine start to a stolen model; the losses fall along it."""
    first, last = story.states[0], story.stolen[-1]
    for index in range(1, len(story.states)):
        share = index / (len(story.states) - 1)
        story.states[index] = moved(
            story.states[index], lambda n, t, share=share: torch.lerp(first.tensors[n], last.tensors[n], share)
        )
    story.losses = [0.7 - 0.03 * n for n in range(len(story.losses))]


@in_the_story("point-loss")
def straight_line_between_epochs(story: Story) -> None:
    """Trains honestly, keeps each epoch's checkpoints only, and draws lines between them with the true losses."""
    ends = [n for n, step in enumerate(story.steps) if step % story.job.contract.facts.iterations_per_epoch == 0]
    for a, b in itertools.pairwise(ends):
        for index in range(a + 1, b):
            lower, upper, share = story.states[a].tensors, story.states[b].tensors, (index - a) / (b - a)
            story.states[index] = moved(
                story.states[index], lambda n, t, w=(lower, upper, share): torch.lerp(w[0][n], w[1][n], w[2])
            )


@in_the_story("point-loss")
def gluing_two_runs(story: Story) -> None:
    """Begins one run and ends another, better one; only the seam is false."""
    seam = len(story.states) // 2
    story.states[seam:] = story.stolen[seam:]


@in_the_story("uniqueness", known=True)
def checkpoints_of_another_lease(story: Story) -> None:
    """Hands in all states of a lease that was paid already."""
    story.states[:] = story.stolen


@in_the_story("uniqueness", known=True)
def one_checkpoint_of_another_lease(story: Story) -> None:
    """Replaces a single state in the middle by one of another lease."""
    story.states[3] = story.stolen[3]


@in_the_story("initialisation")
def checkpoints_of_an_unknown_run(story: Story) -> None:
    """Hands in all states of a run that was made elsewhere, under another seed."""
    story.states[:] = story.stolen


@in_the_story("point-loss")
def all_states_the_same(story: Story) -> None:
    """Commits to the first state again and again, its position moved on."""
    first = story.states[0]
    story.states[1:] = [moved(state, lambda n, t: first.tensors[n]) for state in story.states[1:]]
    story.losses = [story.losses[0]] * len(story.losses)


@in_the_story("point-loss")
def one_digest_for_all_leaves(story: Story) -> None:
    """Commits to the very first state, byte for byte, in every leaf."""
    story.states[:] = [story.states[0]] * len(story.states)


@in_the_story("point-loss", every=1)
def blind_top_q(story: Story) -> None:
    """Makes the segments real that will be looked at (first, last, the largest of each epoch) and understates all others."""
    job, count = story.job, len(story.states) - 1
    real = {0, count - 1} | {6 * epoch + 1 for epoch in range(job.contract.epochs)}
    honest = {leaf for n in real for leaf in (n, n + 1)}
    for index in range(1, count):
        if index not in honest:
            near = min(honest, key=lambda n, index=index: abs(n - index))
            story.states[index] = moved(
                story.states[index], lambda n, t, near=near: story.states[near].tensors[n] * (1 + 1e-5)
            )
    story.norms.update({index: 1e-6 for index in range(1, count + 1) if index - 1 not in real})


@in_the_story("leaf-claims")
def understated_norms(story: Story) -> None:
    """Trains honestly and claims tiny updates: the next time nobody will look there."""
    story.norms.update(dict.fromkeys(range(2, len(story.states)), 1e-09))


def jump(story: Story) -> int:
    """Goes on from a stolen run, far from the start, with all that is told of it; returns the leaf at which it does."""
    seam = 8  # in mid-epoch: the first segment of each epoch is where equal updates are looked for
    story.states[seam:] = story.stolen[seam:]
    return seam


@in_the_story("point-loss", every=1, draws=0)
def a_jump_that_is_claimed_away(story: Story) -> None:
    """Jumps to a stolen run between two leaves, and claims an update there that is no larger than those around it."""
    story.norms[jump(story)] = 0.1


@in_the_story("point-loss", every=1, draws=0)
def a_jump_in_the_shadow_of_larger_claims(story: Story) -> None:
    """Jumps to a stolen run, and claims updates all around that rise and fall slowly and are larger than the jump."""
    seam = jump(story)
    story.norms.update({n: 9.0 * 1.3 ** abs(n - seam) for n in range(3, len(story.states) - 1) if n != seam})


@in_the_story("leaf-claims")
def norms_that_are_not_finite(story: Story) -> None:
    """Claims an endless update far from what is to be hidden, to draw the eye there."""
    story.norms[4] = None


@in_the_story("point-loss")
def invented_losses(story: Story) -> None:
    """Trains, and logs a curve from a textbook."""
    dice = random.Random(3)
    story.losses = [0.7 * math.exp(-n / 9) + dice.gauss(0, 0.01) for n in range(len(story.losses))]


@in_the_story("point-loss")
def copied_losses(story: Story) -> None:
    """Logs the losses of a run that went before: here its own, one iteration late."""
    story.losses = [story.losses[0], *story.losses[:-1]]


@in_the_story("log-count")
def a_missing_record(story: Story) -> None:
    """Logs one iteration less than was bought."""
    story.losses.pop()


@in_the_story("log-count")
def an_extra_record(story: Story) -> None:
    """Logs one iteration more, to be paid for it."""
    story.losses.append(story.losses[-1])


@in_the_story("log-chain")
def an_extra_leaf(story: Story) -> None:
    """Commits twice at the end, to choose later."""
    story.states.append(story.states[-1])


@in_the_story("log-chain")
def stops_early(story: Story) -> None:
    """Ends after the second epoch."""
    keep = 2 * story.job.contract.facts.iterations_per_epoch
    story.losses, story.states = story.losses[:keep], story.states[: story.steps.index(keep) + 1]


@in_the_story("replay")
def an_extra_entry_in_a_state(story: Story) -> None:
    """Hides a tensor of its own in a committed state."""
    story.states[2].tensors["zzz.hidden"] = torch.ones(3)


@in_the_story("replay")
def a_missing_entry_in_a_state(story: Story) -> None:
    """Commits to a state without one of its tensors."""
    del story.states[2].tensors[story.states[2].parameters[0]]
    story.states[2].parameters.pop(0)


@in_the_story("replay")
def another_shape_in_a_state(story: Story) -> None:
    """Commits to a state whose matrices lie flat."""
    story.states[2] = moved(story.states[2], lambda n, t: t.reshape(-1))


@in_the_story("replay")
def another_type_in_a_state(story: Story) -> None:
    """Commits to a state in half the bytes."""
    story.states[2] = moved(story.states[2], lambda n, t: t.half())


@in_the_story("replay")
def a_state_as_deep_as_a_well(story: Story) -> None:
    """Commits to a state with a structure of a hundred levels more than it has."""
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    story.states[2].structure["well"] = deep


@in_the_story("point-loss")
def momentum_thrown_away(story: Story) -> None:
    """Commits to the true parameters, and to an optimizer that remembers nothing."""
    for state in story.states[1:]:
        for name in state.tensors:
            if "momentum" in name:
                state.tensors[name] = torch.zeros_like(state.tensors[name])


@in_the_story("batch-order")
def batches_that_were_never_taken(story: Story) -> None:
    """Commits to no batches at all after the first epoch."""
    story.batches[3:] = [batches_digest([step_digest([])])] * len(story.batches[3:])
