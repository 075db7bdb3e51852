"""Mean and variance of the channels of activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_DEAD = 1e-6
"""A channel with less than this share of its layer's mean variance is dead."""


@dataclass(frozen=True, eq=False)
class ChannelMoments:
    """Mean and variance of every channel over all samples and positions.

    Attributes:
        count: number of values a channel.
        mean: float64 [channels], on the CPU.
        variance: float64 [channels], divided by the count, on the CPU.
        precision: relative distance of two neighbouring values of their type.
    """

    count: int
    mean: Tensor
    variance: Tensor
    precision: float

    @property
    def alive(self) -> Tensor:
        """Mask of the channels that vary: more than a tiny share of the mean variance, and than rounding their mean."""
        floor = torch.maximum(_DEAD * self.variance.mean(), (self.precision * self.mean).square())
        return self.variance > floor


def measure(values: Tensor, axis: int) -> ChannelMoments:
    """The moments of one call.

    Args:
        values: activations with at least one value a channel.
        axis: which of their axes counts the channels.
    """
    wide = values.detach()[None].double()
    positions = [i for i in range(wide.ndim) if i != (axis if axis < 0 else axis + 1) % wide.ndim]
    variance, mean = torch.var_mean(wide, dim=positions, correction=0)
    return ChannelMoments(wide.numel() // mean.numel(), mean.cpu(), variance.cpu(), torch.finfo(values.dtype).eps)


def merge(a: ChannelMoments, b: ChannelMoments) -> ChannelMoments:
    """The moments of two sets of calls together.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """
    count = a.count + b.count
    part = b.count / count
    shift = b.mean - a.mean
    variance = a.variance * (1 - part) + b.variance * part + shift.square() * (part * (1 - part))
    return ChannelMoments(count, a.mean + shift * part, variance, max(a.precision, b.precision))
