"""Products of the patches of a convolution, from products of its input with itself, shifted.

Along an axis with step 1 the patches of neighbouring places overlap. With the input X at the positions q (all else that
belongs to a tap, such as the channel, is one of F features), places p from 0 to P - 1, and taps t, d positions apart,

    A[t, t'] = sum_p X[p + d t] X[p + d t']^T

depends on `t' - t` alone but for what enters and leaves at both ends:

    A[t + 1, t' + 1] = A[t, t'] + sum_{j < d} (X[P + d t + j] X[P + d t' + j]^T - X[d t + j] X[d t' + j]^T).

So k products of F x F take the place of k^2, and no patch is written out along this axis.

Source: as for covariance matrices of linear prediction: Makhoul 1975, "Linear prediction: a tutorial review".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill.models.uses import Convolution, pad, spread_out, take_patches

BLOCK = 1024
"""Rows of products at the ends at a time."""

ROUNDINGS = 64
"""Squares below so many units in the last place of the largest one of a feature are taken for zero."""


@dataclass(frozen=True)
class ShiftedAxis:
    """The axis of a convolution along which products are shifted.

    Attributes:
        view: the convolution.
        axis: number of the axis, the one with the most taps.
    """

    view: Convolution
    axis: int

    @classmethod
    def of(cls, view: Convolution) -> ShiftedAxis | None:
        """The axis; None where no axis with step 1 has several taps."""
        taps = [n if step == 1 else 1 for n, step in zip(view.layout.shape[2:], view.stride, strict=True)]
        axis = max(range(len(taps)), key=taps.__getitem__, default=0)
        return cls(view, axis) if taps and taps[axis] > 1 else None

    @property
    def taps(self) -> int:
        """How many taps there are along the axis."""
        return int(self.view.layout.shape[2 + self.axis])

    def work(self, shape: Sequence[int], rows: int, places: int) -> float:
        """Multiplications per group.

        Args:
            shape: of an input, [1, channels, *size].
            rows: of the input.
            places: of the output, of one row.
        """
        axis, view = self.axis, self.view
        reach = view.dilation[axis] * (self.taps - 1)
        length = shape[2 + axis] if view.upsample is None else (shape[2 + axis] - 1) * view.upsample[axis] + 1
        along = max(1, length + sum(view.padding[axis]) - reach)
        features = self.view.sizes[2] // self.taps
        inside, ends = features**2 * self.taps, 2 * (features * (self.taps - 1)) ** 2 * view.dilation[axis] / along
        return float(rows * places) * (inside + ends)

    def features(self, x: Tensor) -> Tensor:
        """Inputs [rows, channels, *size] to [groups, features, positions along the axis, all others]."""
        view = self.view
        x = x if view.upsample is None else spread_out(x, view.upsample)
        x = pad(x, view.padding)
        kernel, stride, dilation = (list(each) for each in (view.layout.shape[2:], view.stride, view.dilation))
        kernel[self.axis] = 1
        others = [
            (length - reach * (taps - 1) - 1) // step + 1
            for length, taps, step, reach in zip(x.shape[2:], kernel, stride, dilation, strict=True)
        ]
        patches = take_patches(x, kernel, stride, dilation)
        patches = patches.reshape(len(x), view.groups, -1, *others).movedim(3 + self.axis, 3)
        length = patches.shape[3]
        return patches.movedim(0, 3).reshape(view.groups, patches.shape[2], length, -1).contiguous()

    def products(self, x: Tensor) -> Tensor:
        """Sums of products of patches over all places of all rows, [groups, in, in], in the precision of the input.

        Args:
            x: inputs [rows, channels, *size].
        """
        found = self.features(x)
        groups, features, length, _ = found.shape
        step = self.view.dilation[self.axis]
        places = length - step * (self.taps - 1)
        result = found.new_empty(groups, self.taps, features, self.taps, features)
        first = found[:, :, :places].flatten(2)
        for shift in range(self.taps):
            product = torch.bmm(first, found[:, :, shift * step : shift * step + places].flatten(2).transpose(1, 2))
            result[:, 0, :, shift] = product
            result[:, shift, :, 0] = product.transpose(1, 2)
        change = found.new_zeros(groups, self.taps - 1, features, self.taps - 1, features)
        self._add_ends(change, found[:, :, places:], 1)
        self._add_ends(change, found[:, :, : length - places], -1)
        for tap in range(self.taps - 1):
            result[:, tap + 1, :, 1:] = result[:, tap, :, :-1] + change[:, tap]
        del change
        _clear_roundings(result)
        return self._in_order(result)

    def _add_ends(self, total: Tensor, found: Tensor, sign: int) -> None:
        """Add products of the positions at an end, or take them away; where all is padding there is nothing to do.

        Args:
            total: [groups, taps - 1, features, taps - 1, features], changed.
            found: features at the positions, [groups, features, dilation * (taps - 1), all others].
            sign: 1 or -1.
        """
        groups, features, _, others = found.shape
        by_tap = found.reshape(groups, features, self.taps - 1, -1, others).transpose(1, 2)
        there = torch.nonzero(by_tap.flatten(2).any(2).any(0)).flatten().tolist()
        if not there:
            return
        flat = by_tap[:, there[0] : there[-1] + 1].flatten(1, 2).flatten(2)
        rows = total[:, there[0] : there[-1] + 1].flatten(1, 2)[..., there[0] : there[-1] + 1, :]
        for start in range(0, flat.shape[1], BLOCK):
            part = torch.bmm(flat[:, start : start + BLOCK], flat.transpose(1, 2))
            rows[:, start : start + BLOCK].add_(part.reshape(groups, part.shape[1], -1, features), alpha=sign)

    def _in_order(self, products: Tensor) -> Tensor:
        """Products [groups, taps, features, taps, features] in the order of the inputs of the layer."""
        shape, groups = self.view.layout.shape[2:], len(products)
        others = [taps for number, taps in enumerate(shape) if number != self.axis]
        each = [self.taps, self.view.sizes[2] // math.prod(shape), *others]
        first, second = 1, 1 + len(each)
        axes = products.reshape(groups, *each, *each)
        axes = axes.movedim(first, first + 1 + self.axis).movedim(second, second + 1 + self.axis)
        if self.view.upsample is not None:
            axes = axes.flip([start + 1 + axis for start in (first, second) for axis in range(len(shape))])
        return axes.reshape(groups, self.view.sizes[2], self.view.sizes[2])


def _clear_roundings(products: Tensor) -> None:
    """Make the products of taps zero that saw next to nothing of a feature, such as padding alone.

    What the ends take away is rounded by the size of what other taps saw, and may leave squares below zero.

    Args:
        products: [groups, taps, features, taps, features], changed.
    """
    groups, taps, features = products.shape[:3]
    flat = products.view(groups, taps * features, taps * features)
    squares = flat.diagonal(dim1=1, dim2=2).reshape(groups, taps, features)
    least = ROUNDINGS * torch.finfo(products.dtype).eps * squares.amax(1, keepdim=True)
    for group, nothing in zip(flat, (squares <= least).reshape(groups, -1), strict=True):
        numbers = torch.nonzero(nothing).flatten()
        group[numbers] = 0
        group[:, numbers] = 0
