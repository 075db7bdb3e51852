"""A covariance of weights and one of inputs, and the coordinates in which both are diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from waterfill.errors import UsageError
from waterfill.theory.checks import Array, covariance, root


class CovariancePair:
    """Two covariance matrices and the coordinates in which both are diagonal.

    `u = U^T B W` with `Sigma_X = B^T B` has independent components of variance `g_k`, and the distortion is the
    squared error of `u`. Where both matrices are diagonal, so is the map.

    Args:
        sigma_w: `Sigma_W` [m, m], or variances [m].
        sigma_x: `Sigma_X` [m, m], or variances [m].

    Raises:
        UsageError: a matrix is no covariance, or shapes differ.
    """

    def __init__(self, sigma_w: ArrayLike, sigma_x: ArrayLike) -> None:
        self.sigma_w, self.sigma_x = covariance("sigma_w", sigma_w), covariance("sigma_x", sigma_x)
        self._diagonal = np.ndim(sigma_w) == np.ndim(sigma_x) == 1
        if len(self.sigma_w) != len(self.sigma_x):
            raise UsageError(
                f"sigma_w is for {len(self.sigma_w)} weights, sigma_x for {len(self.sigma_x)} inputs; expected as many."
            )

    @cached_property
    def root_w(self) -> Array:
        """A matrix whose columns have the inner products of Sigma_W."""
        return root(self.sigma_w)

    @cached_property
    def root_x(self) -> Array:
        """`B`, of `Sigma_X = B^T B`."""
        return root(self.sigma_x)

    @cached_property
    def _decomposition(self) -> tuple[Array, Array]:
        values, vectors = np.linalg.eigh(self.root_x @ self.sigma_w @ self.root_x.T)
        noise = len(values) * np.finfo(float).eps * float(values.max(initial=0.0))
        return np.where(values > noise, values, 0.0), vectors

    @cached_property
    def eigenvalues(self) -> Array:
        """The `g_k`, the smallest first, with what is only rounding set to zero."""
        if self._diagonal:
            return np.sort(np.diag(self.sigma_w) * np.diag(self.sigma_x))
        return self._decomposition[0]

    @cached_property
    def to_components(self) -> Array:
        """`T = U^T B`: from weights to components."""
        return np.asarray(self._decomposition[1].T @ self.root_x)

    @cached_property
    def from_components(self) -> Array:
        """Components to the weights that they say most about: `E[W | u] = Sigma_W T^T diag(1 / g) u`."""
        values = self.eigenvalues
        gains = np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
        return np.asarray(self.sigma_w @ self.to_components.T * gains)


def along_axes(values: Array, matrices: Sequence[Array]) -> Array:
    """Multiply every axis but the first by a matrix of its own: a Kronecker product that is never formed.

    Args:
        values: [n, m_1, m_2, ...].
        matrices: one [k_i, m_i] for every axis after the first.

    Returns:
        [n, k_1, k_2, ...].
    """
    for axis, matrix in enumerate(matrices, start=1):
        values = np.moveaxis(np.tensordot(values, matrix, axes=(axis, 1)), -1, axis)
    return values
