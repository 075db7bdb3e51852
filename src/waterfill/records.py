"""The frozen records that pass between the stations of the walk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Floats: TypeAlias = NDArray[np.float32]
Symbols: TypeAlias = NDArray[np.int32]
Scales: TypeAlias = NDArray[np.int8]

ALL = -3 * 127
"""The lowest sum of three scales."""
AxisScales: TypeAlias = tuple[Scales | None, Scales | None, Scales | None]
"""Of rows, channels and taps; None for none."""

NO_SCALES: AxisScales = (None, None, None)


@dataclass(frozen=True)
class Layout:
    """How a tensor of any shape is read as the matrix [out, in] of the normal form, and back.

    A plain tensor `[out, channels, *taps]` is flattened after its first axis. A *transposed* one, as in a transposed
    convolution `[channels * groups, out / groups, *taps]` or an embedding table `[tokens, features]`, has its first
    two axes exchanged inside every group. Tensors with fewer than two axes are one row.

    Attributes:
        shape: the tensor's own shape, as in the state dict.
        transposed: whether the input axis comes first in `shape`.
        groups: number of groups of a transposed tensor (1 otherwise).
    """

    shape: tuple[int, ...]
    transposed: bool = False
    groups: int = 1

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def axes(self) -> tuple[int, int, int]:
        """The three axes (out, channels, taps) of the normal form; `in = channels * taps`."""
        if len(self.shape) < 2:
            return 1, self.numel, 1
        taps = math.prod(self.shape[2:])
        if self.transposed:
            return self.shape[1] * self.groups, self.shape[0] // self.groups, taps
        return self.shape[0], self.shape[1], taps

    def line_length(self, down: bool) -> int:
        """How many values a row of the matrix [out, in] has, or with `down` a column; at least 1."""
        out, channels, taps = self.axes
        return max(1, out if down else channels * taps)

    def to_matrix(self, values: NDArray[Any]) -> NDArray[Any]:
        """Read values of `shape` as the matrix [out, channels * taps]."""
        out, channels, taps = self.axes
        if self.transposed:
            values = values.reshape(self.groups, channels, out // self.groups, taps).swapaxes(1, 2)
        return np.ascontiguousarray(values).reshape(out, channels * taps)

    def from_matrix(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Undo `to_matrix`."""
        out, channels, taps = self.axes
        if self.transposed:
            matrix = matrix.reshape(self.groups, out // self.groups, channels, taps).swapaxes(1, 2)
        return np.ascontiguousarray(matrix).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Weight:
    """One floating-point tensor in normal form.

    Attributes:
        name: its name in the state dict.
        matrix: float32 values [out, in].
        layout: how the matrix becomes the tensor again.
        basis: in which the matrix is; None for the values themselves.
    """

    name: str
    matrix: Floats
    layout: Layout
    basis: Basis | None = None

    @property
    def are_rows_alike(self) -> bool:
        """Whether some rows at equal distances stand for all; coefficients of rows go from large to small ones."""
        return self.basis is None or self.basis.axis != OUT

    @property
    def is_vector(self) -> bool:
        """Whether the tensor has fewer than two axes (biases, norm parameters, scalars)."""
        return len(self.layout.shape) < 2


# How an entry of a state dict comes back from the file


@dataclass(frozen=True)
class Coded:
    """The entry is a quantized weight of its own name."""

    layout: Layout


@dataclass(frozen=True)
class Exact:
    """The entry is stored without loss; `reason` says why."""

    reason: str


@dataclass(frozen=True)
class Tied:
    """The entry is the same tensor as the entry `to`, which comes earlier and is not tied itself."""

    to: str


@dataclass(frozen=True)
class Constant:
    """Every element is `value`: the mean (0) or the variance (1 - eps) of a folded norm."""

    value: float


@dataclass(frozen=True)
class NormVariance:
    """The variance of a folded norm without affine parameters: `1 / s^2 - eps` of the coded scale s."""

    layout: Layout
    eps: float


@dataclass(frozen=True)
class NormMean:
    """The mean of a folded norm without affine parameters: `-t / s` of the coded shift t and the scale in `scale`."""

    layout: Layout
    scale: str


Origin: TypeAlias = Coded | Exact | Tied | Constant | NormVariance | NormMean


@dataclass(frozen=True)
class Entry:
    """One entry of a state dict: what it is and where its values come from.

    Attributes:
        name: name in the state dict.
        shape: its shape.
        dtype: its PyTorch type without the prefix, such as `float32`.
        origin: where the values come from.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    origin: Origin


@dataclass(frozen=True, eq=False)
class Inventory:
    """Everything in a state dict, in its order, sorted into what is quantized and what is kept as it is.

    Attributes:
        entries: one for every name of the state dict.
        weights: the tensors to quantize, for every entry of origin `Coded`, `NormVariance` (there the scale s) and
            `NormMean` (there the shift t), in the order of the entries.
        exact: the tensors of origin `Exact`.
    """

    entries: tuple[Entry, ...]
    weights: Mapping[str, Weight]
    exact: Mapping[str, torch.Tensor]

    @property
    def floating_values(self) -> int:
        """Number of floating-point values of the state dict, tied ones once: what a rate is divided by."""
        return count_floating(self.entries)


def count_floating(entries: Iterable[Entry]) -> int:
    """Number of floating-point (or complex) values of a state dict, tied ones once."""
    return sum(
        math.prod(entry.shape)
        for entry in entries
        if not isinstance(entry.origin, Tied) and ("float" in entry.dtype or "complex" in entry.dtype)
    )


# In which basis a matrix is coded

OUT, CHANNELS, TAPS = 0, 1, 2
"""The axes of the normal form [out, channels, taps]."""

AXIS_NAMES = ("rows", "channels", "taps")


@dataclass(frozen=True)
class Cosines:
    """The discrete cosine transform (DCT-II) in blocks along an axis, about: its angles are rounded.

    Attributes:
        axis: `OUT`, `CHANNELS` or `TAPS`; along every axis of the kernel for taps.
        block: length of the longest block, 2 to 512.
    """

    axis: int
    block: int

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"DCT of {AXIS_NAMES[self.axis]}"


@dataclass(frozen=True, eq=False)
class Flips:
    """Sums and differences of taps that are opposite along an axis of a kernel, and rotations of those that are alike.

    Along every axis of length k the taps i and k - 1 - i become `(x + y) / sqrt 2`, in the place of the first, and
    `(y - x) / sqrt 2`. Places that are a sum or the middle along the same axes are a *class*; in each, in the order of
    the places, the pairs (0, 1), (0, 2), ..., (1, 2), ... are rotated one after the other.

    Attributes:
        angles: int8 [pairs of the first class, then of the others], in 1/256 of a turn.
    """

    angles: NDArray[np.int8]
    axis: ClassVar[int] = TAPS

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"learnt basis of {AXIS_NAMES[self.axis]}"


@dataclass(frozen=True, eq=False)
class Rotations:
    """Rotations of pairs of coordinates along an axis, (0, 1), (0, 2), ..., (1, 2), ..., one after the other.

    Attributes:
        axis: `OUT` or `CHANNELS`.
        directions: how many coordinates are the first one of a pair.
        angles: int8 [pairs], in 1/256 of a turn.
    """

    axis: int
    directions: int
    angles: NDArray[np.int8]

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"learnt basis of {AXIS_NAMES[self.axis]}"


Basis: TypeAlias = Cosines | Flips | Rotations
"""An orthonormal basis along one axis of the normal form."""


@dataclass(frozen=True, eq=False)
class Directions:
    """Any orthonormal basis along one axis of the normal form: of models of weights, never of a file.

    Attributes:
        axis: `OUT`, `CHANNELS` or `TAPS`.
        matrix: float32 [coefficients, values].
    """

    axis: int
    matrix: Floats

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"covariance of {AXIS_NAMES[self.axis]}"


Turn: TypeAlias = Basis | Directions
"""Any change of coordinates along one axis."""


# What a quantizer decides


@dataclass(frozen=True, eq=False)
class Uniform:
    """Uniform reconstruction: `value = level(k) * step * 2^((row + channel + tap) / 4)`.

    `level(k) = k + offset - sgn(k) shrink[min(|k|, 3) - 1] / 64`, with level(0) = offset.

    Attributes:
        step: logarithm of the step in 1/64 octave; the step is `2^(step / 64)`.
        offset: added to every symbol (for values that do not lie around zero).
        shrink: how far the centroids of |k| = 1, 2, >= 3 lie towards zero, in 1/64 step.
        rows: log2 scale of every row in quarter octaves, int8 [out], or None for none.
        channels: the same for every input channel, int8 [channels].
        taps: the same for every tap of a convolution kernel, int8 [taps].
    """

    step: int
    offset: int = 0
    shrink: tuple[int, int, int] = (0, 0, 0)
    rows: Scales | None = None
    channels: Scales | None = None
    taps: Scales | None = None

    @property
    def scales(self) -> AxisScales:
        """Those of the steps, axis by axis."""
        return self.rows, self.channels, self.taps


@dataclass(frozen=True)
class Relative:
    """Floating-point reconstruction: a float32 rounded to a few mantissa bits, for values of unknown sensitivity.

    The symbol is `q - offset`, or `2 (q - offset) + sign` when `signed`, where `q` is the float32 pattern without
    its sign, shifted right by `23 - mantissa` bits with rounding. A value of another sign or scale keeps the same
    relative precision `2^-(mantissa + 1)`, and no variance becomes zero.

    Attributes:
        mantissa: number of mantissa bits kept, 0 to 23.
        offset: subtracted from every pattern.
        signed: whether the lowest bit of a symbol is the sign.
    """

    mantissa: int
    offset: int
    signed: bool


@dataclass(frozen=True, eq=False)
class Codebook:
    """Reconstruction by table: `value = values[k - first]`.

    Symbols count from the value nearest zero, so that they are small where weights are.

    Attributes:
        values: float32 [at least 1, at most 65,536], finite; rising, so that symbols are in the order of the values.
        first: the symbol of the first value, from `1 - len(values)` to 0.
    """

    values: Floats
    first: int = 0


Rule: TypeAlias = Uniform | Relative | Codebook


@dataclass(frozen=True, eq=False)
class Table:
    """Frequencies of a tensor's own: of consecutive symbols, and of the escape to whatever codes the others.

    Attributes:
        first: the symbol of the first root.
        roots: int32 [n + 1], 0 to 1023, n from 1 to 255; the frequency of the symbol `first + i` goes as the square of
            the root i, that of the escape as the square of the last one. No root, no frequency.
    """

    first: int
    roots: Symbols


@dataclass(frozen=True)
class Lanes:
    """The parts of a path that are decoded side by side: groups of consecutive lines.

    Lines are the columns of the matrix [out, in] for a path that goes down these, else its rows. Every lane is a path
    of its own from state 0 on, which goes on from line to line, and has a state of the entropy coder of its own.

    Attributes:
        count: how many lanes there are at a time, 8 or 32.
        lines: how many lines a lane has; the last one of a tensor may have fewer.
    """

    count: Literal[8, 32]
    lines: int


@dataclass(frozen=True)
class Paths:
    """Symbols that are a path through a trellis: which of two subsets of the whole numbers the next one is from.

    Subset 0 has the even numbers `2k`. Subset 1 has the odd ones `2k + 1`, or with `zero` also zero: `2k - sgn(k)`.
    The state says which subset it is, the lowest bit of k where the path goes on, and k is what is coded.

    Attributes:
        log_states: logarithm of the number of states, 2 to 12.
        zero: whether zero is in subset 1 too.
        log_span: the state is 0 again after every `2^log_span` symbols, with `down` after so many columns.
        family: shape of the tables of subset 1 (that of subset 0 is in the spread).
        base: logarithm of the spread of k in subset 1, in eighths of an octave, 32 for one.
        down: whether the path, and the stream with it, goes down the columns of the matrix [out, in], one after the
            other; else along its rows.
        least: an element whose offsets in the spread (rows, channels and taps) have a sum below this stands aside: its
            symbol is `2k` with the tables of subset 0, and the state stays. Zero is what is best for elements of low
            rate, and half of the states do not have it.
        lanes: how it is decoded side by side; then the state is 0 again where a lane begins, and `log_span` is 0. None
            for one symbol after the other.
    """

    log_states: int
    zero: bool
    log_span: int
    family: int
    base: int
    down: bool = False
    least: int = ALL
    lanes: Lanes | None = None

    def span(self, layout: Layout) -> int:
        """After how many symbols of a tensor of this layout the state is 0 again."""
        if self.lanes is not None:
            return min(self.lanes.lines * layout.line_length(self.down), 1 << 62)
        return min(max(1, layout.axes[0] if self.down else 1) << self.log_span, 1 << 62)


@dataclass(frozen=True)
class Adaptive:
    """Symbols of a model that learns as it goes and has no tables: for matrices with many zeros, and small ones.

    Attributes:
        width: how many columns lie between an element and the one above it in the picture that a row is (such as 28 for
            pictures of 28 x 28); 0 for none.
    """

    width: int = 0


@dataclass(frozen=True, eq=False)
class Spread:
    """How wide the symbols spread, element by element: which table codes which symbol.

    A symbol is coded with the first of the tensor's own tables that has it, after an escape from those before. All
    others, without own tables all, have frozen ones: the element (i, c, t) that of standard deviation
    `2^((e - 32) / 8)` steps, with `e = base + 2 (rows[i] + channels[c] + taps[t])`, clipped to what the bank holds.

    Attributes:
        family: index of the shape in the bank of tables.
        base: logarithm of the spread in eighths of an octave, 32 for one step.
        rows: offsets of rows in quarter octaves, int8 [out], or None for none.
        channels: the same for input channels, int8 [channels].
        taps: the same for the taps of a convolution kernel, int8 [taps].
        tables: the tensor's own tables, at most two; none with a trellis.
        trellis: through which the symbols are a path; None where they are free. What is coded is then k, two steps are
            its unit, and subset 1 has tables of its own shape and base under the same offsets.
        adaptive: the model in the place of all of the above; None for tables.
    """

    family: int
    base: int
    rows: Scales | None = None
    channels: Scales | None = None
    taps: Scales | None = None
    tables: tuple[Table, ...] = ()
    trellis: Paths | None = None
    adaptive: Adaptive | None = None

    @property
    def scales(self) -> AxisScales:
        """The offsets, axis by axis."""
        return self.rows, self.channels, self.taps

    @property
    def down(self) -> bool:
        """Whether the symbols are in the stream column by column."""
        return self.trellis is not None and self.trellis.down

    @property
    def levels(self) -> str:
        """What uniform levels are called under it."""
        return "uniform" if self.trellis is None else f"path, {1 << self.trellis.log_states} states"


@dataclass(frozen=True, eq=False)
class Quantized:
    """Integer symbols, the rule that turns them into values, and the model that turns them into bits.

    Attributes:
        symbols: int32 [out, in].
        rule: the reconstruction.
        spread: the entropy model.
        bits: ideal code length of the symbols, the scales and the tensor's own tables, and the values of a codebook.
        distortion: what the errors cost by the quadratic form the quantizer was given: `e^T I_w e`.
        basis: in which the symbols are; None for the taps themselves.
        row_costs: what the errors of every row cost by the factor over columns of that form, float64 [out]; None where
            the form has no such factor, or rows that go together.
    """

    symbols: Symbols
    rule: Rule
    spread: Spread
    bits: float = 0.0
    distortion: float = 0.0
    basis: Basis | None = None
    row_costs: NDArray[np.float64] | None = None


# How small it could be


@dataclass(frozen=True)
class TensorLimit:
    """A lower bound on the rate of one tensor at the distortion that was reached.

    Attributes:
        rate: bits per value.
        source_model: what the weights are taken to be drawn from.
        standard_error: of the fitted entropy, bits per value.
    """

    rate: float
    source_model: str
    standard_error: float


@dataclass(frozen=True, eq=False)
class Limits:
    """Lower bounds at the distortions that were reached.

    Attributes:
        tensors: of every tensor that has a source model, at its own distortion.
        bits: of all of them together, at the sum of their distortions; every other tensor counts as it is stored.
        standard_error: of `bits`, from the fitted entropies.
        measure: the distortion, by the name of its importance.
        distortion: the sum at which `bits` is the bound.
        curve: (bits, distortion) of the same bound from the fewest bits on; empty where nothing has a limit.
    """

    tensors: Mapping[str, TensorLimit]
    bits: float
    standard_error: float
    measure: str
    distortion: float = 0.0
    curve: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, eq=False)
class FileLimit:
    """What a file says about its limit.

    Attributes:
        bits: lower bound for the whole file, rounded to bits.
        rates: bits per value of the matrices that have one, by name, rounded to hundredths.
        measure: the distortion, by the name of its importance.
    """

    bits: int
    rates: Mapping[str, float]
    measure: str
