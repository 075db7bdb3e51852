"""Several processes that compress one model: who does what, and how they tell each other."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from waterfill.errors import UsageError, WaterfillError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Processes:
    """The processes that `torchrun` has started, or this one alone.

    Attributes:
        rank: number of this process, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """The items of this process: every `count`-th.

        Raises:
            UsageError: there are fewer items than processes.
        """
        if len(items) < self.count:
            raise UsageError(
                f"There are {len(items)} batches for {self.count} processes; expected at least one each. Start fewer "
                "processes, or make smaller batches."
            )
        return list(items[self.rank :: self.count])

    def broadcast(self, value: T) -> T:
        """What the first process has given, on all of them."""
        if self.count == 1:
            return value
        box = [value if self.rank == 0 else None]
        _together(lambda: dist.broadcast_object_list(box, src=0))
        return cast(T, box[0])

    def broadcast_made(self, make: Callable[[], T]) -> T:
        """What the first process makes by itself, on all of them.

        Raises:
            WaterfillError: what `make` has raised there, in all of them.
        """
        if self.count == 1:
            return make()
        with _sharing(ALONE):
            found = _attempt(make) if self.is_first else None
        return cast(T, _value(self.broadcast(found)))

    def all_gather(self, value: T) -> list[T]:
        """What all processes have given, in the order of their numbers."""
        if self.count == 1:
            return [value]
        box: list[Any] = [None] * self.count
        _together(lambda: dist.all_gather_object(box, value))
        return box

    def all_made(self, make: Callable[[], T]) -> list[T]:
        """What all processes make, in the order of their numbers.

        Raises:
            WaterfillError: what `make` has raised in one of them, in all of them.
        """
        if self.count == 1:
            return [make()]
        return [_value(each) for each in self.all_gather(_attempt(make))]

    def map(self, make: Callable[[int, T], R], items: Iterable[T]) -> Iterator[R]:
        """What is made of items, in their order, on all processes; each makes every `count`-th.

        Args:
            make: called with the index of an item and the item.
            items: the same in all processes, which go on in step.

        Raises:
            WaterfillError: what `make` has raised in one of them, in all of them.
        """
        numbered = enumerate(items)
        while some := list(itertools.islice(numbered, self.count)):
            found = self.all_made(partial(_made, make, some[self.rank : self.rank + 1]))
            yield from (each[0] for each in found if each)

    def all_reduce(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over all processes of whole numbers, int64, by name; where a process lacks one, it counts as zero."""
        if self.count == 1:
            return dict(tensors)
        shapes: dict[str, torch.Size] = {}
        for each in self.all_gather({name: tensor.shape for name, tensor in tensors.items()}):
            shapes |= each
        found = {}
        for name in sorted(shapes):
            found[name] = tensors[name].clone() if name in tensors else torch.zeros(shapes[name], dtype=torch.int64)
            _together(lambda name=name: dist.all_reduce(found[name]))  # type: ignore[misc]
        return found


ALONE = Processes()

_current: ContextVar[Processes] = ContextVar("processes", default=ALONE)


def current_processes() -> Processes:
    """The processes that share the compression that goes on here; this one alone where none does."""
    return _current.get()


@contextmanager
def _sharing(processes: Processes) -> Iterator[Processes]:
    """Let some processes be the current ones."""
    token = _current.set(processes)
    try:
        yield processes
    finally:
        _current.reset(token)


def _made(make: Callable[[int, T], R], items: Sequence[tuple[int, T]]) -> list[R]:
    return [make(index, item) for index, item in items]


def _attempt(make: Callable[[], T]) -> T | WaterfillError:
    """What is made, or the error instead."""
    try:
        return make()
    except WaterfillError as error:
        return error


def _value(found: T | WaterfillError) -> T:
    if isinstance(found, WaterfillError):
        raise found
    return found


def _together(exchange: Callable[[], Any]) -> None:
    """Exchange something with all processes.

    Raises:
        WaterfillError: one of them is gone.
    """
    try:
        exchange()
    except RuntimeError as error:
        raise WaterfillError(
            f"A process of this compression is gone ({str(error).splitlines()[0]}). Start it again with the same "
            "number of processes; with a work folder it goes on where it was."
        ) from error


_calls = itertools.count()


@cache
def _meeting_place() -> tuple[Any, int, int]:
    """Where the processes find each other, the number of this one, and how many there are; one for the whole run."""
    from torch.distributed.rendezvous import rendezvous  # here, for there is PyTorch without it

    found: tuple[Any, int, int] = next(rendezvous("env://"))
    return found


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """The processes of this run; a group that `torchrun` announces is joined, and left at the end.

    A program may do so several times: each has names of its own in the store, or addresses of the group before were
    found there.
    """
    if not dist.is_available() or (not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) == 1):
        yield ALONE
        return
    joined = not dist.is_initialized()
    if joined:
        store, rank, count = _meeting_place()
        names = dist.PrefixStore(f"waterfill-{next(_calls)}", store)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=names, rank=rank, world_size=count)
    try:
        with _sharing(Processes(dist.get_rank(), dist.get_world_size())) as processes:
            yield processes
    finally:
        if joined:
            dist.destroy_process_group()
