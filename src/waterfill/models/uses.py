"""The ways in which a layer uses a learned tensor, each brought to one normal form.

A use multiplies the tensor with the layer's input. Read row by row (a row is a sample, or a position of one), the
gradient of the tensor in its normal form [groups * out, in] is

    einsum('rgop,rgip->rgoi', gradients, inputs)

with the gradient at the layer's output [rows, groups, out, places] and its input [rows, groups, in, places].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from waterfill.records import Layout


class View(Protocol):
    """How one kind of layer reads its input and the gradient at its output."""

    @property
    def layout(self) -> Layout:
        """How the layer reads the tensor as a matrix."""
        ...

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(groups, out, in) of the normal form."""
        ...

    def places(self, x: Tensor) -> int:
        """How many places inputs [rows, ...] have."""
        ...

    def inputs(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """Bring inputs [rows, ...] to [rows, groups, in, places]; only those of some numbers where they are given."""
        ...

    def gradients(self, g: Tensor) -> Tensor:
        """Bring gradients [rows, ...] to [rows, groups, out, places]."""
        ...


@dataclass(frozen=True, eq=False)
class Use:
    """One use of one learned tensor in one forward pass.

    Attributes:
        site: index of the output whose gradient is needed, among those of the pass.
        view: how its input and gradient come to the normal form.
        x: the input [rows, ...]; token numbers [rows] for `Tokens`; None where it is 1 (biases).
        lead: number of leading axes of the output that count rows.
        rows: number of rows.
    """

    site: int
    view: View
    x: Tensor | None
    lead: int
    rows: int


def to_native(matrix: Tensor, layout: Layout) -> Tensor:
    """Bring matrices [..., groups, out, in] of a view to the shape of the tensor itself, [..., *shape]."""
    lead = matrix.shape[:-3]
    if layout.transposed:
        _, channels, taps = layout.axes
        matrix = matrix.reshape(*matrix.shape[:-1], channels, taps).transpose(-3, -2)
    return matrix.reshape((*lead, *layout.shape))


@dataclass(frozen=True)
class Dense:
    """A linear layer `y = x W^T`, or `y = x W` with a transposed layout; a row is one vector.

    Attributes:
        layout: the layout.
    """

    layout: Layout

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(1, out, in)."""
        out, channels, taps = self.layout.axes
        return 1, out, channels * taps

    def places(self, x: Tensor) -> int:
        """One."""
        del x
        return 1

    def inputs(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """[rows, in] to [rows, 1, in, 1]."""
        del at
        return x[:, None, :, None]

    def gradients(self, g: Tensor) -> Tensor:
        """[rows, out] to [rows, 1, out, 1]."""
        return g[:, None, :, None]


@dataclass(frozen=True)
class Broadcast:
    """An elementwise factor `y = x * w` or term `y = x + w` of the trailing axes, spread over axes of length 1.

    Scales and shifts of norms, biases of all layers and positional tables are such tensors. A factor is diagonal: it
    has as many groups as values, with one input and one output each. A term has one group and the input 1.

    Attributes:
        layout: the layout.
        trailing: shape of the tensor beside the trailing axes of the output, such as (channels, 1, 1).
        factor: whether the tensor multiplies.
    """

    layout: Layout
    trailing: tuple[int, ...]
    factor: bool

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(values, 1, 1) for a factor, (1, values, 1) for a term."""
        values = math.prod(self.trailing)
        return (values, 1, 1) if self.factor else (1, values, 1)

    def places(self, x: Tensor) -> int:
        """All values of a row over those of the tensor."""
        return x[0].numel() // math.prod(self.trailing)

    def inputs(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """[rows, *trailing axes] to [rows, values, 1, places]."""
        found = self._places(x)[:, :, None, :]
        return found if at is None else found[..., at]

    def gradients(self, g: Tensor) -> Tensor:
        """[rows, *trailing axes] to [rows, values, 1, places], or [rows, 1, values, places] for a term."""
        places = self._places(g)
        return places[:, :, None, :] if self.factor else places[:, None, :, :]

    def _places(self, t: Tensor) -> Tensor:
        kept = [axis + 1 for axis, size in enumerate(self.trailing) if size > 1]
        spread = [axis + 1 for axis, size in enumerate(self.trailing) if size == 1]
        return t.permute(0, *kept, *spread).reshape(t.shape[0], math.prod(self.trailing), -1)


@dataclass(frozen=True)
class Convolution:
    """A convolution in any number of dimensions; a row is one image, a place one pixel of the output.

    Attributes:
        layout: the layout.
        groups: number of groups.
        stride: step between output pixels, per dimension.
        padding: pixels (before, after) the image, per dimension; negative ones are cut off.
        dilation: step between taps, per dimension.
        upsample: zeros are put between the pixels of the input so that they are this far apart, and the taps are
            read backwards: a transposed convolution. None for a plain one.
    """

    layout: Layout
    groups: int
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    upsample: tuple[int, ...] | None = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(groups, channels out / groups, channels in / groups * taps)."""
        out, channels, taps = self.layout.axes
        return self.groups, out // self.groups, channels * taps

    def places(self, x: Tensor) -> int:
        """Pixels of the output."""
        size = [
            (length - 1) * apart + 1 + sum(beside)
            for length, apart, beside in zip(x.shape[2:], self.upsample or (1,) * x.ndim, self.padding, strict=False)
        ]
        return math.prod(_pixels(size, self.layout.shape[2:], self.stride, self.dilation))

    def inputs(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """[rows, channels, *size] to the patches [rows, groups, channels / groups * taps, pixels]."""
        if self.upsample is not None:
            x = spread_out(x, self.upsample)
        x = pad(x, self.padding)
        patches = take_patches(x, self.layout.shape[2:], self.stride, self.dilation, at)
        if self.upsample is not None:
            patches = patches.flip(2)
        return patches.reshape(x.shape[0], self.groups, -1, patches.shape[-1])

    def gradients(self, g: Tensor) -> Tensor:
        """[rows, channels, *size] to [rows, groups, channels / groups, pixels]."""
        return g.reshape(g.shape[0], self.groups, g.shape[1] // self.groups, -1)


@dataclass(frozen=True)
class Tokens:
    """Rows of a table picked by number: a linear layer on one-hot inputs that are never written out.

    Attributes:
        layout: the layout [tokens, features], transposed.
    """

    layout: Layout

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(1, features, tokens)."""
        out, channels, taps = self.layout.axes
        return 1, out, channels * taps

    def places(self, x: Tensor) -> int:
        """One."""
        del x
        return 1

    def inputs(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """Token numbers [rows] to one-hot vectors [rows, 1, tokens, 1]; large, for small tables only."""
        del at
        return F.one_hot(x, self.layout.shape[0])[:, None, :, None].to(torch.get_default_dtype())

    def gradients(self, g: Tensor) -> Tensor:
        """[rows, features] to [rows, 1, features, 1]."""
        return g[:, None, :, None]


def pad(x: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    """Put zeros (before, after) every axis after the first two; negative counts cut off."""
    flat = [count for pair in reversed(padding) for count in pair]
    return F.pad(x, flat) if any(flat) else x


def spread_out(x: Tensor, distance: Sequence[int]) -> Tensor:
    """Put zeros between the pixels [n, channels, *size], so that they are `distance` apart."""
    if all(step == 1 for step in distance):
        return x
    size = [(length - 1) * step + 1 for length, step in zip(x.shape[2:], distance, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *size)
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in distance))] = x
    return wide


def take_patches(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], at: Tensor | None = None
) -> Tensor:
    """Copy what every tap sees at every output pixel, or at some.

    Args:
        x: images [n, channels, *size], padded.
        kernel: taps per dimension.
        stride: step between output pixels.
        dilation: step between taps.
        at: numbers of output pixels, in the order of their rows; None for all.

    Returns:
        [n, channels, taps, pixels].
    """
    size = _pixels(x.shape[2:], kernel, stride, dilation)
    if at is not None:
        taps = _numbers(kernel, dilation, x.shape[2:])
        pixels = _numbers(size, stride, x.shape[2:])[at.cpu()]
        where = (taps[:, None] + pixels).reshape(-1).to(x.device)
        return x.flatten(2).index_select(2, where).reshape(*x.shape[:2], len(taps), len(pixels))
    steps = x.stride()[2:]
    tap_steps = [step * reach for step, reach in zip(steps, dilation, strict=True)]
    pixel_steps = [step * jump for step, jump in zip(steps, stride, strict=True)]
    view = x.as_strided((*x.shape[:2], *kernel, *size), (*x.stride()[:2], *tap_steps, *pixel_steps))
    return view.reshape(*x.shape[:2], math.prod(kernel), math.prod(size))


def _numbers(counts: Sequence[int], steps: Sequence[int], size: Sequence[int]) -> Tensor:
    """Numbers of the pixels of an image at some steps along every dimension, row by row."""
    numbers = torch.zeros(1, dtype=torch.int64)
    for count, step, length in zip(counts, steps, size, strict=True):
        numbers = (numbers[:, None] * length + torch.arange(count) * step).reshape(-1)
    return numbers


def _pixels(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Pixels of the output per dimension."""
    each = zip(size, kernel, stride, dilation, strict=True)
    return tuple((length - reach * (taps - 1) - 1) // step + 1 for length, taps, step, reach in each)
