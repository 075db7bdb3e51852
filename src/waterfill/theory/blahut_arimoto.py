"""The rate-distortion function by computation, between two bounds: the referee of the closed forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gamma
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from waterfill.errors import UsageError
from waterfill.theory.checks import Array, not_negative, number, same_shape
from waterfill.theory.sources import log2_deviation

Density: TypeAlias = Callable[[Array], Array]

_UPDATES = 5  # multiplicative ones before the first Newton step
_NODES = 5  # Gauss-Legendre nodes per panel
_HALVINGS = 16  # of the first panel towards zero, where a density may have a cusp
_AGREEMENT = 1e-5  # of a distortion with the asked one, relative
_TAIL = 1e-8  # the source is cut where |w| times the density falls below
_LARGEST = 2e7  # entries of a distortion matrix that is made here: 160 MB


@dataclass(frozen=True, eq=False)
class RatePoint:
    """One point of a rate-distortion function, between its two bounds.

    Attributes:
        slope: `s = -dR/dD`, in bits per unit of distortion.
        distortion: `D` of the test channel that was found.
        rate: bits of that channel: `R(D)` is not above.
        lower_bound: bits from the dual problem: `R(D)` is not below.
        values: the reproductions [m]: column numbers of a distortion matrix, magnitudes of a symmetric source.
        reproduction: their probabilities [m].
        iterations: steps taken.
    """

    slope: float
    distortion: float
    rate: float
    lower_bound: float
    values: Array
    reproduction: Array
    iterations: int


@dataclass(frozen=True, eq=False)
class ImportanceLimits:
    """Limits of a weight `w` with a random importance `I`, at one mean of `I (w - w_hat)^2`.

    Attributes:
        both: encoder and decoder know `I`. There is a reproduction pmf for each importance, so the record has none.
        encoder_only: the decoder does not know `I`.
    """

    both: RatePoint
    encoder_only: RatePoint


@dataclass(frozen=True, eq=False)
class _Problem:
    """A source and its distortions [k, n, m]; a column is `k` equally likely reproductions, as `w_hat` and `-w_hat`."""

    pmf: Array
    distortion: Array
    values: Array


def blahut_arimoto(
    pmf: ArrayLike, distortion: ArrayLike, slope: float, *, tolerance: float = 1e-6, iterations: int = 200
) -> RatePoint:
    """The point of slope `-s` on the rate-distortion function of a discrete source.

    Minimises `-sum_x p log2 (Kq)` over the reproduction pmf `q`, with `K = 2^(-s d)`. Some multiplicative updates
    `q *= c`, `c = K^T (p / Kq)`, come first; they alone would close the gap only like `1 / iterations`, so
    primal-dual Newton steps on the same convex problem follow. How `q` was found does not matter to the bounds:

    - rate: the mutual information of the channel `q K / Kq`;
    - lower bound: `-s D - sum_x p log2 (Kq) - log2 max c`, valid at every `q`.

    Time O(n m^2) per step: made for at most some thousand reproductions.

    Args:
        pmf: probabilities [n] of the source; some may be zero.
        distortion: `d(x, y) >= 0` [n, m].
        slope: `s >= 0`, bits per unit of distortion. At zero any reproduction is optimal.
        tolerance: stop when the bounds are that close, bits.
        iterations: stop after so many steps at the latest. The bounds of the record say how close they came.

    Raises:
        UsageError: the pmf does not sum to one, shapes differ, or an argument is negative or not finite.

    Source:
        Blahut 1972; Arimoto 1972; Csiszar 1974 for the dual; Definition 3 of the paper. Newton steps: Boyd and
        Vandenberghe, section 11.7.

    Example:
        >>> point = blahut_arimoto([0.5, 0.5], [[0, 1], [1, 0]], slope=np.log2(9))  # a bit, wrong in one of ten
        >>> round(point.distortion, 6), round(point.rate, 5)  # 1 - H(1/10)
        (0.1, 0.531)
    """
    source, costs = _distribution("pmf", pmf), not_negative("distortion", distortion)
    if costs.ndim != 2 or costs.shape[0] != source.size or not costs.size:
        raise UsageError(
            f"distortion has the shape {list(costs.shape)}; expected [{source.size}, m]: a row for every entry of pmf."
        )
    problem = _Problem(source, costs[None], np.arange(costs.shape[1], dtype=np.float64))
    slope, tolerance = number("slope", slope), number("tolerance", tolerance, above=0)
    return _solve(problem, slope, tolerance, int(number("iterations", iterations, above=0)))


def generalized_gaussian_density(shape: float) -> Density:
    """The density `~ exp(-|w / a|^shape)` of unit variance: 2 is Gaussian, 1 Laplace, large nearly uniform.

    Args:
        shape: above zero. Below 0.5 the tails are so heavy that a point above 2 bit takes minutes.

    Raises:
        UsageError: the shape is not above zero.

    Example:
        >>> round(float(generalized_gaussian_density(1)(np.zeros(1))[0]), 6)  # Laplace: 1 / sqrt(2)
        0.707107
    """
    shape = number("shape", shape, above=0)
    scale = 2 ** -log2_deviation(shape)
    return lambda w: np.asarray(shape / (2 * scale * gamma(1 / shape)) * np.exp(-((np.abs(w) / scale) ** shape)))


def rate_at_distortion(density: Density, distortion: float) -> RatePoint:
    """The rate-distortion function of a symmetric scalar source under squared error, at a distortion.

    The source becomes Gauss-Legendre nodes in panels not wider than `sqrt(D)`, halved again and again towards zero.
    The reproductions are a grid of spacing `sqrt(D) / 2.5`, at most a twentieth of the standard deviation. The
    integrands are smooth at the scale `sqrt(D)`: for generalised Gaussians both bounds are within 4e-5 bit of those of
    the density itself, as finer nodes show. The lower bound is one on the nodes' function, so no more exact than that.

    Args:
        density: of `w`, symmetric, smooth except at zero, for an array of any shape.
        distortion: `D > 0`. From the variance on the rate is zero.

    Returns:
        A point whose distortion agrees with the asked one to five digits.

    Raises:
        UsageError: the density is negative or its integral is not one, or the distortion is not above zero.

    Source:
        Blahut 1972, for nodes instead of letters.

    Example:
        >>> point = rate_at_distortion(generalized_gaussian_density(2), 0.25)
        >>> round(point.rate, 4), round(rate_at_distortion(generalized_gaussian_density(1), 0.25).rate, 4)
        (1.0, 0.8992)
    """
    distortion, source = number("distortion", distortion, above=0), _Source(density)
    problem = _problem(source, np.ones(1), np.ones(1), np.array([distortion]))
    return _at_distortion(lambda slope: _solve(problem, slope), distortion, source.variance, distortion)


def importance_limits(
    density: Density, importance: ArrayLike, probability: ArrayLike, distortion: float
) -> ImportanceLimits:
    """What a weight costs when only the encoder knows its importance, and when both sides know it.

    Both know: every importance has its own channel and all have one slope, weighted water-filling for a Gaussian `w`.
    Only the encoder knows: the source is the pair `(w, I)`, `d = I (w - w_hat)^2`, and the rate is `I(w, I; w_hat)`.

    Args:
        density: of `w`, independent of `I`; symmetric, smooth except at zero.
        importance: values [j] of `I`, at least zero.
        probability: of each value [j].
        distortion: `E I (w - w_hat)^2`, above zero.

    Returns:
        Both limits, at distortions that agree with the asked one to five digits.

    Raises:
        UsageError: the probabilities do not sum to one, shapes differ, or an argument is out of range.

    Source:
        Theorem 2 of the paper for the first; Blahut 1972 over the pair for the second.

    Example:
        >>> limits = importance_limits(generalized_gaussian_density(2), [0.5, 1.5], [0.5, 0.5], 0.2)
        >>> round(limits.both.rate, 3), round(limits.encoder_only.rate, 3)  # ignored: 1/2 log2(1 / 0.2) = 1.161
        (1.057, 1.063)
    """
    values, shares = not_negative("importance", importance), _distribution("probability", probability)
    same_shape("importance", values, "probability", shares)
    distortion, source = number("distortion", distortion, above=0), _Source(density)
    values, shares = values[shares > 0], shares[shares > 0]
    level = _water_level(values * source.variance, shares, distortion)
    each = np.divide(level, values, out=np.full(values.size, np.inf), where=values > 0)
    parts = [_problem(source, values[i : i + 1], np.ones(1), each[i : i + 1]) for i in range(values.size)]
    pair = _problem(source, values, shares, each)
    total = float(shares @ values) * source.variance
    both = _at_distortion(
        lambda slope: _mean([_solve(part, slope) for part in parts], shares), distortion, total, level
    )
    return ImportanceLimits(both, _at_distortion(lambda slope: _solve(pair, slope), distortion, total, level))


def _water_level(volumes: Array, shares: Array, distortion: float) -> float:
    """The level with `sum_j shares_j min(level, volume_j) = D`: exact for Gaussians."""
    levels = np.concatenate([[0.0], np.sort(volumes)])
    return float(np.interp(distortion, np.minimum(levels[:, None], volumes) @ shares, levels))


def _distribution(name: str, values: ArrayLike) -> Array:
    """A vector of probabilities."""
    array = not_negative(name, values)
    if array.ndim != 1 or abs(array.sum() - 1) > 1e-6:
        raise UsageError(
            f"{name} has the shape {list(array.shape)} and the sum {array.sum():.6g}; "
            "expected a vector that sums to 1. Divide it by its sum."
        )
    return np.asarray(array / array.sum())


class _Source:
    """A symmetric density with its reach and variance, checked."""

    def __init__(self, density: Density) -> None:
        self._density = density
        radii = 1e6 * 1.05 ** -np.arange(900.0)
        within = np.flatnonzero(radii * not_negative("density", density(radii)) > _TAIL)
        if not within.size or not within[0]:
            raise UsageError(
                "density is nothing, or not yet small at 1e6; expected a density around zero of a standard "
                "deviation near 1. Rescale the source."
            )
        self.reach = float(radii[within[0]])
        nodes, weights = self._quadrature(self.reach / 64)
        if abs(weights.sum() - 1) > 1e-4:
            raise UsageError(
                f"density has the integral {weights.sum():.6g} over both sides; expected 1, from a symmetric density "
                "that is smooth except at zero."
            )
        self.variance = float(weights @ nodes**2 / weights.sum())

    def nodes(self, width: float) -> tuple[Array, Array]:
        """Magnitudes and their probabilities, `_NODES` in every panel of that width."""
        nodes, weights = self._quadrature(width)
        return nodes[weights > 0], weights[weights > 0] / weights.sum()

    def _quadrature(self, width: float) -> tuple[Array, Array]:
        count = int(np.ceil(self.reach / width))
        first = 2.0 ** -np.arange(_HALVINGS, 0, -1)
        edges = self.reach / count * np.concatenate([[0.0], first, np.arange(1.0, count + 1)])
        ticks, shares = np.polynomial.legendre.leggauss(_NODES)
        widths = np.diff(edges)[:, None]
        nodes = edges[:-1, None] + widths * (ticks + 1) / 2
        return nodes.reshape(-1), (widths * shares * not_negative("density", self._density(nodes))).reshape(-1)


def _problem(source: _Source, importance: Array, probability: Array, distortion: Array) -> _Problem:
    """The pair `(|w|, I)` on nodes fine enough for the distortion of every importance."""
    widths = np.sqrt(np.minimum(distortion, source.variance))
    parts = [source.nodes(width) for width in widths]
    nodes = np.concatenate([part[0] for part in parts])
    pmf = np.concatenate([share * part[1] for share, part in zip(probability, parts, strict=True)])
    weights = np.repeat(importance, [part[0].size for part in parts])[:, None]
    values = np.arange(0, source.reach, min(float(widths.min()) / 2.5, source.variance**0.5 / 20))
    if nodes.size * values.size > _LARGEST:
        raise UsageError(
            f"distortion asks for {nodes.size} nodes times {values.size} reproductions, above {_LARGEST:g}; ask for a "
            "larger one, or drop the importances that are large and rare."
        )
    squares = [weights * (nodes[:, None] + sign * values) ** 2 for sign in (-1, 1)]
    return _Problem(pmf, np.stack(squares), values)


def _at_distortion(
    evaluate: Callable[[float], RatePoint], distortion: float, highest: float, level: float
) -> RatePoint:
    """The point at a distortion: secants in the logarithms of slope and distortion, kept inside a bracket."""
    if distortion >= highest:
        return RatePoint(0.0, highest, 0.0, 0.0, np.zeros(1), np.ones(1), 0)
    at, low, high, last, gradient = -float(np.log(level * np.log(4))), -np.inf, np.inf, None, -1.0
    for _ in range(60):
        point = evaluate(float(np.exp(at)))
        error = float(np.log(point.distortion / distortion))
        low, high = (at, high) if error > 0 else (low, at)
        if abs(error) < _AGREEMENT or high - low < 1e-12:
            break
        if last is not None:
            gradient = min((error - last[1]) / (at - last[0]), -0.05)
        last, at = (at, error), at - float(np.clip(error / gradient, -1, 1))
        if not low < at < high:
            at = (low + high) / 2
    return point


def _mean(points: list[RatePoint], shares: Array) -> RatePoint:
    """What several channels cost on average; the decoder has a reproduction for each."""
    table = np.array([[point.distortion, point.rate, point.lower_bound] for point in points])
    distortion, rate, lower = (float(value) for value in shares @ table)
    empty, steps = np.zeros(0), sum(point.iterations for point in points)
    return RatePoint(points[0].slope, distortion, rate, lower, empty, empty, steps)


def _solve(problem: _Problem, slope: float, tolerance: float = 1e-7, iterations: int = 200) -> RatePoint:
    """The point of a problem at a slope."""
    pmf = problem.pmf
    # Every letter's cheapest reproduction is the origin of its costs: no row of the kernel can vanish.
    floors = problem.distortion.min(axis=(0, 2), keepdims=True)
    costs = problem.distortion - floors
    kernels = np.exp2(-slope * costs)
    kernel = kernels.mean(axis=0)
    q, steps = _reproduction(pmf, kernel, tolerance, iterations)
    output = kernel @ q
    growth = (pmf / output) @ kernel
    above = float(pmf / output @ ((costs * kernels).mean(axis=0) @ q))
    common = -slope * above - float(pmf @ np.log2(output))
    rate, lower = (common - bits for bits in _slack(q, growth))
    distortion = above + float(pmf @ floors[0, :, 0])
    return RatePoint(slope, distortion, max(rate, 0.0), max(lower, 0.0), problem.values, q, steps)


def _slack(q: Array, growth: Array) -> tuple[float, float]:
    """What the two bounds subtract, in bits: `sum_y q c log2 c` and `log2 max c`."""
    moved = q * growth
    return float(moved @ np.log2(growth, where=moved > 0, out=np.zeros_like(growth))), float(np.log2(growth.max()))


def _reproduction(pmf: Array, kernel: Array, tolerance: float, iterations: int) -> tuple[Array, int]:
    """The pmf `q` that maximises `sum_x p log (Kq)`, and the number of steps.

    The factor `c` of an update is the gradient; at the optimum the slack `1 - c` is zero wherever `q` is not. The
    Newton steps aim at `q (1 - c) = mu` for smaller and smaller `mu`.
    """
    q = np.full(kernel.shape[1], 1 / kernel.shape[1])
    dual = np.ones_like(q)
    for step in range(iterations):
        backward = kernel / (kernel @ q)[:, None]
        growth = pmf @ backward
        rate, lower = _slack(q, growth)
        if lower - rate <= tolerance:
            return q, step
        if step < _UPDATES:
            q = np.maximum(q * growth, 1e-12)  # a Newton step starts inside the simplex
        else:
            q, dual = _newton(pmf, backward, q, growth, dual)
        q /= q.sum()
    return q, iterations


def _newton(pmf: Array, backward: Array, q: Array, growth: Array, dual: Array) -> tuple[Array, Array]:
    """One primal-dual step from `q > 0` with the slacks `dual > 0`, scaled so that no matrix is near singular."""
    target = 0.1 * float(q @ dual) / q.size
    scale = np.sqrt(q / dual)
    factor = np.sqrt(pmf)[:, None] * backward * scale
    matrix = factor.T @ factor
    matrix[np.diag_indices(q.size)] += 1
    move = scale * np.linalg.solve(matrix, scale * (growth - 1 + target / q))
    dual_move = target / q - dual - dual / q * move
    return q + _length(q, move) * move, dual + _length(dual, dual_move) * dual_move


def _length(values: Array, move: Array) -> float:
    """The longest step up to one that keeps 5 % of every value."""
    return min(1.0, 0.95 / max(float((-move / values).max()), 1e-300))
