"""Arguments of the formulas, as float64 arrays and numbers that are what they should be."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from waterfill.errors import UsageError

Array: TypeAlias = NDArray[np.float64]


def finite(name: str, values: ArrayLike) -> Array:
    """Values as a float64 array.

    Raises:
        UsageError: one is NaN or infinite, or they are no numbers.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} is no array of numbers ({error}); give floats.") from error
    if not np.isfinite(array).all():
        bad = array.size - int(np.isfinite(array).sum())
        raise UsageError(f"{name} has {bad} of {array.size} entries that are NaN or infinite; expected finite numbers.")
    return array


def not_negative(name: str, values: ArrayLike) -> Array:
    """Finite values of at least zero.

    Raises:
        UsageError: one is negative, NaN or infinite.
    """
    array = finite(name, values)
    if array.size and array.min() < 0:
        raise UsageError(f"{name} has the entry {array.min():.6g}; expected numbers of at least zero.")
    return array


def number(name: str, value: Any, *, above: float | None = None) -> float:
    """One finite number of at least zero, or above a bound when one is given.

    Raises:
        UsageError: it is no such number.
    """
    array = finite(name, value)
    if array.ndim:
        raise UsageError(f"{name} has the shape {list(array.shape)}; expected one number.")
    if above is None and array < 0:
        raise UsageError(f"{name} is {float(array):.6g}; expected a number of at least zero.")
    if above is not None and array <= above:
        raise UsageError(f"{name} is {float(array):.6g}; expected a number above {above:g}.")
    return float(array)


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number in [low, high].

    Raises:
        UsageError: it is none.
    """
    if isinstance(value, int | np.integer) and low <= value and (high is None or value <= high):
        return int(value)
    expected = f"of at least {low}" if high is None else f"from {low} to {high}"
    raise UsageError(f"{name} is {value!r}; expected a whole number {expected}.")


def covariance(name: str, values: ArrayLike) -> Array:
    """A covariance matrix [m, m]; a vector [m] of variances becomes a diagonal one.

    Raises:
        UsageError: it is not square, not symmetric, or has an eigenvalue clearly below zero.
    """
    array = finite(name, values)
    if array.ndim == 1:
        return np.diag(not_negative(name, array))
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise UsageError(f"{name} has the shape {list(array.shape)}; expected a square matrix [m, m] or variances [m].")
    scale = float(np.abs(array).max(initial=0.0))
    if np.abs(array - array.T).max(initial=0.0) > 1e-8 * scale:
        raise UsageError(
            f"{name} is not symmetric; expected a covariance matrix. Take (C + C.T) / 2 if rounding did it."
        )
    array = (array + array.T) / 2
    if array.size and np.linalg.eigvalsh(array)[0] < -1e-8 * scale * len(array):
        raise UsageError(f"{name} has a negative eigenvalue; expected a positive semidefinite covariance matrix.")
    return array


def root(sigma: Array) -> Array:
    """A matrix R with `R^T R = Sigma`, also for a singular covariance: its columns have the inner products of Sigma."""
    values, vectors = np.linalg.eigh(sigma)
    return np.asarray(np.sqrt(values.clip(0))[:, None] * vectors.T)


def same_shape(name: str, array: Array, other_name: str, other: Array) -> None:
    """Check that two arrays have one shape.

    Raises:
        UsageError: they have not.
    """
    if array.shape != other.shape:
        raise UsageError(
            f"{name} has the shape {list(array.shape)}, {other_name} the shape {list(other.shape)}; expected the same."
        )
