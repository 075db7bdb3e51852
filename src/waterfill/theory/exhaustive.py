"""All candidates of a small ReLU unit: how near the quadratic objective comes to the least true error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from waterfill.errors import UsageError
from waterfill.theory.checks import Array, whole
from waterfill.theory.checks import covariance as as_covariance
from waterfill.theory.checks import root as as_root
from waterfill.theory.relu import ROUNDING, arc_cosine, measure, unit_weights

MOST_WEIGHTS = 16
"""Most weights of a unit of which an exhaustive search tries all candidates."""

MOST_PARTITIONS = 100_000
"""Most partitions that it tries."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One compressed weight vector of a unit.

    Attributes:
        labels: [m], the cluster of every weight, from 0 in the order of appearance; for pruning 1 is kept and 0 pruned.
        w_hat: the compressed weights [m].
        objective: `(w - w_hat)^T Sigma (w - w_hat)` of rule 2.
        error: the true mean squared error of the output.
    """

    labels: NDArray[np.int64]
    w_hat: Array
    objective: float
    error: float


@dataclass(frozen=True, eq=False)
class Search:
    """Two winners among all candidates; at a tie the first one.

    Attributes:
        by_objective: the smallest objective.
        by_error: the smallest true error.
        candidates: number of masks or partitions.
    """

    by_objective: Candidate
    by_error: Candidate
    candidates: int

    @property
    def agree(self) -> bool:
        """Whether both chose the same mask or partition."""
        return bool(np.array_equal(self.by_objective.labels, self.by_error.labels))


@dataclass(frozen=True, eq=False)
class ScaledSearch(Search):
    """The same for values that are free, so that objective and truth choose them too.

    `by_objective` has the values of least objective, `by_error` those of least true error, each from all candidates.

    Attributes:
        corrected: `by_objective` times `best_scale`.
    """

    corrected: Candidate


def exhaustive_pruning(w: ArrayLike, covariance: ArrayLike, kept: int) -> Search:
    """Every mask that keeps a number of weights as they are: the best one by the objective, and in truth.

    For uncorrelated inputs they are the same one (Corollary 1), because every mask obeys rule 1:
    `w_hat^T Sigma (w - w_hat)` is a sum over weights that are kept and pruned at once. Correlated inputs break the
    rule, and the two can differ; `exhaustive_refit` restores it.

    Args:
        w: weights [m].
        covariance: `Sigma` [m, m] of the inputs, or their variances [m].
        kept: number of weights to keep, 0 ... m.

    Returns:
        Both winners.

    Raises:
        UsageError: shapes differ, or there are more than `MOST_WEIGHTS` weights.

    Source:
        Corollary 1 of the paper.

    Example:
        >>> search = exhaustive_pruning([3.0, -2.0, 1.0], [1.0, 1.0, 5.0], kept=2)
        >>> search.agree, search.by_error.labels.tolist(), search.by_error.objective
        (True, [1, 0, 1], 4.0)
    """
    original, root = _small_unit(w, covariance)
    masks = _masks(len(original), kept)
    found = _measured(original, masks * original, masks, root)
    return Search(found.best_objective(), found.best_error(), len(masks))


def exhaustive_refit(w: ArrayLike, covariance: ArrayLike, kept: int) -> ScaledSearch:
    """Every mask that keeps a number of weights and fits them to the objective, for inputs with any covariance.

    The fit is `Sigma_KK^-1 Sigma_K: w` on the kept set K, so rule 1 holds and the best mask of the objective is the one
    of least true error; but the class is closed under scaling, so in truth its weights are longer by `best_scale`.
    Without the scale a fit can even be worse in truth than the weights as they are, if those happen to be longer.

    Args:
        w: weights [m].
        covariance: `Sigma` [m, m] of the inputs, or their variances [m].
        kept: number of weights to keep, 0 ... m.

    Returns:
        Both winners, and the one by the objective with the correction.

    Raises:
        UsageError: shapes differ, or there are more than `MOST_WEIGHTS` weights.

    Source:
        Corollary 1 of the paper, for correlated inputs.

    Example:
        >>> search = exhaustive_refit([1.0, 1.0], [[1.0, 0.5], [0.5, 2.0]], kept=1)
        >>> search.agree, search.by_objective.w_hat.tolist(), bool(search.by_error.w_hat[1] > 1.25)
        (True, [0.0, 1.25], True)
    """
    original, root = _small_unit(w, covariance)
    masks = _masks(len(original), kept)
    return _scaled_search(original, masks, masks[:, :, None] * np.eye(len(original)), root)


def exhaustive_quantization(w: ArrayLike, covariance: ArrayLike, clusters: int) -> ScaledSearch:
    """Every partition of the weights into at most a number of clusters with free centroids.

    Of a partition the least objective is the projection of w on it: weighted means of the clusters for uncorrelated
    inputs. The least true error is in the same direction, at the length `n(w) J(rho)` instead of `n(w) rho`. Both fall
    as rho rises, so both choose the same partition, and the centroids differ by the factor `best_scale`: that is what
    is left of Corollary 2. Where the projection is zero every direction of the partition has rho = 0, and the truth
    still takes one, with the length `n(w) / pi`.

    Args:
        w: weights [m]; about 10 of them.
        covariance: `Sigma` [m, m] of the inputs, or their variances [m].
        clusters: most clusters, at least 1.

    Returns:
        Both winners, and the one by the objective with the correction.

    Raises:
        UsageError: shapes differ, or there are more weights or partitions than are tried.

    Source:
        Corollary 2 of the paper, corrected.

    Example:
        >>> search = exhaustive_quantization([1.0, 1.5, -2.0], [1.0, 3.0, 1.0], clusters=2)
        >>> search.agree, search.by_error.labels.tolist(), search.by_objective.w_hat.round(9).tolist()
        (True, [0, 0, 1], [1.375, 1.375, -2.0])
        >>> search.by_error.error < search.by_objective.error
        True
    """
    original, root = _small_unit(w, covariance)
    labels = _partitions(len(original), whole("clusters", clusters, 1))
    indicators = (labels[:, :, None] == np.arange(labels.max() + 1)).astype(np.float64)
    return _scaled_search(original, labels, indicators, root)


def _scaled_search(w: Array, labels: NDArray[np.int64], bases: Array, root: Array) -> ScaledSearch:
    """The search over subspaces with the bases [candidates, m, k]."""
    coefficients = np.linalg.pinv(root @ bases, rcond=ROUNDING) @ (root @ w)
    projections = np.einsum("nmk,nk->nm", bases, coefficients)
    paper = _measured(w, projections, labels, root)
    truth = _measured(w, _at_best_length(w, projections, bases.sum(axis=2), root), labels, root)
    chosen = int(paper.objectives.argmin())
    return ScaledSearch(paper.best_objective(), truth.best_error(), len(labels), truth.candidate(chosen))


def _at_best_length(w: Array, projections: Array, others: Array, root: Array) -> Array:
    """The directions of the projections, or others where those are zero, with the length `n(w) J(rho)`."""
    u = w @ root.T
    n, lengths = float(np.linalg.norm(u)), np.linalg.norm(projections @ root.T, axis=1, keepdims=True)
    # A projection of rounding errors has no direction of its own.
    directions = np.where(lengths > ROUNDING * n, projections, others)
    v = directions @ root.T
    lengths = np.linalg.norm(v, axis=1)
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    rho = np.clip(v @ u * inverse / (n or 1.0), -1.0, 1.0)
    longer: Array = directions * (n * arc_cosine(rho) * inverse)[:, None]
    return longer


@dataclass(frozen=True, eq=False)
class _Measured:
    """Candidates [n, m] with their labels, objectives [n] and errors [n]."""

    labels: NDArray[np.int64]
    w_hats: Array
    objectives: Array
    errors: Array

    def candidate(self, row: int) -> Candidate:
        return Candidate(self.labels[row], self.w_hats[row], float(self.objectives[row]), float(self.errors[row]))

    def best_objective(self) -> Candidate:
        return self.candidate(int(self.objectives.argmin()))

    def best_error(self) -> Candidate:
        return self.candidate(int(self.errors.argmin()))


def _measured(w: Array, w_hats: Array, labels: NDArray[np.int64], root: Array) -> _Measured:
    return _Measured(labels, w_hats, *measure(w, w_hats, root))


def _masks(count: int, kept: int) -> NDArray[np.int64]:
    """All masks [masks, count] with a number of ones."""
    ones = whole("kept", kept, 0, count)
    places = np.array(list(combinations(range(count), ones)), dtype=np.int64).reshape(math.comb(count, ones), ones)
    masks = np.zeros((len(places), count), dtype=np.int64)
    np.put_along_axis(masks, places, 1, axis=1)
    return masks


def _partitions(count: int, clusters: int) -> NDArray[np.int64]:
    """All partitions [partitions, count] into at most so many clusters, as restricted growth strings."""
    labels = np.zeros((1, 1), dtype=np.int64)
    for _ in range(1, count):
        # A weight joins a cluster that is there, or opens the next one: no relabelling is met twice.
        choices = np.minimum(labels.max(axis=1) + 2, clusters)
        if choices.sum() > MOST_PARTITIONS:
            raise UsageError(
                f"{count} weights in {clusters} clusters have more than {MOST_PARTITIONS} partitions; "
                "expected few enough to try all. Give fewer weights or clusters."
            )
        last = np.concatenate([np.arange(choice) for choice in choices])
        labels = np.column_stack([labels.repeat(choices, axis=0), last])
    return labels


def _small_unit(w: ArrayLike, covariance: ArrayLike) -> tuple[Array, Array]:
    """The weights of a unit small enough to try everything, and the root of the covariance."""
    sigma = as_covariance("covariance", covariance)
    original = unit_weights("w", w, len(sigma))
    if len(original) > MOST_WEIGHTS:
        raise UsageError(
            f"w has {len(original)} weights; expected at most {MOST_WEIGHTS}, to try all candidates. "
            "Give a smaller unit."
        )
    return original, as_root(sigma)
