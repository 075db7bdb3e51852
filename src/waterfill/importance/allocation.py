"""How many signals each sample is sent: all where its outputs are uncertain, one where they are nearly fixed, or none.

Most of the importance of a trained classifier comes from few samples: those whose prediction is open. What a sample can
add is known from its outputs before anything is sent back, for its signals u have `E |u|^2 = tr C`, with C the matrix
over its outputs. One random signal has in the place of a sum `T = sum_i (J^T u)_i^2` over the weights of a row a random
number of that mean and a variance of at most `2 T^2` (for Gaussian u; signs have less), and counted with the chance p
and divided by it, of at most `(3 / p - 1) T^2`.

How exact rows have to be: with prices off by a relative error e, a row gets `d = 1/2 log2(1 + e)` bits more than it
should, and for the same rate the distortion grows by the factor `1 + 2 (ln 2)^2 Var d`, which is worth
`ln 2 Var d = e^2 / (4 ln 2)` bits per weight. So a standard error of 5 % is worth .0009 bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STANDARD_ERROR = 0.05
"""Relative standard error of the price of a row that random signals may leave, worth .0009 bit."""

SHARE_OF_ONE_SIGNAL = 0.75
"""Of that variance, what may come from samples with one signal; the rest from those that are left out by chance."""


LEAST_CHANCE = 0.25
"""Of a sample to be sent a signal: those of small powers may be all that a rare class has."""


@dataclass(frozen=True, eq=False)
class Allocation:
    """Which samples are sent all signals, and which one random signal.

    Attributes:
        all_signals: the samples that are sent all signals.
        one_signal: the samples that are sent one.
        weights: how often each of the latter counts, float64: one over its chance.
    """

    all_signals: list[int]
    one_signal: Tensor
    weights: Tensor


def allocate(powers: Tensor, share: float, generator: torch.Generator) -> Allocation | None:
    """Allocate signals to the samples of a part of the data.

    Args:
        powers: the `tr C` of every prediction or value, float64 [samples, predictions]. Signals of several are
            independent of each other: their sum varies as that of one if all move a row alike, and as a sum of
            independent ones if none do; the geometric mean is taken.
        share: of all data, what these samples are, above 0; other parts are taken to be alike.
        generator: source of the chances, on the CPU.

    Returns:
        The allocation; None where half of the samples or more would be sent all signals: then all may be.
    """
    powers = powers.cpu()
    total = float(powers.sum())
    if not total > 0:
        return None
    spreads = (powers.sum(1) * powers.square().sum(1).sqrt()).sqrt()
    variance = STANDARD_ERROR**2 * total**2 / share
    ordered, samples = spreads.sort(descending=True)
    behind = 2 * ordered.square().flip(0).cumsum(0).flip(0)
    fixed = int((behind > SHARE_OF_ONE_SIGNAL * variance).sum())
    if 2 * fixed >= len(ordered):
        return None
    rest = samples[fixed:]
    # with several predictions a sample, rows may live on other ones than the powers tell
    level = _level(ordered[fixed:].flip(0), variance - float(behind[fixed])) if powers.shape[1] == 1 else 0.0
    chances = (spreads[rest] / level).clamp(LEAST_CHANCE, 1) if level > 0 else torch.ones_like(spreads[rest])
    drawn = torch.rand(len(rest), generator=generator, dtype=torch.float64) < chances
    chosen, place = rest[drawn].sort()
    return Allocation(samples[:fixed].sort().values.tolist(), chosen, 1 / chances[drawn][place])


def _level(rising: Tensor, variance: float) -> float:
    """The highest spread below which samples may be left out by chance, in proportion to it: `3 level sum` is left.

    Args:
        rising: spreads in rising order.
        variance: that may be added, about.
    """
    added = 3 * rising * rising.cumsum(0)
    count = int((added <= variance).sum())
    return float(rising[count - 1]) if count else 0.0
