"""Mean and variance of the channels of activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_DEAD = 1e-6
"""A channel with less than this share of its layer's mean variance is dead."""


CACHED = {"cpu": 1 << 17, "others": 1 << 26}
"""Values that are looked at together: few enough to stay in the cache of a processor, many for other devices."""


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

    Values are added up in their own precision about a mean, those of every sample apart, and samples in double
    precision; all of them in double precision where single precision has no room for their squares.

    Args:
        values: activations with at least one value a channel.
        axis: which of their axes counts the channels.
    """
    rows = _rows(values.detach(), axis)
    mean, variance = _about_mean(rows if rows.dtype == torch.float64 else rows.float())
    if not bool(variance.isfinite().all()):
        mean, variance = _about_mean(rows.double())
    precision = torch.finfo(values.dtype).eps
    return ChannelMoments(values.numel() // mean.numel(), mean.cpu(), variance.cpu(), precision)


def _rows(values: Tensor, axis: int) -> Tensor:
    """Values as [rows, channels, places]."""
    wide = values[None]
    channel = axis % wide.ndim if axis < 0 else axis + 1
    return wide.flatten(0, channel - 1).flatten(2) if channel < wide.ndim - 1 else wide.flatten(0, -2)[..., None]


def _about_mean(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the channels of [rows, channels, places], float64 [channels] each."""
    count = len(rows) * rows.shape[2]
    near = (_sums(rows) / count).to(rows.dtype)
    sums, squares = torch.zeros(2, rows.shape[1], dtype=torch.float64, device=rows.device)
    most = CACHED["cpu" if rows.device.type == "cpu" else "others"]
    for some in torch.split(rows, max(1, most // max(1, rows[0].numel()))):
        apart = some - near[:, None]
        sums += _sums(apart)
        squares += _sums(apart.square_())
    rest = sums / count
    return near.double() + rest, (squares / count - rest.square()).clamp_min(0)


def _sums(rows: Tensor) -> Tensor:
    """Sums of the channels, of every row first, float64 [channels]."""
    return rows.sum(2).double().sum(0) if rows.shape[2] > 1 else rows[..., 0].sum(0).double()


def merge(a: ChannelMoments, b: ChannelMoments) -> ChannelMoments:
    """The moments of two sets of calls together.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """
    count = a.count + b.count
    part = b.count / count
    shift = b.mean - a.mean
    variance = a.variance * (1 - part) + b.variance * part + shift.square() * (part * (1 - part))
    return ChannelMoments(count, a.mean + shift * part, variance, max(a.precision, b.precision))
