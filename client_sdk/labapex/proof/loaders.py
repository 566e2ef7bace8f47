"""Data loaders whose order, workers' seeds and augmentation follow from the lease's seed, and that can be sought.

A `Pass` is one iteration over a `DataLoader`. Its randomness is named by the loop that asked for it and by its number among the
passes that this loop asked for, never by the loader: one loader for all epochs and a new one in each are the same. What a
batch's items see depends only on (seed, loop, number, position). So the verifier knows the order of every epoch without
training, any number of worker processes gives the same batches, and a pass can begin anywhere.
"""

from __future__ import annotations

import hashlib
import multiprocessing.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, _utils
from torch.utils.data._utils import fetch

from labapex.errors import UsageError
from labapex.proof.randomness import Stream, derive, keyed

_SOCKET_PATH_BYTES = 107  # sun_path in Linux's unix(7), less its closing zero
_DESCRIPTORS = "/proc/self/fd/"
_plain_iter = DataLoader.__iter__
_plain_index_sampler = DataLoader._index_sampler
_plain_fetch = {c: c.fetch for c in (fetch._MapDatasetFetcher, fetch._IterableDatasetFetcher)}


@dataclass
class Numbering:
    """How often each loop began to read a loader: part of a run's state."""

    seed: str
    passes: dict[str, int] = field(default_factory=dict)  # passes begun, by stream: the name of the loop that asked
    skipping: bool = False  # passes yield placeholders: somebody is seeking
    lent: Iterator[Any] | None = None  # batches that the next one who asks a loader gets in place of a pass
    consumed: Callable[[bytes], None] = lambda digest: None
    created: Callable[[Pass], str] = lambda each: ""  # returns the name of the loop that the pass belongs to
    looping: Callable[[], bool] = lambda: False  # whether any loop of the script runs


@dataclass
class Seeded:
    """An index batch with the seed of its items' randomness; travels to worker processes as it is."""

    indices: Any
    seed: int


class Pass:
    """One iteration over a loader, at (stream, number, position); `position` batches were handed out."""

    def __init__(self, loader: DataLoader[Any], numbering: Numbering) -> None:
        self.loader = loader
        self.numbering = numbering
        self.stream = numbering.created(self)
        self.number = numbering.passes.get(self.stream, 0)
        numbering.passes[self.stream] = self.number + 1
        self.position = 0
        self._batches: Iterator[Any] | None = None
        self._digests: dict[int, bytes] = {}

    def __iter__(self) -> Pass:
        return self

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def sampler(self) -> Any:
        """What yields the indices: of a batch, or of one item after the other."""
        return _plain_index_sampler.__get__(self.loader)

    def place(self) -> list[Any]:
        return [self.stream, self.number, self.position]

    def seek(self, stream: str, number: int, position: int) -> None:
        """Go on as the pass `number` after `position` batches."""
        if stream != self.stream:
            raise ValueError(f"a position in a loader read by {stream} is none in one read by {self.stream}")
        self.number, self.position = number, position
        self._batches = None
        self._digests.clear()

    def __next__(self) -> Any:
        if self.numbering.skipping:
            self.position += 1
            return None
        if self._batches is None:
            self._batches = self._begin()
        batch = next(self._batches)
        digest = self._digests.pop(self.position, b"")
        self.position += 1
        self.numbering.consumed(digest)
        return batch

    def _begin(self) -> Iterator[Any]:
        seed = self.numbering.seed
        iterable = isinstance(self.loader.dataset, IterableDataset)
        order = self._order()
        order.skip = 0 if iterable else self.position
        order.noted = self._digests
        _seed_generators(self.loader, seed, self.stream, self.number)
        order.stream = Stream(derive(seed, "order", self.stream, self.number))
        with keyed(derive(seed, "base", self.stream, self.number)):
            batches: Iterator[Any] = _plain_iter(self.loader)
        if iterable:
            for _ in range(self.position):  # a stream has no index: what lies before must be read
                next(batches)
        return batches

    def _order(self) -> Order:
        order: Order | None = self.loader.__dict__.get("_labapex_order")
        if order is None:
            order = Order(self)
            self.loader.__dict__["_labapex_order"] = order
        order.current = self
        return order


class Order:
    """Stands for a loader's index sampler. One for each loader: persistent workers keep it over all passes."""

    def __init__(self, current: Pass) -> None:
        self.current = current
        self.skip = 0
        self.noted: dict[int, bytes] = {}
        self.stream: AbstractContextManager[None] = nullcontext()

    def __len__(self) -> int:
        return len(self.current.sampler)

    def __iter__(self) -> Iterator[Seeded]:
        return self._yield(self.current, self.current.number, self.stream, self.noted, self.skip)  # passes may overlap

    def _yield(
        self, each: Pass, number: int, stream: AbstractContextManager[None], noted: dict[int, bytes], skip: int
    ) -> Iterator[Seeded]:
        for position, indices in enumerate(order(each.sampler, stream)):
            if position >= skip:
                noted[position] = batch_digest(each.stream, number, position, indices)
                yield Seeded(indices, derive(each.numbering.seed, "items", each.stream, number, position))


def order(sampler: Any, stream: AbstractContextManager[None]) -> Iterator[Any]:
    """A sampler's index batches, drawn from a random stream of its own."""
    with stream:
        iterator = iter(sampler)
    while True:
        with stream:
            try:
                indices = next(iterator)
            except StopIteration:
                return
        yield indices


def batch_digest(stream: str, number: int, position: int, indices: Any) -> bytes:
    """SHA-256 over which batch of which pass of which stream, and the indices in it."""
    plain = [int(i) if i is not None else None for i in indices] if isinstance(indices, list | tuple) else str(indices)
    return hashlib.sha256(f"{stream}:{number}:{position}:{plain}".encode()).digest()


def pass_digests(each: Pass, number: int) -> Iterator[bytes]:
    """The batch digests of the whole pass `number` of a stream, from the seed alone, without touching the data."""
    for position, indices in enumerate(pass_indices(each, number)):
        yield batch_digest(each.stream, number, position, indices)


def pass_indices(each: Pass, number: int) -> Iterator[Any]:
    """The index batches of the whole pass `number` of a stream."""
    seed = each.numbering.seed
    _seed_generators(each.loader, seed, each.stream, number)
    return order(each.sampler, Stream(derive(seed, "order", each.stream, number)))


def _seed_generators(loader: DataLoader[Any], seed: str, stream: str, number: int) -> None:
    """Generators that the script handed to a loader or its sampler follow the lease's seed like all others."""
    for generator in {g for g in (loader.generator, getattr(loader.sampler, "generator", None)) if g is not None}:
        generator.manual_seed(derive(seed, "generator", stream, number))


def _room_for_sockets() -> None:
    """Workers hand tensors over by sockets in a folder of their own below the temporary one. Below a long path they would wait
    for each other for ever: Linux takes no socket's path of over 107 bytes."""
    if len(os.fsencode(tempfile.gettempdir())) + len("/pymp-12345678/listener-12345678") > _SOCKET_PATH_BYTES:
        try:
            short = folder = tempfile.mkdtemp(prefix="pymp-", dir="/tmp")
        except PermissionError:  # no sandbox, where /tmp would be the job's own: by a descriptor, which forks have too
            folder = tempfile.mkdtemp(prefix="pymp-")
            short = f"{_DESCRIPTORS}{os.open(folder, os.O_RDONLY | os.O_DIRECTORY)}"
        multiprocessing.current_process()._config["tempdir"] = short  # type: ignore[attr-defined]
        multiprocessing.util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)


def _check_workers(loader: DataLoader[Any]) -> None:
    """Raise `UsageError` for worker processes that could not hand anything over: they would be waited for in vain."""
    place = multiprocessing.current_process()._config.get("tempdir")  # type: ignore[attr-defined]
    context = loader.multiprocessing_context or multiprocessing
    if loader.num_workers and (place or "").startswith(_DESCRIPTORS) and context.get_start_method() != "fork":
        raise UsageError(
            f"below {tempfile.gettempdir()} a data loader's workers must be forked: for others the path is too long. Leave out"
            " multiprocessing_context, or let the job run on a host with a sandbox or with a shorter LABAPEX_WORKER_HOME"
        )


def install(numbering: Numbering) -> None:
    """Hook `DataLoader` for this process, once."""
    plain_init = DataLoader.__init__

    def init(self: DataLoader[Any], *args: Any, **kwargs: Any) -> None:
        plain_init(self, *args, **kwargs)
        self.__dict__["_labapex_once"] = not numbering.looping()

    def index_sampler(self: DataLoader[Any]) -> Any:
        known = self.__dict__.get("_labapex_order")
        return known if known is not None else _plain_index_sampler.__get__(self)

    def seeded_fetch(plain: Callable[..., Any]) -> Callable[..., Any]:
        def fetch_batch(self: Any, batch: Any) -> Any:
            if not isinstance(batch, Seeded):
                return plain(self, batch)
            with keyed(batch.seed):
                return plain(self, batch.indices)

        return fetch_batch

    def begin(self: DataLoader[Any]) -> Iterator[Any]:
        _check_workers(self)
        lent, numbering.lent = numbering.lent, None
        return lent if lent is not None else Pass(self, numbering)

    _room_for_sockets()
    _utils.MP_STATUS_CHECK_INTERVAL = 0.5  # seconds that a pass left half-way waits for its workers, in place of 5
    DataLoader.__init__ = init
    DataLoader.__iter__ = begin  # type: ignore[assignment]
    DataLoader._index_sampler = property(index_sampler)  # type: ignore[assignment]
    for cls, plain in _plain_fetch.items():
        cls.fetch = seeded_fetch(plain)
