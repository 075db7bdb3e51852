"""Weighted k-means in one dimension: the global optimum, which Corollary 2 asks for, and Lloyd's local one.

The cost is `sum_i I_i (w_i - c_i)^2 + H_i (w_i - c_i)^4` with `c_i` the centroid of weight i. It rises with the
distance to the centroid, so clusters are intervals, and the cost of an interval obeys the quadrangle inequality
`C(a..c) + C(b..d) <= C(a..d) + C(b..c)` for `a <= b <= c <= d`. Proof: let p be the centroid of `a..d` and q that of
`b..c`. If `p <= q`, keep p for `a..c` and take q for `b..d`: only the weights behind c change theirs, from p to the
nearer q, because `p <= q <= w_c`. Otherwise mirror it. Dynamic programming with divide and conquer is therefore exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from waterfill.errors import UsageError
from waterfill.theory.checks import Array, finite, same_shape, whole
from waterfill.theory.relu import best_scale

BINS = 1 << 16
"""Points to which `exact_kmeans` merges the weights by default."""

BINS_PER_CLUSTER = 16
"""It takes more where there would be fewer than this for a cluster."""

POLISH = 10
"""Most iterations of Lloyd on all weights behind it."""

MOST_STARTS = 1 << 32
"""Most clusters times points of one programme, which remembers a start of 4 bytes for each."""

Labels = NDArray[np.int64]
Start = Literal["quantile", "linear", "kmeans++"]


def exact_kmeans(
    weights: ArrayLike,
    importance: ArrayLike | None,
    k: int,
    *,
    quartic: ArrayLike | None = None,
    bins: int = BINS,
    exact: bool = False,
) -> tuple[Array, Labels]:
    """At most k centroids of least cost: the global optimum, not a local one.

    By default more than `bins` distinct weights are merged to so many bins, which keep their own moments: the best
    partition that cuts no bin is found, and polished on all weights. That is within 1e-5 of the optimum. With `exact`
    no weights but equal ones are merged; it takes time `O(k n log n)` and `4 k + 24 log2(n)` bytes for each of the n
    distinct weights (`4 k + 64 log2(n)` with a quartic cost).

    Importances below zero, as on the diagonal of a Hessian, are refused: the cost of a cluster may then have no least
    centroid, and the best clusters need not be intervals. Clip them at zero, or add a constant mu to all.

    Args:
        weights: finite numbers of any shape.
        importance: `I`, at least zero, in the shape of the weights; None for 1 everywhere, and so are zeros everywhere
            (in quartic too). Otherwise weights of importance zero just get the nearest centroid.
        k: most clusters, at least 1.
        quartic: `H` of the quartic term, at least zero, in the shape of the weights; None for none.
        bins: points to merge to, unless exact; `16 k` if that is more.
        exact: whether all distinct weights are kept apart.

    Returns:
        The centroids [at most k], rising: fewer than k where there are no more distinct weights of any importance. Each
        is the best for its cluster. And the labels, in the shape of the weights.

    Raises:
        UsageError: no weights, another shape, a number that is not finite, an importance below zero, or too many
            clusters and points for the memory.

    Source:
        Corollary 2 and Algorithm 2 of the paper, made global; Grønlund et al. 2017 (divide and conquer).

    Example:
        >>> centroids, labels = exact_kmeans([0.0, 1.0, 5.0, 6.0], [1.0, 3.0, 1.0, 1.0], 2)
        >>> centroids.tolist(), labels.tolist()
        ([0.75, 5.5], [0, 0, 1, 1])
    """
    from waterfill.quantize import kmeans_kernels as kernels

    problem = _problem(weights, importance, quartic)
    most, points = whole("k", k, 1), whole("bins", bins, 1)
    if problem.weights.size <= most and len(distinct := np.unique(problem.every)) <= most:
        return problem.answer(distinct, distinct)
    starts, count = np.arange(problem.weights.size + 1), min(most, problem.weights.size)
    points = max(points, BINS_PER_CLUSTER * most)
    if not exact and problem.weights.size > points:
        starts = kernels.bin_starts(problem.weights, problem.mass(), points)
    _check_memory(count, len(starts) - 1)
    places, moments = kernels.merge(problem.weights, problem.importance, problem.quartic, starts)
    edges = starts[kernels.partition(kernels.sparse_table(places, moments), moments, count)]
    centroids = problem.centroids(edges, np.zeros(count))
    return problem.answer(*problem.lloyd(centroids, POLISH))


def lloyd(
    weights: ArrayLike,
    importance: ArrayLike | None,
    k: int,
    *,
    start: Start = "quantile",
    quartic: ArrayLike | None = None,
    iterations: int = 30,
    seed: int = 0,
) -> tuple[Array, Labels]:
    """Centroids by Lloyd's iterations: every weight to the nearest, every centroid to the best of its cluster.

    The cost never rises from one iteration to the next, and where it stops rule 1 holds, but it may be many times that
    of `exact_kmeans`. On sorted weights an iteration takes `O(n + k log n)`.

    Args:
        weights: finite numbers of any shape.
        importance: as for `exact_kmeans`.
        k: clusters, at least 1.
        start: `quantile` is at the quantiles (j + 1/2) / k of the weights, like the authors of the paper; `linear` at
            equal distances from the least to the greatest; `kmeans++` at weights drawn by their cost so far.
        quartic: as for `exact_kmeans`; weights still go to the nearest centroid.
        iterations: most iterations, at least 1; fewer if nothing moves any more.
        seed: of `kmeans++`.

    Returns:
        The centroids [k], rising, and the labels, in the shape of the weights. Each centroid is the best for its
        cluster; that of an empty one (or one without importance) stays where it was.

    Raises:
        UsageError: as for `exact_kmeans`, or the start is none of the three.

    Source:
        Section 5.3 and Algorithm 2 of the paper; Arthur and Vassilvitskii 2007 (k-means++).

    Example:
        >>> centroids, labels = lloyd([0.0, 1.0, 5.0, 6.0], None, 2, start="linear")
        >>> centroids.tolist(), labels.tolist()
        ([0.5, 5.5], [0, 0, 1, 1])
    """
    problem = _problem(weights, importance, quartic)
    first = _start(problem, whole("k", k, 1), start, whole("seed", seed, 0))
    return problem.answer(*problem.lloyd(first, whole("iterations", iterations, 1)))


def cost(
    weights: ArrayLike,
    importance: ArrayLike | None,
    centroids: ArrayLike,
    labels: ArrayLike,
    quartic: ArrayLike | None = None,
) -> float:
    """`sum I (w - c)^2 + H (w - c)^4` of a codebook and its labels.

    Args:
        weights: finite numbers of any shape.
        importance: in the shape of the weights, of any sign; None for 1 everywhere.
        centroids: [k].
        labels: whole numbers from 0 to k - 1 in the shape of the weights.
        quartic: in the shape of the weights; None for none.

    Returns:
        The cost, not normalised.

    Raises:
        UsageError: shapes differ, or a label names no centroid.

    Source:
        Section 5.3 of the paper.

    Example:
        >>> cost([0.0, 1.0, 5.0], [1.0, 3.0, 1.0], [0.5, 5.0], [0, 0, 1], quartic=[16.0, 0.0, 0.0])
        2.0
    """
    w = finite("weights", weights)
    squares = np.square(w - _decoded(centroids, labels, w))
    per_weight = squares if importance is None else _alike("importance", importance, w) * squares
    if quartic is not None:
        per_weight = per_weight + _alike("quartic", quartic, w) * np.square(squares)
    return float(per_weight.sum())


def relu_rescale(weights: ArrayLike, variances: ArrayLike | None, centroids: ArrayLike, labels: ArrayLike) -> Array:
    """Centroids times `J(rho) / rho`: the length at which the true error of one ReLU unit is least.

    Corollary 2 is exact in the direction of the codebook but not in its length, see `theory.relu.best_scale`.

    Args:
        weights: of one unit.
        variances: of its independent inputs, the importance of the codebook; None for 1 everywhere.
        centroids: [k].
        labels: in the shape of the weights.

    Returns:
        The centroids [k], longer.

    Raises:
        UsageError: shapes differ, or the weights and the codebook have no positive cosine.

    Source:
        Corollary 2 of the paper, corrected.

    Example:
        >>> relu_rescale([3.0, 1.0], None, [2.0], [0, 0]).round(4).tolist()
        [2.0231]
    """
    w, codebook = finite("weights", weights), finite("centroids", centroids)
    w_hat = _decoded(codebook, labels, w)
    weight = np.ones_like(w) if variances is None else _not_negative("variances", variances, w)
    power = float((weight * w * w).sum()) * float((weight * w_hat * w_hat).sum())
    rho = float((weight * w * w_hat).sum()) / (power**0.5 or 1.0)
    return codebook * best_scale(min(rho, 1.0))


# One problem, sorted and scaled


@dataclass(frozen=True, eq=False)
class _Problem:
    """Weights of positive importance, distinct and sorted; powers of two bring weights and costs to about one.

    Attributes:
        every: all weights as they came, scaled.
        exponent: they were divided by two to this power.
        weights: distinct ones [n], sorted.
        importance: sums of I [n].
        quartic: sums of H [n], or [0] for none.
    """

    every: Array
    exponent: int
    weights: Array
    importance: Array
    quartic: Array

    def mass(self) -> Array:
        """I and H together, as shares [n]."""
        terms = [term / term.sum() for term in (self.importance, self.quartic) if term.any()]
        return np.asarray(sum(terms[1:], terms[0]))

    def centroids(self, edges: NDArray[np.int64], old: Array) -> Array:
        """The best centroid of every run of the distinct weights."""
        from waterfill.quantize import kmeans_kernels as kernels

        found: Array = kernels.centroids(self.weights, self.importance, self.quartic, edges, old)
        return found

    def lloyd(self, centroids: Array, iterations: int) -> tuple[Array, Array]:
        """The centroids after some iterations, and those whose nearest weights they are the best for."""
        before, edges = centroids, np.empty(0, np.int64)
        for _ in range(iterations):
            cuts = np.searchsorted(self.weights, _midpoints(centroids), side="right")
            now = np.concatenate([[0], cuts, [self.weights.size]])
            if np.array_equal(now, edges):
                break
            before, edges = centroids, now
            centroids = self.centroids(edges, centroids)
        return centroids, before

    def answer(self, centroids: Array, nearest: Array) -> tuple[Array, Labels]:
        """Centroids in the unit of the weights, and labels by the nearest of others; at a tie the lower one."""
        labels = np.searchsorted(_midpoints(nearest), self.every, side="left")
        return np.ldexp(centroids, self.exponent), labels.astype(np.int64, copy=False)


def _midpoints(centroids: Array) -> Array:
    """What lies between neighbours [k - 1]: up to and with it weights belong to the lower one."""
    low, high = centroids[:-1], centroids[1:]
    middle = low + (high - low) / 2
    return np.where(middle < high, middle, low)  # between two neighbouring floats there is none


def _problem(weights: ArrayLike, importance: ArrayLike | None, quartic: ArrayLike | None) -> _Problem:
    """Check, scale by powers of two, which is exact, sort, and merge equal weights."""
    w = finite("weights", weights)
    if not w.size:
        raise UsageError("There are no weights; expected at least one.")
    importances = np.ones(w.shape) if importance is None else _not_negative("importance", importance, w)
    fourths = np.zeros(w.shape) if quartic is None else _not_negative("quartic", quartic, w)
    if not importances.any() and not fourths.any():
        importances = np.ones(w.shape)
    exponent = _exponent(w)
    units = [2 * exponent + _exponent(importances), 4 * exponent + _exponent(fourths)]
    unit = max(units) if importances.any() and fourths.any() else units[int(fourths.any())]
    every = np.ldexp(w, -exponent)
    second = np.ldexp(importances, 2 * exponent - unit).ravel()
    fourth = np.ldexp(fourths, 4 * exponent - unit).ravel()
    kept = np.flatnonzero((second > 0) | (fourth > 0))
    order = kept[np.argsort(every.ravel()[kept], kind="stable")]
    values = every.ravel()[order]
    first = np.flatnonzero(np.concatenate([[True], values[1:] > values[:-1]]))
    summed = np.add.reduceat(second[order], first)
    return _Problem(
        every, exponent, values[first], summed, np.add.reduceat(fourth[order], first) if fourth.any() else np.empty(0)
    )


def _check_memory(clusters: int, points: int) -> None:
    """Refuse what needs more memory than a machine has."""
    if clusters * points > MOST_STARTS:
        raise UsageError(
            f"{clusters} clusters of {points} points need {clusters * points / 2**28:.0f} GiB; expected at most "
            f"{MOST_STARTS >> 28} GiB. Give fewer clusters or bins, or take lloyd."
        )


def _exponent(values: Array) -> int:
    """The power of two above the largest magnitude; 0 if all are zero."""
    return int(np.frexp(np.abs(values).max())[1])


def _alike(name: str, values: ArrayLike, weights: Array) -> Array:
    """Finite numbers in the shape of the weights."""
    array = finite(name, values)
    same_shape(name, array, "weights", weights)
    return array


def _not_negative(name: str, values: ArrayLike, weights: Array) -> Array:
    """The same, of at least zero."""
    array = _alike(name, values, weights)
    if array.min() < 0:
        raise UsageError(
            f"{name} has {np.count_nonzero(array < 0)} of {array.size} entries below zero, the least "
            f"{array.min():.6g}; expected none: clusters would be no intervals, and their cost might have no least "
            "centroid. Clip them at zero, or add a constant mu."
        )
    return array


def _decoded(centroids: ArrayLike, labels: ArrayLike, weights: Array) -> Array:
    """The centroid of every weight."""
    codebook, index = finite("centroids", centroids), np.asarray(labels)
    if index.shape != weights.shape or index.dtype.kind not in "iu":
        raise UsageError(
            f"labels are {index.dtype} of the shape {list(index.shape)}; expected whole numbers in the shape of the "
            f"weights, {list(weights.shape)}."
        )
    if codebook.ndim != 1 or (index.size and not 0 <= index.min() <= index.max() < len(codebook)):
        raise UsageError(
            f"labels reach from {index.min(initial=0)} to {index.max(initial=0)}, centroids have the shape "
            f"{list(codebook.shape)}; expected [k], and labels from 0 to k - 1."
        )
    return np.asarray(codebook[index])


def _start(problem: _Problem, k: int, start: Start, seed: int) -> Array:
    """Where Lloyd starts, scaled [k]."""
    from waterfill.quantize import kmeans_kernels as kernels

    every = problem.every
    if start == "quantile":
        return np.asarray(np.quantile(every, (np.arange(k) + 0.5) / k))
    if start == "linear":
        return np.linspace(every.min(), every.max(), k) if k > 1 else np.array([(every.min() + every.max()) / 2])
    if start == "kmeans++":
        uniforms = np.random.default_rng(seed).random(k)
        return np.sort(kernels.plus_plus(problem.weights, problem.importance, problem.quartic, uniforms))
    raise UsageError(f"start is {start!r}; expected 'quantile', 'linear' or 'kmeans++'.")
