"""Calibration data that are read once and kept, so that every pass over them sees the same batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import chain
from typing import Any, overload

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from waterfill.errors import CalibrationError, WaterfillError
from waterfill.models.batches import describe, is_integer, split, tensors_in
from waterfill.models.copies import copied, is_plain, rebuilt
from waterfill.models.spilling import budget_bytes, spilled
from waterfill.processes import Processes
from waterfill.protocols import Progress

_NOTHING = object()


class RepeatableBatches(Sequence[Any]):
    """Batches that are the same in every pass, so that nobody has to keep them again."""


class KeptBatches(RepeatableBatches):
    """Batches that were read once: in memory, and on disk what memory has no room for.

    A shuffled loader, one that augments at random, or a stream that can be read once gives the same batches in every
    pass this way. Who looks at a batch gets a copy of its own. Other attributes are those of what was read, such as the
    `dataset` of a loader.

    Args:
        source: what was read.
        batches: all that it gave.
    """

    def __init__(self, source: Any, batches: Sequence[Any]) -> None:
        self._source, self._batches = source, batches

    @classmethod
    def read(cls, data: Any, progress: Progress | None = None, budget: int | None = None) -> KeptBatches:
        """Read all batches once, each copied before the next is asked for: a source may fill one buffer again.

        Args:
            data: what can be iterated over.
            progress: called with ("read", done, total) after every batch.
            budget: bytes of memory that they may take; None for a quarter of what is available.

        Raises:
            CalibrationError: the data raise something while they are read.
            WaterfillError: there is no room for them.
        """
        left, total = budget_bytes() if budget is None else budget, known_length(data)
        batches: list[Any] = []
        for batch in map(copied, read_through(data)):
            left -= sum(tensor.nbytes for tensor in tensors_in(batch))
            batches.append(batch if left >= 0 else rebuilt(batch, spilled))
            if progress is not None:
                progress("read", len(batches), max(len(batches), total))
        return cls(data, batches)

    @property
    def filled(self) -> KeptBatches:
        """Those that have samples; all where none has."""
        return KeptBatches(self._source, [each for each in self._batches if not _is_empty(each)] or self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return map(copied, self._batches)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        return copied(self._batches[index])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_source" not in self.__dict__:  # while it is being copied
            raise AttributeError(name)
        return getattr(self._source, name)


@dataclass(frozen=True, eq=False)
class OnePass(Iterable[Any]):
    """Data that are gone through once, with a look at the first batch before.

    Attributes:
        first: the first batch.
        rest: all others.
        total: how many batches there are, 0 where that is not known.
    """

    first: Any
    rest: Iterator[Any]
    total: int

    def __iter__(self) -> Iterator[Any]:
        return chain([self.first], self.rest)


def as_batches(data: Any, progress: Progress | None = None) -> Sequence[Any]:
    """Make data of what can be the same in every pass.

    Args:
        data: an iterable of batches, such as a list, a DataLoader or a generator.
        progress: called with ("read", done, total) while they are read.

    Returns:
        A list or tuple of tensors in plain containers itself, as `RepeatableBatches` are; all else read once and kept.

    Raises:
        CalibrationError: `data` is one batch, cannot be iterated over, is empty, or raises something.
    """
    check_data(data)
    stays = isinstance(data, RepeatableBatches) or (type(data) in (list, tuple) and all(map(is_plain, data)))
    batches: Sequence[Any] = data if stays else KeptBatches.read(data, progress)
    if not batches:
        raise _empty()
    return batches


def without_empty(batches: Sequence[Any]) -> Sequence[Any]:
    """Batches that have samples; they themselves where all have some, or none."""
    if isinstance(batches, KeptBatches):
        return batches.filled
    filled = [batch for batch in batches if not _is_empty(batch)]
    return batches if len(filled) in (0, len(batches)) else filled


def of_first_process(batches: Sequence[Any], processes: Processes) -> Sequence[Any]:
    """Batches of the first process in all of them, where each has read its own: a shuffled loader gives others."""
    if processes.count == 1 or not all(processes.all_gather(isinstance(batches, KeptBatches))):
        return batches
    return KeptBatches(batches, processes.broadcast(list(batches)))


def unshared(batches: Iterable[Any]) -> Iterable[Any]:
    """The same batches for code of someone else's, which may write over them."""
    return copied(batches) if isinstance(batches, list | tuple) else batches


def _is_empty(batch: Any) -> bool:
    first = next(iter(tensors_in(split(batch)[0])), None)
    return first is not None and first.ndim > 0 and len(first) == 0


def one_pass(data: Any) -> OnePass:
    """Data to go through once; nothing is kept.

    Args:
        data: as in `as_batches`.

    Raises:
        CalibrationError: as there.
    """
    check_data(data)
    batches = read_through(data)
    first = next(batches, _NOTHING)
    if first is _NOTHING:
        raise _empty()
    return OnePass(first, batches, known_length(data))


def check_data(data: Any) -> None:
    """Check that `data` is something with batches.

    Raises:
        CalibrationError: it is one batch, or cannot be iterated over.
    """
    problem = _not_batches(data)
    if problem:
        raise CalibrationError(f"Data is {problem}; expected an iterable of batches. Give a list of batches: [batch].")
    if not isinstance(data, Iterable) and not _can_be_indexed(data):
        raise CalibrationError(
            f"Data is a {type(data).__name__} and cannot be iterated over; expected an iterable of batches. "
            "Give a list of batches or wrap a dataset in torch.utils.data.DataLoader."
        )


def _empty() -> CalibrationError:
    return CalibrationError(
        "Data has no batches; expected at least one. Give a list of batches that is not empty; a generator can be read "
        "only once."
    )


def _not_batches(data: Any) -> str:
    """Say what `data` is where it is plainly a single batch or no data at all; empty text otherwise."""
    if isinstance(data, Tensor):
        return f"a single tensor {describe(data)}"
    if isinstance(data, Mapping):
        return "a single dict"
    if isinstance(data, str | bytes):
        return f"a {type(data).__name__}"
    pair = isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    if pair and is_integer(data[1]) and data[1].ndim < data[0].ndim and data[0].shape[:1] == data[1].shape[:1]:
        return f"a single pair {describe(data)}"
    return ""


def _can_be_indexed(data: Any) -> bool:
    """Whether items are had by number alone; a data set of PyTorch has samples, not batches."""
    has_items = hasattr(data, "__getitem__") and isinstance(data, Sized)
    return has_items and not isinstance(data, Dataset | type)


def known_length(data: Any) -> int:
    """How many batches there are, as far as the data say; 0 where they do not.

    A loader of a stream is not asked: it would hold the answer against what the stream gives.
    """
    if isinstance(data, OnePass):
        return data.total
    if isinstance(data, DataLoader) and isinstance(data.dataset, IterableDataset):
        return 0
    try:
        return len(data)
    except (TypeError, NotImplementedError, AttributeError, ValueError, RuntimeError, IndexError, KeyError):
        return 0


def read_through(data: Any, name: str = "The data") -> Iterator[Any]:
    """Go through data of someone else's once.

    Args:
        data: what can be iterated over, or asked for its items by number.
        name: what errors call it.

    Raises:
        CalibrationError: the data raise something; the text names the batch.
    """
    done = 0
    try:
        for batch in data if isinstance(data, Iterable) else map(data.__getitem__, range(len(data))):
            yield batch
            done += 1
    except WaterfillError:
        raise
    except Exception as error:
        raise CalibrationError(
            f"{name} failed at batch {done}: {type(error).__name__}: {error}; expected a batch or the end. Correct "
            "what reads them."
        ) from error
