"""Volumes of the rectangles of independent weights under a form with cross terms.

Let the weights `W_i` be independent with entropy powers `N_i`, and the distortion `E (W - W_hat)^T F (W - W_hat)`. With
the eigenvalues `v_k` of `N^{1/2} F N^{1/2} = V diag(v) V^T`, N the diagonal matrix of the powers,

    R(D) >= sum_k max(0, 1/2 log2(v_k / mu)),    sum_k min(mu, v_k) = D:

reverse water-filling, as if the weights were Gaussian with the variances `N_i`, for which it is exact.

Proof. `X = N^{-1/2} W` has independent components of entropy power 1; `u = diag(v)^{1/2} V^T X` has the distortion
`|u - u_hat|^2`. Let `D_k = E (u_k - u_hat_k)^2` and S be the k with `v_k > D_k`. As in Lemma 1,
`I(W; W_hat) >= h(u_S) - sum_S 1/2 log2(2 pi e D_k)`. By the generalised entropy power inequality `h(A X) >= h(A X~)`,
with X~ Gaussian of the same entropies component by component, `h(u_S) >= sum_S 1/2 log2(2 pi e v_k)`, since the rows of
V_S^T are orthonormal. Left is `sum_S 1/2 log2(v_k / D_k)`, least where all open ones have the same `D_k = mu`.

A weight that is known has N = 0: its row and column fall out, for the best reconstruction of the others needs no error
there (the projection of u_hat to the span of all u is nearer to u).

Source: Zamir and Feder 1993, "A generalization of the entropy power inequality with applications", Theorem 1; reverse
water-filling as in section 5.1 of PAPER.md.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from waterfill.linear_algebra import eigenvalues, factor_in_place
from waterfill.theory.checks import Array

Mask: TypeAlias = NDArray[np.bool_]

MOST_WORK = 2.0**32
"""Most rows to the power 3 of all matrices of a tensor whose eigenvalues are computed: half a second on one core.

Weights in bfloat16 are zero here and there, in every row others: then rows of 576 go by pivots but for 22 of them.
"""

MOST_COLUMNS = 1024
"""Of larger matrices pivots take the place of eigenvalues.

Eigenvalues of 4,096 columns take 40 times as long. For the inputs of six layers of SmolLM2-135M, 576 and 1,536 of them
from 2,048 tokens, the rate by pivots is the same but for .0003 bit a weight at most, from .5 to 2.7 bit.
"""


def spectrum(forms: Array, powers: Array, device: str | None = None) -> Array:
    """Eigenvalues of `N^{1/2} F N^{1/2}`, not negative, in any order.

    Args:
        forms: positive semidefinite [groups, n, n], or [groups, n] of diagonals.
        powers: N, [groups, n].
        device: where they are found; None for the processor.

    Example:
        >>> spectrum(np.array([[[1.0, 0.6], [0.6, 1.0]]]), np.ones((1, 2))).round(9).tolist()
        [[0.4, 1.6]]
    """
    if forms.ndim == 2:
        return np.asarray(forms * powers)
    return np.asarray(eigenvalues(_scaled(forms, powers), device).clip(0))


def pivots(forms: Array, powers: Array, device: str | None = None) -> Array:
    """Variances left of each coordinate of `N^{1/2} F N^{1/2}`, given those that come after it.

    They are the squared diagonal of a Cholesky factor; 0 where nothing is left. In whatever order coordinates come,
    their logarithms are majorised by those of the eigenvalues, and the rate is a convex, increasing and symmetric
    function of the logarithms of the volumes (for a given level the dual function of each is `v / 2 mu` below the level
    and `1/2 + 1/2 log(v / mu)` above it). So water-filling over the pivots bounds the rate too, and meets the bound of
    the eigenvalues where no rectangle is full.

    Knowing more coordinates never raises what is left of one. So pivots of the whole bound those of every principal
    submatrix, and products of pivots those of a Kronecker product: weights that are known only drop out.

    They are found in the precision of the forms, from the last coordinate to the first, or by complete pivoting where
    next to nothing is left of one. Then it is 0 where it is below n roundings of the largest one, which leaves the
    bound valid.

    Args:
        forms: as in `spectrum`.
        powers: N, [groups, n].
        device: where matrices are factored; None for the processor. Complete pivoting is done by the processor.

    Source: Weyl 1949, "Inequalities between the two kinds of eigenvalues of a linear transformation", for a triangular
        factor: singular values majorise eigenvalues in logarithms.

    Example:
        >>> pivots(np.array([[[1.0, 0.6], [0.6, 1.0]]]), np.ones((1, 2))).round(9).tolist()
        [[0.64, 1.0]]
    """
    if forms.ndim == 2:
        return np.asarray(forms * powers)
    found = [_pivots(*each, device) for each in zip(forms, powers, strict=True)]
    return np.array(found).reshape(powers.shape)


def _pivots(form: Array, powers: Array, device: str | None) -> Array:
    """Pivots of one matrix [n, n]."""
    there = powers > 0
    if not there.all():
        found = np.zeros(len(powers))
        found[there] = _pivots(form[np.ix_(there, there)], powers[there], device)
        return found
    powers = powers.astype(form.dtype)
    matrix = _scaled(form[None], powers[None])[0]
    diagonal = matrix.diagonal().copy()
    if factor_in_place(matrix, device):
        left: Array = np.square(matrix.diagonal(), dtype=np.float64)
        if (left >= math.sqrt(np.finfo(form.dtype).eps) * diagonal).all():
            return left
    return _complete_pivots(_scaled(form[None], powers[None])[0])


def _complete_pivots(matrix: Array) -> Array:
    """Pivots of a matrix [n, n] that may be singular, which is written over."""
    from scipy.linalg.lapack import dpstrf, spstrf  # here, for `import waterfill` to stay light

    pivoted = spstrf if matrix.dtype == np.float32 else dpstrf
    root, order, rank, _ = pivoted(matrix.T, lower=1, overwrite_a=1)
    left = np.zeros(len(matrix))
    left[order[:rank] - 1] = np.square(np.diagonal(root)[:rank], dtype=np.float64)
    return left


def _scaled(forms: Array, powers: Array) -> Array:
    roots = np.sqrt(powers)
    scaled = np.asarray(roots[:, :, None] * forms)
    scaled *= roots[:, None, :]
    return scaled


@dataclass(frozen=True, eq=False)
class Products:
    """Volumes that are products of one number of a row and one of a column, where both are open to each other.

    Attributes:
        rows: [groups, rows].
        columns: [groups, columns].
        live: which products count, [groups, rows, columns]; None for all.
    """

    rows: Array
    columns: Array
    live: Mask | None = None

    def volumes(self) -> Array:
        """All products that count, [any]."""
        products = self.rows[:, :, None] * self.columns[:, None, :]
        return products.reshape(-1) if self.live is None else products[self.live]


def kronecker_products(
    rows: Array,
    columns: Array,
    row_powers: Array,
    column_powers: Array,
    live: Mask,
    known: MutableMapping[object, Array] | None = None,
    device: str | None = None,
) -> list[Products]:
    """Volumes for `F = G (x) A` and weights [out, in] of entropy powers `N_oi = r_o c_i`, some of them known.

    Without known weights `N^{1/2} F N^{1/2}` is the product of `R^{1/2} G R^{1/2}` and `C^{1/2} A C^{1/2}`, and so are
    its eigenvalues. With some and a diagonal G, row o has the eigenvalues of the matrix of its live columns, the same
    for all rows that know the same, times `g_o r_o`. Where those are too many (`MOST_WORK`; the most common ones come
    first) or too large (`MOST_COLUMNS`) and where G is a matrix, pivots take the place of eigenvalues.

    Args:
        rows: G: its diagonal [out], or [out, out] with zeros between groups.
        columns: A, [groups, in, in], or [groups, in] of diagonals.
        row_powers: r, [out].
        column_powers: c, [in].
        live: which weights are not known, [out, in].
        known: what was found for these columns, where no weight is known; filled.
        device: where matrices are factored; None for the processor.
    """
    groups, inputs = columns.shape[:2]
    c = np.broadcast_to(column_powers, (groups, inputs))
    r, g = row_powers.reshape(groups, -1), _blocks(rows, groups)
    live = live.reshape(*r.shape, inputs)
    if live.all():
        work = sum(groups * float(form.shape[1]) ** 3 for form in (g, columns) if form.ndim == 3)
        solve = spectrum if work <= MOST_WORK and _widest(g, columns) <= MOST_COLUMNS else pivots
        largest = float(column_powers.max(initial=0.0)) or 1.0  # apart, for slices of a matrix often differ in it alone
        known, key = {} if known is None else known, (solve, (column_powers / largest).tobytes())
        if key not in known:
            known[key] = solve(columns, c / largest, device)
        return [Products(solve(g, largest * r, device), known[key])]
    if g.ndim == 3 or columns.ndim == 2 or inputs > MOST_COLUMNS:
        return [Products(pivots(g, r, device), pivots(columns, c, device), live)]
    return _by_pattern(spectrum(g, r), columns, c, live)


def _widest(*forms: Array) -> int:
    """Columns of the largest matrix; 0 of diagonals."""
    return max((form.shape[1] for form in forms if form.ndim == 3), default=0)


def _blocks(rows: Array, groups: int) -> Array:
    """The diagonals [groups, n], or the matrices [groups, n, n] on the diagonal."""
    if rows.ndim == 1:
        return rows.reshape(groups, -1)
    each = len(rows) // groups
    every = np.arange(groups)
    return np.asarray(rows.reshape(groups, each, groups, each)[every, :, every, :])


def _by_pattern(rows: Array, columns: Array, powers: Array, live: Mask) -> list[Products]:
    """Rows that know the same weights together, the most common first, while there is work left."""
    found: list[Products] = []
    left, common = MOST_WORK, np.zeros(rows.shape, np.bool_)
    for group, patterns in enumerate(live):
        _, first, which, counts = np.unique(
            np.packbits(patterns, axis=1), axis=0, return_index=True, return_inverse=True, return_counts=True
        )
        for pattern in np.argsort(-counts, kind="stable"):
            kept = np.flatnonzero(patterns[first[pattern]])
            left -= float(len(kept)) ** 3
            if left < 0:
                break
            same = which.reshape(-1) == pattern
            common[group] |= same
            form = columns[group][np.ix_(kept, kept)]
            found.append(Products(rows[group, same][None], spectrum(form[None], powers[group, kept][None])))
    if not common.all():
        found.append(Products(rows, pivots(columns, powers), live & ~common[:, :, None]))
    return found
