"""State dicts from what a file holds: ties, norms and constants from their entries, the same bits everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from waterfill.io.arrays import TypedArray, rounded
from waterfill.records import Coded, Constant, Entry, Exact, Floats, NormMean, NormVariance, Tied

T = TypeVar("T")

Of = Callable[[str], Any]
"""Something of every name."""


def assemble(
    entries: Iterable[Entry], matrices: Of, exact: Callable[[str], T], made: Callable[[TypedArray], T]
) -> Iterator[tuple[str, T]]:
    """Build a state dict from its entries: the inverse of an inventory.

    Args:
        entries: what there is, in order.
        matrices: float32 values [out, in] by name, for every entry of origin `Coded`, `NormVariance` (the scale) and
            `NormMean` (the shift); of origin `Coded` it may be the tensor itself.
        exact: the tensors of origin `Exact`, by name.
        made: a tensor of an array.

    Yields:
        Name and tensor of every entry, one at a time; a tied entry is the same object as the one it is tied to. A
        tensor may share the memory of its matrix.
    """
    entries = tuple(entries)
    shared = {entry.origin.to for entry in entries if isinstance(entry.origin, Tied)}
    originals: dict[str, T] = {}
    for entry in entries:
        if isinstance(entry.origin, Tied):
            yield entry.name, originals[entry.origin.to]
            continue
        tensor = assembled(entry, matrices, exact, made)
        if entry.name in shared:
            originals[entry.name] = tensor
        yield entry.name, tensor


def assembled(entry: Entry, matrices: Of, exact: Callable[[str], T], made: Callable[[TypedArray], T]) -> T:
    """Build one tensor, which is not tied; the arguments are those of `assemble`."""
    match entry.origin:
        case Exact():
            return exact(entry.name)
        case Coded(layout):
            found = matrices(entry.name)
            if not isinstance(found, np.ndarray):
                tensor: T = made(found) if isinstance(found, TypedArray) else found
                return tensor
            return made(rounded(layout.from_matrix(found), entry))
        case Constant(value):
            return made(rounded(np.full(entry.shape, value), entry))
        case NormVariance(_, eps):
            return made(rounded(_variance(matrices(entry.name), eps), entry))
        case NormMean(_, scale):
            return made(rounded(_mean(matrices(entry.name), matrices(scale)), entry))
    raise AssertionError(f"{entry.name!r} is tied")


def _variance(scale: Floats, eps: float) -> NDArray[np.float64]:
    """Variance `1 / s^2 - eps`, not below 0, that makes a norm without affine parameters multiply by s."""
    wide = np.asarray(scale, np.float64)
    with np.errstate(divide="ignore"):
        return np.maximum(1.0 / (wide * wide) - eps, 0.0)


def _mean(shift: Floats, scale: Floats) -> NDArray[np.float64]:
    """Mean `-t / s` that makes it add t; 0 where the scale is 0."""
    wide = np.asarray(scale, np.float64)
    return np.divide(-np.asarray(shift, np.float64), wide, out=np.zeros_like(wide), where=wide != 0)
