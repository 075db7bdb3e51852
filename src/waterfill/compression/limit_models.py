"""The source of a tensor for its limit: structure, density and places of zeros, chosen by description length."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from waterfill.compression.limit_components import Components
from waterfill.compression.rate_model import VarianceHistogram
from waterfill.compression.source_structure import StructuredSource, structured
from waterfill.importance import DiagonalForm, KroneckerForm
from waterfill.protocols import QuadraticForm
from waterfill.records import OUT, Floats, Layout, Turn, Weight
from waterfill.theory.checks import Array
from waterfill.theory.gaussian_mixture import GaussianMixture, fit_gaussian_mixture
from waterfill.theory.scalar_rate import ScalarSource
from waterfill.theory.scaled_source import ScaledSource, fit_scaled_source
from waterfill.theory.sources import scale_entropy
from waterfill.theory.structure_left import Finding, excess_of_density, excess_of_zeros, findings

MOST_LETTERS = 16
TIMES_A_LETTER = 16
"""Weights of so few different values are drawn from these, if each comes so often on average."""

FEWEST_ZEROS = 0.002
"""Share of zeros from which their places count: fewer take .02 bit a weight."""

MISSED = 0.01
"""Bits by which a generalized Gaussian misses the density, from which lumps are tried."""

SHAPES_AN_OCTAVE = 8
SHARES_A_NAT = 32
"""Shapes and shares of zeros are rounded for tables of the same density to be one."""

WIDEST_WHOLE = 2048
"""Coordinates of a factor that is made a matrix, if it is the vector of its diagonal."""


@dataclass(frozen=True)
class SourceSummary:
    """Report of the source of a tensor, which is kept when the source is gone.

    Attributes:
        name: for tables.
        standard_error: of the mean entropy, bits a weight.
        left: structure that the source lacks.
    """

    name: str
    standard_error: float
    left: tuple[Finding, ...] = ()

    @property
    def note(self) -> str:
        """For the row of a tensor; empty where the source fits."""
        return f"the source lacks: {', '.join(map(str, self.left))}" if self.left else ""


@dataclass(frozen=True, eq=False)
class LimitSource:
    """Source from which the weights of a tensor are taken to be drawn, without the weights.

    Attributes:
        summary: for reports.
        layout: of the weights.
        turns: to the coordinates in which they are independent, in order.
        scaled: their scales there.
        scalar: the density of each over its scale; None for that of `scaled`, by its entropy.
        parameters: how many numbers were fitted beside scales and shape.
    """

    summary: SourceSummary
    layout: Layout
    turns: tuple[Turn, ...]
    scaled: ScaledSource
    scalar: ScalarSource | None = None
    parameters: int = 0

    def components(self, matrix: Floats, form: QuadraticForm | None, times: float) -> Components:
        """Components of the limit under a form.

        Args:
            matrix: the weights [out, in], of which only the places of zeros are looked at.
            form: what errors cost; None for their squares.
            times: how often each counts.
        """
        if form is not None:
            form = functools.reduce(lambda found, turn: _turned(found, turn, self.layout), self.turns, form)
        scaled = self.scaled.unbiased(self.parameters)
        if self.scalar is None:
            variances = scaled.entropy_powers(matrix) if form is None else form.component_variances(scaled, matrix)
            return Components(VarianceHistogram.of(variances, times))
        scaled = _of_unit_variance(scaled)
        if form is None:
            return Components(others={self.scalar: VarianceHistogram.of(scaled.entropy_powers(matrix), times)})
        factors = form.conditional_variances(scaled, matrix)
        return Components(others={self.scalar: VarianceHistogram.of_products(*factors, times)})


def limit_source(weight: Weight, scaled: ScaledSource, *, rows: bool) -> LimitSource:
    """Choose the source of a tensor.

    Few different values are letters of their own probabilities; zeros are a letter beside a density. Other weights have
    the coordinates in which their description is shortest, and there a generalized Gaussian or lumps.

    Args:
        weight: the tensor, or some of its rows.
        scaled: fitted to it for forecasts.
        rows: whether it has all of its rows.
    """
    letters = _letters(weight.matrix)
    if letters is not None:
        return _of_letters(weight, letters)
    axes = weight.matrix.reshape(weight.layout.axes)
    if scaled.has_shape_of_few:
        scaled = fit_scaled_source(axes, strict=True)
    if scaled.zeros >= FEWEST_ZEROS:
        return _of_zeros(weight, scaled)
    if scaled.zeros > 0:
        scaled = fit_scaled_source(axes, strict=True, zeros_known=False)
    return _described(weight, scaled, rows=rows).tested()


def _named(structure: StructuredSource) -> LimitSource:
    """The generalized Gaussian source of weights in coordinates of their own."""
    weight, scaled = structure.weight, structure.scaled
    summary = SourceSummary(f"{scaled.name}{_names_of_turns(structure)}", scaled.standard_error)
    return LimitSource(summary, weight.layout, structure.turns, scaled, None, structure.angles)


def _names_of_turns(structure: StructuredSource) -> str:
    """The basis that a file has and the turns beyond it, for names."""
    basis = structure.weight.basis
    return "".join(f", {turn.name}" for turn in (*([basis] if basis else []), *structure.turns))


# Letters


def _letters(matrix: Floats) -> tuple[Array, Array] | None:
    """The different values and how often each comes; None where they are not few."""
    some = np.unique(matrix.reshape(-1)[: MOST_LETTERS * TIMES_A_LETTER])
    if some.size > MOST_LETTERS:
        return None
    values, counts = np.unique(matrix, return_counts=True)
    few = values.size <= MOST_LETTERS and values.size * TIMES_A_LETTER <= matrix.size
    return (values.astype(np.float64), counts.astype(np.float64)) if few else None


def _of_letters(weight: Weight, letters: tuple[Array, Array]) -> LimitSource:
    """Values drawn independently, each as often as it comes."""
    values, counts = letters
    shares = counts / counts.sum()
    around = values - float(shares @ values)
    deviation = math.sqrt(float(shares @ np.square(around)))
    scalar = ScalarSource(tuple(around / deviation), tuple(shares))
    scaled = _one_scale(weight, deviation)
    entropy = -float(shares @ np.log2(shares))
    error = math.sqrt(max(0.0, float(shares @ np.square(np.log2(shares))) - entropy**2) / weight.matrix.size)
    left = _zeros_left(weight.matrix == values[counts.argmax()], "places of the commonest value")
    return LimitSource(SourceSummary(f"{values.size} values", error, left), weight.layout, (), scaled, scalar)


def _one_scale(weight: Weight, deviation: float) -> ScaledSource:
    """One scale for all weights."""
    out, channels, taps = weight.layout.axes
    rows = np.full(out, math.log2(deviation))
    return ScaledSource(2.0, 0.0, (rows, np.zeros(channels), np.zeros(taps)), (), 0.0, 0.0, weight.matrix.size)


# Zeros


def _of_zeros(weight: Weight, scaled: ScaledSource) -> LimitSource:
    """Zeros at random places, and a generalized Gaussian with the entropy of the others."""
    logit = math.log(scaled.zeros / (1 - scaled.zeros))
    share = 1 / (1 + math.exp(-round(SHARES_A_NAT * logit) / SHARES_A_NAT))
    shape = 2.0 ** (round(SHAPES_AN_OCTAVE * math.log2(scaled.shape)) / SHAPES_AN_OCTAVE)
    scalar = ScalarSource((0.0,), (share,), shape)
    rows, channels, taps = scaled.log2_scales
    moved = rows + scale_entropy(scaled.shape) - scale_entropy(shape)
    everywhere = replace(scaled, shape=shape, zeros=0.0, log2_scales=(moved, channels, taps))
    size = weight.matrix.size
    of_places = math.log2((1 - scaled.zeros) / scaled.zeros) ** 2 * scaled.zeros * (1 - scaled.zeros) / size
    error = math.hypot(scaled.standard_error, math.sqrt(of_places))
    tested = scaled.standardized(weight.matrix.reshape(weight.layout.axes).astype(np.float64))
    others = findings(tested, ScalarSource(shape=scaled.shape).cumulative)
    left = (*_zeros_left(weight.matrix == 0, "places of zeros"), *others)
    name = f"{scaled.density}{scaled.name_of_scales}, {100 * scaled.zeros:.3g} % zeros"
    summary = SourceSummary(name, error, left)
    return LimitSource(summary, weight.layout, (), everywhere, scalar, parameters=1)


def _zeros_left(places: NDArray[np.bool_], what: str) -> tuple[Finding, ...]:
    """Places that are not random, if they are not."""
    bits = excess_of_zeros(places)
    return (Finding(f"{what} go by rows or columns", bits),) if bits > 0 else ()


# Densities


@dataclass(frozen=True, eq=False)
class _Described:
    """A tensor in coordinates of its own, its source there, and the bits of all weights under it, up to a constant."""

    structure: StructuredSource
    source: LimitSource
    bits: float

    def tested(self) -> LimitSource:
        """The source with what tests of the weights find that it lacks."""
        scalar = self.source.scalar or ScalarSource(shape=self.structure.scaled.shape)
        left = tuple(findings(self.structure.values, scalar.cumulative))
        return replace(self.source, summary=replace(self.source.summary, left=left))


def _described(weight: Weight, scaled: ScaledSource, *, rows: bool) -> _Described:
    """The density and coordinates of shortest description; lumps are gone once they are turned."""
    best = _with_density(structured(weight, scaled, rows=rows))
    if not best.structure.turns or best.source.scalar is not None:
        return best
    plain = _with_density(StructuredSource(weight, scaled))
    return best if plain.source.scalar is None else min(best, plain, key=lambda each: each.bits)


def _with_density(structure: StructuredSource) -> _Described:
    """Lumps where a generalized Gaussian misses the density and their description is shorter."""
    plain = _Described(structure, _named(structure), structure.description)
    values = structure.values.reshape(-1)
    if excess_of_density(values, ScalarSource(shape=structure.scaled.shape).cumulative) <= MISSED:
        return plain
    lumps = fit_gaussian_mixture(values)
    logs = lumps.log_density(values) / math.log(2)
    gained = values.size * (scale_entropy(structure.scaled.shape) + float(logs.mean()))
    gained -= lumps.parameters * math.log2(values.size) / 2
    if gained <= 0:
        return plain
    error = float(logs.std()) / math.sqrt(values.size)
    name = f"{lumps.name}{structure.scaled.name_of_scales}{_names_of_turns(structure)}"
    return _Described(structure, _of_lumps(plain.source, lumps, SourceSummary(name, error)), plain.bits - gained)


def _of_lumps(plain: LimitSource, lumps: GaussianMixture, summary: SourceSummary) -> LimitSource:
    """Lumps in the place of a generalized Gaussian."""
    scalar, parameters = ScalarSource(lumps=lumps), plain.parameters + lumps.parameters
    return replace(plain, summary=summary, scalar=scalar, parameters=parameters)


def _of_unit_variance(scaled: ScaledSource) -> ScaledSource:
    """A Gaussian whose entropy powers are the squares of the scales."""
    rows, channels, taps = scaled.log2_scales
    return replace(scaled, shape=2.0, log2_scales=(rows + 0.5, channels, taps))


# Forms


def _turned(form: QuadraticForm, turn: Turn, layout: Layout) -> QuadraticForm:
    """A form in other coordinates, with all of its cross terms where they are a product.

    Of another diagonal only the diagonal is kept, made smaller to have the same determinant: right at high rate.
    """
    if isinstance(form, KroneckerForm):
        form = _with_matrix(form, turn)
        if form.columns.ndim == 3 or turn.axis == OUT:
            return form.turned(turn, layout)
    before, found = form.diagonal(), form.turned(turn, layout)
    after = found.diagonal()
    there = (before > 0) & (after > 0)
    if isinstance(found, DiagonalForm) and there.any():
        lost = float(np.log(before[there], dtype=np.float64).mean() - np.log(after[there], dtype=np.float64).mean())
        return found.scaled(math.exp(min(0.0, lost)))
    return found


def _with_matrix(form: KroneckerForm, turn: Turn) -> KroneckerForm:
    """The factor that is to be turned as a matrix, unless it is the same for all or too large."""
    if turn.axis == OUT:
        if form.rows.ndim == 1 and len(form.rows) <= WIDEST_WHOLE and len(form.columns) == 1:
            return replace(form, rows=np.diag(form.rows))
        return form
    if form.columns.ndim == 2 and form.columns.shape[1] <= WIDEST_WHOLE:
        return replace(form, columns=np.stack([np.diag(each) for each in form.columns]))
    return form
