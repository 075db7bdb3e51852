"""The frozen records that pass between the stations of the walk."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from waterfill.atomic import write_atomically

if TYPE_CHECKING:
    import torch

Floats: TypeAlias = NDArray[np.float32]
Symbols: TypeAlias = NDArray[np.int32]
Scales: TypeAlias = NDArray[np.int8]


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
    """

    name: str
    matrix: Floats
    layout: Layout

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
class Spread:
    """How wide the symbols spread, element by element: which frozen table codes which symbol.

    The element (i, c, t) is coded with the table of standard deviation `2^((e - 32) / 8)` steps, with
    `e = base + 2 (rows[i] + channels[c] + taps[t])`, clipped to what the bank holds.

    Attributes:
        family: index of the shape in the bank of tables.
        base: logarithm of the spread in eighths of an octave, 32 for one step.
        rows: offsets of rows in quarter octaves, int8 [out], or None for none.
        channels: the same for input channels, int8 [channels].
        taps: the same for the taps of a convolution kernel, int8 [taps].
    """

    family: int
    base: int
    rows: Scales | None = None
    channels: Scales | None = None
    taps: Scales | None = None


@dataclass(frozen=True, eq=False)
class Quantized:
    """Integer symbols, the rule that turns them into values, and the model that turns them into bits.

    Attributes:
        symbols: int32 [out, in].
        rule: the reconstruction.
        spread: the entropy model.
        bits: ideal code length of the symbols and scales under the frozen tables, and the values of a codebook.
        distortion: what the errors cost by the quadratic form the quantizer was given: `e^T I_w e`.
    """

    symbols: Symbols
    rule: Rule
    spread: Spread
    bits: float = 0.0
    distortion: float = 0.0


# What the user gets


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
    """

    tensors: Mapping[str, TensorLimit]
    bits: float
    standard_error: float
    measure: str


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


def percent_above(rate: float, limit: float) -> float | None:
    """How many percent a rate lies above a limit; None where the limit is less than anybody would print."""
    return 100 * (rate / limit - 1) if limit >= 5e-4 else None


@dataclass(frozen=True)
class TensorReport:
    """One row of the table: a tensor of the model and what it costs in the file.

    Attributes:
        name: name in the state dict.
        shape: its shape.
        numel: number of values.
        size_bytes: its share of the file, without the directory.
        rate: bits per value.
        distortion: quadratic form of its error: half of `e^T I_w e` in nats under a KL importance, `e^T I_w e` in
            squared output under a regression importance, the squared error without data; None when it has none.
        reconstruction: how symbols become values: `uniform`, `relative`, `codebook`, `exact`, `tied`, `constant`.
        reason: why a tensor is not quantized, or is quantized in a special way, or lies below its limit; else empty.
        limit: lower bound on the rate at the distortion that was reached, bits per value, under the source model; None
            for a tensor without one. The distortion is the one of `CompressionResult.limit_measure`.
        limit_error: standard error of the limit, from the fitted entropy.
        source_model: what the weights are taken to be drawn from; empty without a limit.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    size_bytes: float
    rate: float
    distortion: float | None
    reconstruction: str
    reason: str = ""
    limit: float | None = None
    limit_error: float | None = None
    source_model: str = ""

    @property
    def gap(self) -> float | None:
        """Bits per value above the limit."""
        return None if self.limit is None else self.rate - self.limit

    @property
    def gap_percent(self) -> float | None:
        """The gap in percent of the limit; None without a limit above zero."""
        return None if self.limit is None else percent_above(self.rate, self.limit)

    def to_dict(self) -> dict[str, Any]:
        """All fields and the gap, by name."""
        return dataclasses.asdict(self) | {"gap": self.gap, "gap_percent": self.gap_percent}


@dataclass(frozen=True, eq=False)
class CompressionResult:
    """A compressed model: the bytes of the file and what is known about it.

    Attributes:
        data: the whole file.
        floating_values: number of floating-point values of the model, tied ones once.
        original_bytes: bytes of all tensors before, tied ones once.
        tensors: a row for every entry of the state dict.
        overhead_bytes: bytes that belong to no tensor (header, directory, checksums, stream ends).
        water_level: distortion per weight at which every weight is filled.
        distortion: mean distortion on the calibration data, measured: D(original || compressed) in nats for logits,
            squared error for values; None without data.
        target: what was asked, for example `{"rate": 3.0}`; empty for quantizers of a fixed rate without a target.
        importance: name of the importance that was used.
        importance_power: to which power the importances of the matrices were taken when steps were chosen.
        limit: lower bound on the rate of the whole file at the distortion that was reached, bits per value, under the
            source models of its tensors; tensors without one count as they are stored. It holds on average over
            networks drawn from these sources; it is no converse for this one network.
        limit_error: standard error of the limit, from the fitted entropies.
        limit_measure: the distortion of the limit: the quadratic form of this importance, to the power kept.
    """

    data: bytes = field(repr=False)
    floating_values: int
    original_bytes: int
    tensors: tuple[TensorReport, ...] = field(repr=False)
    overhead_bytes: float
    water_level: float
    distortion: float | None
    target: Mapping[str, float]
    importance: str
    importance_power: float
    limit: float
    limit_error: float
    limit_measure: str

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        return len(self.data)

    @property
    def rate(self) -> float:
        """Bits of the whole file per floating-point value of the model."""
        return 8 * self.size_bytes / max(1, self.floating_values)

    @property
    def gap(self) -> float:
        """Bits per value of the whole file above its limit."""
        return self.rate - self.limit

    @property
    def gap_percent(self) -> float | None:
        """The gap in percent of the limit; None where that is zero."""
        return percent_above(self.rate, self.limit)

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than the tensors were."""
        return self.original_bytes / self.size_bytes

    def save(self, path: str | Path, *, force: bool = True) -> None:
        """Write the file; a reader sees the old file or the whole new one, never a part.

        Args:
            path: where to write.
            force: replace a file that exists; otherwise it is refused.

        Raises:
            WaterfillError: the folder is missing or not writable, or the file exists and `force` is False.
        """
        write_atomically(Path(path), [self.data], force=force)

    def to_json(self) -> str:
        """Everything but the bytes, as JSON text."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("data", "tensors")}
        fields |= {name: getattr(self, name) for name in ("size_bytes", "rate", "ratio", "gap", "gap_percent")}
        fields |= {"target": dict(self.target), "tensors": [row.to_dict() for row in self.tensors]}
        return json.dumps(fields, indent=1)
