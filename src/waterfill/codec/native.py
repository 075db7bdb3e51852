"""The reader in C (`decoders/c`), where it was built: the same bits and refusals, without compilation at first use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from waterfill.codec.opened import FilePart
from waterfill.records import Symbols

if TYPE_CHECKING:
    from waterfill.codec._native import File

try:
    from waterfill.codec import _native
except ImportError:  # there was no compiler
    _native = None  # type: ignore[assignment]

_is_off = False


def is_there() -> bool:
    """Whether files are read by it."""
    return _native is not None and not _is_off


@contextmanager
def switched_off() -> Iterator[None]:
    """Let Python read meanwhile, in all threads."""
    global _is_off
    before, _is_off = _is_off, True
    try:
        yield
    finally:
        _is_off = before


def opened(data: bytes | memoryview | FilePart) -> File:
    """A file that it reads.

    Raises:
        ValueError: the file is damaged.
        FormatError: it cannot be read.
    """
    if isinstance(data, FilePart):
        return _native.File(_reading(data), len(data))
    return _native.File(data)


def path_bits(levels: Symbols, *model: NDArray[Any], centred: bool, span: int) -> float:
    """Code length of the levels of a path, as `path_kernels.code_length` adds it up.

    Args:
        levels: int32 [n].
        model: `classes`, `aside` and `entries` of `path_kernels.walk`; `bits`, `lows` and `last` of `code_length`.
        centred: whether zero is in subset 1 too.
        span: the state is 0 again after so many levels.

    Raises:
        ValueError: they are no path.
    """
    arrays = map(np.ascontiguousarray, (levels, *model))
    found: float = _native.path_bits(*arrays, centred, span)
    if found < 0:
        raise ValueError("a symbol is not in the subset of its state; expected a path")
    return found


def _reading(data: FilePart) -> Callable[[int, int], bytes]:
    return lambda start, size: data[start : start + size]
