"""The three shapes of an importance matrix `I_w`: diagonal, dense, and a Kronecker product of two factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from waterfill.errors import UsageError
from waterfill.theory.checks import Array, covariance, not_negative
from waterfill.theory.spectra import pivots, spectrum

MOST_WHOLE = 2048
"""Most weights for which a product of factors is written out as one matrix."""


class Quadratic(Protocol):
    """A quadratic form `e^T I_w e` over errors of one shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights it is for."""
        ...

    def times(self, error: Array) -> Array:
        """`I_w e`, in the shape of the error."""
        ...

    def volumes(self, powers: Array) -> Array:
        """Eigenvalues of `N^{1/2} I_w N^{1/2}` or less, for independent weights of entropy powers N; any shape."""
        ...


@dataclass(frozen=True, eq=False)
class Diagonal:
    """`I_w = diag(values)`.

    Attributes:
        values: not negative, in the shape of the weights.
    """

    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights."""
        return self.values.shape

    def times(self, error: Array) -> Array:
        """`I_w e`."""
        return self.values * error

    def volumes(self, powers: Array) -> Array:
        """The products `I_i N_i`."""
        return np.asarray(self.values * powers)


@dataclass(frozen=True, eq=False)
class Dense:
    """`I_w` as a whole matrix over the flattened weights.

    Attributes:
        matrix: positive semidefinite [m, m].
        shape: shape of the weights, with m elements.
    """

    matrix: Array
    shape: tuple[int, ...]

    def times(self, error: Array) -> Array:
        """`I_w e`."""
        return np.asarray(self.matrix @ error.reshape(-1)).reshape(error.shape)

    def volumes(self, powers: Array) -> Array:
        """Eigenvalues of `N^{1/2} I_w N^{1/2}`, of the weights that are not known."""
        live = np.flatnonzero(powers)
        return spectrum(self.matrix[None][:, live[:, None], live], powers.reshape(1, -1)[:, live]).reshape(-1)


@dataclass(frozen=True, eq=False)
class Kronecker:
    """`I_w = G (x) A` of a linear layer: `e^T I_w e = tr(G E A E^T)` of an error E [out, in].

    Attributes:
        inputs: `A = E[x x^T]`, positive semidefinite [in, in].
        outputs: `G = E[g g^T]`, positive semidefinite [out, out].
    """

    inputs: Array
    outputs: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights, (out, in)."""
        return (len(self.outputs), len(self.inputs))

    def times(self, error: Array) -> Array:
        """`G E A`."""
        return np.asarray(self.outputs @ error @ self.inputs)

    def volumes(self, powers: Array) -> Array:
        """Eigenvalues of `N^{1/2} I_w N^{1/2}`: of the whole matrix where there are at most `MOST_WHOLE` weights.

        Of more weights they are products of those of both factors where the powers are products too, and less than
        theirs, products of pivots, where they are not (`waterfill.theory.spectra`).
        """
        if powers.size <= MOST_WHOLE:
            return Dense(np.asarray(np.kron(self.outputs, self.inputs)), self.shape).volumes(powers)
        rows, columns = powers[:, :1], powers[:1] / (powers[0, 0] or 1.0)
        if np.allclose(rows * columns, powers, rtol=1e-12, atol=0):
            left, right = spectrum(self.outputs[None], rows.T), spectrum(self.inputs[None], columns)
            return np.asarray(np.multiply.outer(left[0], right[0]))
        ones = (np.ones((1, size)) for size in self.shape)
        left, right = (pivots(f[None], one) for f, one in zip((self.outputs, self.inputs), ones, strict=True))
        return np.asarray(np.multiply.outer(left[0], right[0]) * powers)


def as_quadratic(importance: Any, shape: tuple[int, ...]) -> Quadratic:
    """Read an importance matrix for weights of a shape.

    Args:
        importance: an array in the shape of the weights (the diagonal), a matrix [m, m] over the m flattened weights,
            a pair of matrices (A [in, in], G [out, out]) for weights [out, in], or a `Quadratic`.
        shape: shape of the weights.

    Raises:
        UsageError: the importance fits none of these, or is not positive semidefinite.

    Example:
        >>> as_quadratic([1.0, 2.0], (2,)).times(np.array([3.0, 3.0])).tolist()
        [3.0, 6.0]
    """
    count = int(np.prod(shape))
    form = importance if hasattr(importance, "volumes") else _read(importance, shape, count)
    if form is None or tuple(form.shape) != tuple(shape):
        found = getattr(form, "shape", None) or getattr(importance, "shape", None) or type(importance).__name__
        raise UsageError(
            f"Importance {found} does not fit weights of shape {list(shape)}; expected the diagonal in that shape, a "
            f"matrix [{count}, {count}], or a pair (A [in, in], G [out, out]) for weights [out, in]."
        )
    quadratic: Quadratic = form
    return quadratic


def _read(importance: Any, shape: tuple[int, ...], count: int) -> Any:
    """A form of the right kind; None when the importance is none."""
    if isinstance(importance, tuple) and len(importance) == 2 and np.ndim(importance[0]) == 2:
        return Kronecker(covariance("importance A", importance[0]), covariance("importance G", importance[1]))
    if np.shape(importance) == tuple(shape):
        return Diagonal(not_negative("importance", importance))
    if np.shape(importance) == (count, count):
        return Dense(covariance("importance", importance), tuple(shape))
    return None
