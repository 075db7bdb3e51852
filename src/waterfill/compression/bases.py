"""In which basis a tensor is coded: the one in which it takes the fewest bits at about the level that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from waterfill.bases.fitting import fitted_flips, fitted_rotations
from waterfill.bases.rotations import LONGEST_BLOCK, LONGEST_ROTATED, MOST_TAPS, number_of_angles
from waterfill.bases.turning import coefficients
from waterfill.codec.basis_lines import angles_of
from waterfill.codec.own import stored_bits
from waterfill.compression.limits import Sample, SourceModels
from waterfill.errors import UsageError
from waterfill.io.parts import part_of
from waterfill.processes import ALONE, Processes
from waterfill.protocols import QuadraticForm, Quantizer, Quartic, traits_of
from waterfill.quantize.level_table import needs_table
from waterfill.quantize.prepared import draft_of
from waterfill.quantize.trellis import PRICE_OF_BIT, lagrangian
from waterfill.records import CHANNELS, OUT, TAPS, Basis, Cosines, Flips, Floats, Layout, Rotations, Weight
from waterfill.resume.folder import NOTHING_KEPT, Memo
from waterfill.theory.checks import Array
from waterfill.theory.scaled_source import ScaledSource

LEAST_GAIN = 0.01
"""Bits per weight that a basis has to save."""

RATE = 2.5
"""Bits a weight, about, for which bases are chosen where the level is not known."""

LINE_BITS = 64.0
"""What the line of a basis takes in the directory, about."""

LEAST_BITS = 400.0
"""That a basis has to save beside its line: the first one brings a key of the directory, and often a chunk."""

FEWEST, MOST_BITS = 64, 16
"""Fewest weights of a tensor that is turned, and most bits of each: beyond them rounding in single precision shows."""

LOOKED_AT, TIMES_A_VALUE = 1 << 16, 64
"""Values occur so often each in tensors that keep their basis, among the first so many weights."""

FLAT = 3.5
"""Shape of the density of weights from which they keep their basis; that of a Gaussian is 2."""

SMOOTH, LUMPED = 0.5, 8.0
"""Correlation of neighbours from which a flat density is that of smooth rows, unless it is flatter than this shape.

Rows of an autoregression of .95 over their scales have 3.8, lumps whose spread is a tenth of their distance 30.
"""

LARGEST = 2.0**100
"""Magnitude of the weights of a tensor that is turned, at most: sums stay in range."""

SAMPLED = 1 << 17
"""Weights of a tensor by which bases that do not mix its rows are compared, at least."""

SMALL = 1 << 13
"""Tensors of at most so many weights are quantized in every basis; of larger ones bits are foreseen."""

MOST_ANGLES = 128
"""Of flips that are tried."""

SHORT_BLOCK = 16
"""Cosines in such blocks are tried where an axis of a kernel is longer."""

LEAST_CORRELATION, ERRORS = 0.1, 3.0
"""Of neighbours along an axis from which cosines are tried there, and so many of its standard errors at least."""

LONG, VERY_LONG = 2, 16
"""How many times as long as wide a table is, at least, for rotations of some and of all directions to be tried."""

DIRECTIONS = (4, 32)
"""Of rotations that are tried beside all; of those that are a quarter of all at most."""


@dataclass(eq=False)
class Bases:
    """Bases of tensors, each chosen once.

    Attributes:
        quantizer: of the tensors.
        level: about which they are quantized; None for that at which each takes `RATE`.
        kinds: which bases are tried.
        mixes_rows: whether rows may be mixed. Errors of what is left out are then not alike in all rows, and without
            data nobody knows which rows are used most, such as those of the first positions.
        processes: all of them take what the first one chooses, for others may be a rounding away.
        memo: of what is quantized already.
    """

    quantizer: Quantizer
    level: float | None = None
    kinds: tuple[type[Basis], ...] = (Cosines, Flips, Rotations)
    mixes_rows: bool = True
    processes: Processes = ALONE
    memo: Memo = NOTHING_KEPT
    _known: dict[str, Basis | None] = field(default_factory=dict, repr=False)

    def of(self, weight: Weight, form: Callable[[], QuadraticForm | None]) -> Basis | None:
        """The basis of a tensor, the same for all slices of one that may be turned; None for its own values.

        Args:
            weight: the tensor.
            form: gives what errors cost where it is quantized; None for 1 everywhere.
        """
        part = part_of(weight.name)
        is_slice = part is not None and part.stop is not None
        name = part.tensor if part is not None and is_slice else weight.name
        if name not in self._known:
            self._known[name] = self.processes.broadcast_made(lambda: self._chosen(weight, form()))
        found = self._known[name]
        if found is None or not is_slice:
            return found
        along_rows = isinstance(found, Rotations) and found.axis == OUT  # of which another slice has others
        return found if self._may_turn(weight) and not along_rows else None

    def _chosen(self, weight: Weight, form: QuadraticForm | None) -> Basis | None:
        if isinstance(form, Quartic) or not self._may_turn(weight):
            return None
        tried = (each for each in _candidates(weight, form) if isinstance(each, self.kinds))
        candidates = [each for each in tried if self.mixes_rows or each.axis != OUT]
        if not candidates:
            return None
        sources = SourceModels()
        sample, form = _sampled(weight, form, mixes_rows=any(each.axis == OUT for each in candidates))
        if weight.matrix.size > SMALL and _has_lumps(weight, sources.source(sample.weight)):
            return None
        weight = sample.weight
        level = self.level
        if level is None:
            level = sources.forecast(weight, form).level_at_forecast(RATE * weight.matrix.size)
        best, least = None, sample.times * self._price(weight, form, level, sources)
        if least > MOST_BITS * sample.times * weight.matrix.size:
            return None
        least -= max(LEAST_GAIN * sample.times * weight.matrix.size, LEAST_BITS)
        for basis in candidates:
            form_there = form_in_basis(form, basis, weight.layout)
            price = sample.times * self._price(in_basis(weight, basis), form_there, level, SourceModels())
            price += basis_bits(basis)
            if price < least:
                best, least = basis, price
        return best

    def _may_turn(self, weight: Weight) -> bool:
        """Whether a tensor is a matrix, neither sparse nor of few values nor of extreme ones."""
        matrix = weight.matrix
        if weight.is_vector or matrix.size < FEWEST:
            return False
        if not traits_of(self.quantizer).any_basis or 2 * np.count_nonzero(matrix) <= matrix.size:
            return False
        return not (needs_table(matrix) or _has_few_values(matrix)) and float(np.abs(matrix).max()) < LARGEST

    def _price(self, weight: Weight, form: QuadraticForm | None, level: float, sources: SourceModels) -> float:
        """Bits of a tensor at the level, with what its errors cost in bits."""
        if weight.matrix.size <= SMALL:
            draft = draft_of(self.quantizer)
            key = ("quantized", weight, draft, form, level)
            found = self.memo.once(key, lambda: draft.quantize(weight, form, level))
            return lagrangian(found, level) / (PRICE_OF_BIT * level)
        components = sources.forecast(weight, form)
        return components.rate(level) + components.distortion(level) / (PRICE_OF_BIT * level)


def in_basis(weight: Weight, basis: Basis | None) -> Weight:
    """A tensor in a basis; None for its own values."""
    if basis is None:
        return weight
    return replace(weight, matrix=coefficients(weight.matrix, basis, weight.layout), basis=basis)


def form_in_basis(form: QuadraticForm | None, basis: Basis | None, layout: Layout) -> QuadraticForm | None:
    """What errors of a tensor cost in a basis; None where that is not known."""
    return form if form is None or basis is None else form.turned(basis, layout)


def _sampled(weight: Weight, form: QuadraticForm | None, *, mixes_rows: bool) -> tuple[Sample, QuadraticForm | None]:
    """Some rows of a tensor by which bases are compared, with their form; all where a basis mixes them."""
    sample = Sample.of(weight) if mixes_rows else Sample.of(weight, SAMPLED)
    try:
        return sample, None if form is None else sample.form(form)
    except UsageError:  # groups of rows that have columns of their own
        return Sample(weight, 1, 1.0), form


def _has_lumps(weight: Weight, source: ScaledSource | None) -> bool:
    """Whether a tensor has a flat density, as that of two lumps: a code may know them, a forecast does not.

    Smooth rows look flat over their scales, too, but less than lumps do, and neighbours go on.
    """
    if source is None or source.shape <= FLAT:
        return False
    smooth = max(abs(_correlation(weight, axis)) for axis in (OUT, CHANNELS)) > SMOOTH
    return not smooth or source.shape > LUMPED


def _has_few_values(matrix: Floats) -> bool:
    """Whether weights, of a large matrix some, have so few values that these are better than any coefficients."""
    some = matrix.reshape(-1)[:LOOKED_AT]
    return bool(np.unique(some).size * TIMES_A_VALUE <= some.size)


def basis_bits(basis: Basis) -> float:
    """What a file says of a basis."""
    return LINE_BITS + sum(float(stored_bits(angles).min()) for angles in angles_of(basis) if angles.size)


def _candidates(weight: Weight, form: QuadraticForm | None) -> Iterator[Basis]:
    yield from _of_taps(weight)
    for axis in (OUT, CHANNELS):
        if abs(_correlation(weight, axis)) > max(LEAST_CORRELATION, ERRORS / weight.matrix.size**0.5):
            yield Cosines(axis, LONGEST_BLOCK)
    if weight.layout.axes[TAPS] == 1:
        yield from _of_table(weight, form)


def _of_taps(weight: Weight) -> Iterator[Basis]:
    taps, shape = weight.layout.axes[TAPS], weight.layout.shape[2:]
    if not 1 < taps <= MOST_TAPS:
        return
    yield Cosines(TAPS, LONGEST_BLOCK)
    if max(shape) > SHORT_BLOCK:
        yield Cosines(TAPS, SHORT_BLOCK)
    if number_of_angles(shape) <= MOST_ANGLES:
        yield fitted_flips(_covariance_of_taps(weight), shape)


def _of_table(weight: Weight, form: QuadraticForm | None) -> Iterator[Basis]:
    """Rotations along the short side of a long table; parts of one have different rows, and rotate columns alone."""
    out, channels, _ = weight.layout.axes
    sides = [(CHANNELS, channels, out)] + [(OUT, out, channels)] * (part_of(weight.name) is None)
    for axis, width, length in sides:
        if 2 <= width <= LONGEST_ROTATED and length >= LONG * width:
            covariance = _covariance(weight, form, axis)
            some = [each for each in DIRECTIONS if 4 * each <= width]
            for directions in some + [width - 1] * (length >= VERY_LONG * width):
                yield fitted_rotations(covariance, axis, directions)


def _covariance_of_taps(weight: Weight) -> Array:
    """Mean products of the taps of a tensor, rows alike."""
    rows = weight.matrix.astype(np.float64)
    rows /= np.maximum(np.sqrt(np.square(rows).mean(axis=1, keepdims=True)), 1e-30)
    kernels = rows.reshape(-1, weight.layout.axes[2])
    return np.asarray(kernels.T @ kernels / len(kernels))


def _covariance(weight: Weight, form: QuadraticForm | None, axis: int) -> Array:
    """Mean products along an axis of a table, each place of the other one by what its errors cost."""
    vectors = weight.matrix.astype(np.float64)
    vectors = vectors if axis == CHANNELS else vectors.T
    if form is not None:
        prices = form.diagonal().mean(axis=1 if axis == CHANNELS else 0, dtype=np.float64)
        vectors = vectors * np.sqrt(np.maximum(prices, 0) / (prices.mean() or 1.0))[:, None]
    return np.asarray(vectors.T @ vectors / len(vectors))


def _correlation(weight: Weight, axis: int) -> float:
    """Of neighbours along an axis, of a large tensor for some of the places along the others."""
    values = weight.matrix.reshape(weight.layout.axes)
    every = max(1, weight.matrix.size // SAMPLED)
    values = np.moveaxis(values[:, ::every] if axis == OUT else values[::every], axis, 0)
    if len(values) < 2:
        return 0.0
    total = float(np.vdot(values, values))
    return float(np.vdot(values[1:], values[:-1])) / total if total > 0 else 0.0
