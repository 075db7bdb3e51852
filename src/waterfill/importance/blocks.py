"""Per-sample gradients of one tensor under several signals, in the smallest form in which they can be combined.

`squares` sums squares; here products of any kind are formed first, such as `(J^T u) (J^T v)` of two signals, or squares
of squares. A unit is whatever is squared on its own: a sample, or a row of a table that a sample picks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill.importance import squares
from waterfill.importance.squares import Order
from waterfill.models.uses import Tokens, Use, to_native
from waterfill.records import Layout


@dataclass(frozen=True, eq=False)
class Block:
    """Gradients of some samples.

    Attributes:
        gradients: [signals, units, ...], up to a factor of every weight that is the same for all signals.
        total: sums something made of products of so many gradients, [units, ...] and that even number, over the units;
            gives the shape of the tensor.
    """

    gradients: Tensor
    total: Callable[[Tensor, int], Tensor]


def blocks(uses: Sequence[Use], gradients: Sequence[Sequence[Tensor]], samples: int, order: Order) -> Iterator[Block]:
    """Give the gradients of all samples, few enough at a time.

    Args:
        uses: as in `square_sum`.
        gradients: as in `square_sum`.
        samples: as in `square_sum`.
        order: as in `square_sum`.
    """
    first = uses[0].view
    if all(isinstance(use.view, Tokens) for use in uses):
        yield _picked(uses, gradients, samples, order)
        return
    alike = squares.alike(uses)
    step = squares.chunk(uses, gradients, samples, alike)
    for start in range(0, samples, step):
        part = slice(start, start + step)
        signals = list(zip(*gradients, strict=True))
        if alike:
            x = squares.inputs(uses, samples, order, part)
            yield _block(
                x, [squares.gradients_at(uses, signal, samples, order, part) for signal in signals], first.layout
            )
        else:
            each = [squares.per_sample_gradients(uses, signal, samples, order, part) for signal in signals]
            yield written_out(torch.stack(each))


def written_out(gradients: Tensor) -> Block:
    """Make the block of gradients [signals, samples, *shape of the tensor]."""
    return Block(gradients, lambda product, _: product.sum(0))


def _block(x: Tensor | None, signals: Sequence[Tensor], layout: Layout) -> Block:
    """The block of inputs [samples, groups, in, places] and gradients [samples, groups, out, places] of signals.

    With one place the gradient `g x^T` stays a factor g; x joins when everything is summed.
    """
    if x is not None and x.shape[-1] == 1:
        factor = x[..., 0]
        return Block(
            torch.stack([g[..., 0] for g in signals]),
            lambda product, power: to_native(
                torch.einsum("bgo,bgi->goi", product, factor.to(product) ** power), layout
            ),
        )
    if x is None:
        products = torch.stack([g.sum(-1, keepdim=True) for g in signals])
    else:
        samples, groups, out, _ = signals[0].shape
        joined = squares.products(torch.cat(list(signals), 2), x)
        products = joined.reshape(samples, groups, len(signals), out, -1).movedim(2, 0)
    return Block(products, lambda product, _: to_native(product.sum(0), layout))


def _picked(uses: Sequence[Use], gradients: Sequence[Sequence[Tensor]], samples: int, order: Order) -> Block:
    """The rows of a table that samples pick."""
    met, layout = squares.picked_rows(uses, gradients, samples, order), uses[0].view.layout

    def total(product: Tensor, _: int) -> Tensor:
        return product.new_zeros(layout.shape).index_add_(0, met.tokens, product)

    return Block(torch.stack(list(met.gradients)), total)
