"""Orderings of hidden units that give the same function."""

from __future__ import annotations

from collections.abc import Iterable
from math import lgamma, log

from waterfill.theory.checks import whole


def permutation_bits(units: Iterable[int]) -> float:
    """Count the bits that say in which order units stand: `sum_l log2 n_l!`.

    Units of a hidden layer can change places if the rows that make them and the columns that read them do: n! orderings
    of the weights are one function. A decoder that may return any of them can do with so many bits less, at most.

    Args:
        units: n_l of every set of units that can change places freely: hidden layers, channels inside a block, channels
            of a residual stream (once for the whole stream).

    Raises:
        UsageError: a number is no whole number of at least zero.

    Source:
        Basu and Varshney 2022, "Universal and succinct source coding of deep neural networks".

    Example:
        >>> round(permutation_bits([300, 100]))  # LeNet-300-100
        2566
    """
    return sum(lgamma(whole("units", count, 0) + 1) for count in units) / log(2)
