"""The adaptive model: matrices with many zeros, coded without tables (docs/format.md).

What is coded are yes-or-no decisions: whether a line has anything but zeros, and for every element where a row and a
column cross that do, whether it is zero, its sign, how many bits its magnitude has, and these bits. The logarithm of
the odds of each is the sum of a few parameters, such as those of its row, its column, and of what its neighbours are;
all begin with zero and learn from every decision, in the decoder as in the encoder. So rows and columns without weights
cost next to nothing, and there are neither scales nor tables to be stored.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import rans, tables
from waterfill.errors import FormatError
from waterfill.records import Adaptive, Floats, Layout, Symbols

SHA256 = "359721b8f11f21cb9d81a2a59ad067ed00b809299d80307c4f4c41ada13c5b50"

LARGEST_PIECE = 1 << 22
"""Elements of a tensor in one chunk."""

LARGEST_WIDTH = 1 << 16

FLAG, NEAR, FEW, LINE, COLUMN, OTHER = 1 << 10, 1 << 13, 1 << 11, 1 << 13, 1 << 14, 1 << 15
"""Weights of parameters at the start, in 1/4096: the larger, the slower they learn."""

Prices = NDArray[np.float32]


@functools.cache
def probabilities() -> NDArray[np.uint16]:
    """Probability, in 1/4096, of every logarithm of odds from -8 to 8, in 1/64 nats; uint16 [1024].

    Raises:
        RuntimeError: the file has another SHA-256.
    """
    data = resources.files("waterfill.codec").joinpath("odds.bin").read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise RuntimeError("codec/odds.bin is not the table of this format: the installation is damaged; reinstall it")
    return np.frombuffer(data, "<u2").astype(np.uint16)


@dataclass(frozen=True, eq=False)
class AdaptiveModel:
    """What codes a piece.

    Attributes:
        rows: how many there are.
        columns: how long they are.
        taps: how many columns belong to a channel.
        width: how many columns lie between an element and the one above it; 0 for none.
    """

    rows: int
    columns: int
    taps: int
    width: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.rows * self.columns

    def weights(self) -> NDArray[np.int64]:
        """Those of all parameters before the first decision."""
        from waterfill.codec import adaptive_kernels as kernels

        lines = self.rows, self.columns, self.columns // self.taps, self.taps
        found = np.full(kernels.LINES + kernels.PER_LINE * sum(lines), OTHER, np.int64)
        found[: kernels.LINES] = FLAG
        found[kernels.NEAR : kernels.SIGN] = NEAR
        found[kernels.SIGN : kernels.NODES] = FEW
        columns = kernels.LINES + kernels.PER_LINE * self.rows
        found[kernels.LINES : columns : kernels.PER_LINE] = LINE
        found[columns :: kernels.PER_LINE] = COLUMN
        return found


def model(adaptive: Adaptive, layout: Layout, start: int, stop: int) -> AdaptiveModel:
    """The model of the elements start..stop of the stream, which are whole rows."""
    _, channels, taps = layout.axes
    columns = max(1, channels * taps)
    assert start % columns == stop % columns == 0, "a piece ends within a row"
    return AdaptiveModel((stop - start) // columns, columns, max(1, taps), adaptive.width)


class AdaptiveRun:
    """The decisions of a piece."""

    def __init__(self, values: Symbols, model: AdaptiveModel, *, priced: bool = False) -> None:
        """Make them, of values [n]; `priced` also notes what zero and anything else would cost."""
        from waterfill.codec import adaptive_kernels as kernels

        matrix = values.reshape(model.rows, model.columns).astype(np.int32)
        used, cursor = np.abs(matrix[matrix != 0].astype(np.int64)), np.zeros(2, np.int64)
        most = matrix.size + model.rows + model.columns + int(2 * np.log2(used).sum()) + 5 * used.size
        events = np.empty(most, np.uint16)
        words = np.zeros(tables.PADDING, np.uint16)
        stream = kernels.Stream(kernels.WRITE, np.zeros(0, np.uint64), words, cursor, events)
        lines = matrix.any(axis=1).astype(np.uint8), matrix.any(axis=0).astype(np.uint8)
        self.prices = np.zeros((*matrix.shape, 2) if priced else (0, 0, 0), np.float32)
        kernels.run(_learnt(model), stream, matrix, model.taps, model.width, *lines, self.prices)
        self._events = events[: cursor[1]]

    @property
    def events(self) -> int:
        """Number of decisions."""
        return self._events.size

    @property
    def bits(self) -> float:
        """Their code length."""
        p = (self._events & 4095).astype(np.float64)
        return float((12 - np.log2(np.where(self._events >> 12, p, 4096 - p))).sum())

    def encode(self, states: NDArray[np.uint64], words: NDArray[np.uint16], at: int) -> int:
        """Encode them from their end; returns the new top of `words`."""
        from waterfill.codec import adaptive_kernels as kernels

        top: int = kernels.encode(self._events, tables.inverses(), states, words, at)
        return top


def decode(words: rans.Words, at: int, states: rans.States, model: AdaptiveModel) -> tuple[Symbols, int]:
    """Decode a piece: its values, and the next position in `words`.

    Raises:
        FormatError: the stream ends too early.
    """
    from waterfill.codec import adaptive_kernels as kernels

    values, cursor = np.zeros((model.rows, model.columns), np.int32), np.array([at, 0])
    stream = kernels.Stream(kernels.READ, states, words, cursor, np.zeros(0, np.uint16))
    lines = np.zeros(model.rows, np.uint8), np.zeros(model.columns, np.uint8)
    nothing = np.zeros((0, 0, 0), np.float32)
    if not kernels.run(_learnt(model), stream, values, model.taps, model.width, *lines, nothing):
        raise FormatError("a stream ends before its symbols do")
    return values.reshape(-1), int(cursor[0])


def ideal_bits(values: Symbols, model: AdaptiveModel) -> float:
    """Code length of a piece, in bits, without the end of the stream."""
    return AdaptiveRun(values, model).bits


def prices(values: Symbols, layout: Layout, adaptive: Adaptive) -> Floats:
    """Bits of zero and of anything else at every element of a whole tensor, float32 [out, in, 2].

    Where a row or a column is all zero they are zero: nothing is coded there.
    """
    flat = values.reshape(-1)
    return AdaptiveRun(flat, model(adaptive, layout, 0, flat.size), priced=True).prices


def parts(layout: Layout, size: int) -> Iterator[tuple[int, int]]:
    """Whole rows of at most so many elements each, or one."""
    columns = max(1, layout.numel // max(1, layout.axes[0]))
    span = max(1, size // columns) * columns
    return ((start, min(start + span, layout.numel)) for start in range(0, layout.numel, span))


def _learnt(model: AdaptiveModel):  # type: ignore[no-untyped-def]  # the kernels are compiled on first use
    from waterfill.codec import adaptive_kernels as kernels

    weights = model.weights()
    return kernels.Learnt(np.zeros(weights.size, np.int64), weights, probabilities(), np.zeros(8, np.int64))
