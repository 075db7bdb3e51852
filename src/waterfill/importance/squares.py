"""Sums over samples of squared per-sample gradients, one learned tensor at a time.

A per-sample gradient sums over the rows, places and uses that belong to the sample, and is squared after that:

    sum_b (sum_p g[b, o, p] x[b, i, p])^2

Never more than `CHUNK_BYTES` of such gradients exist at once, and none where one row is one sample: there it is
`(g^2)^T (x^2)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from waterfill.models.uses import Tokens, Use, to_native

Order: TypeAlias = Literal["major", "minor"]
"""Whether the rows of a sample lie together (row = sample * k + j) or apart (row = j * samples + sample)."""

Samples: TypeAlias = slice | Tensor
"""Some samples: a range, or their numbers."""

CHUNK_BYTES = 2**24


def square_sum(
    uses: Sequence[Use],
    gradients: Sequence[Sequence[Tensor]],
    samples: int,
    order: Order,
    chosen: Tensor | None = None,
) -> Tensor:
    """Sum of squared per-sample gradients over samples and signals.

    Args:
        uses: all uses of one tensor, with rows a multiple of `samples`.
        gradients: for each use and each signal the gradient at the use's output.
        samples: number of samples.
        order: where the rows of a sample are.
        chosen: the samples that are summed over; all of them where it is None.

    Returns:
        Float64, of the shape of the tensor, on its device.
    """
    first = uses[0].view
    if all(isinstance(use.view, Tokens) for use in uses):
        return _token_squares(uses, gradients, samples, order, slice(None) if chosen is None else chosen)
    same = alike(uses)
    total = torch.zeros(first.layout.shape, dtype=torch.float64, device=gradients[0][0].device)
    for part in _parts(samples, chosen, chunk(uses, gradients, samples, same)):
        if same:
            x = inputs(uses, samples, order, part)
            g = [gradients_at(uses, signal, samples, order, part) for signal in zip(*gradients, strict=True)]
            total += to_native(_squares(x, g), first.layout)
            continue
        for signal in zip(*gradients, strict=True):
            total += per_sample_gradients(uses, signal, samples, order, part).square().sum(0)
    return total


def row_squares(
    uses: Sequence[Use],
    gradients: Sequence[Sequence[Tensor]],
    samples: int,
    order: Order,
    chosen: Tensor | None = None,
) -> Tensor:
    """Squared per-sample gradients, summed over the inputs of every row, for uses that are `alike` and have inputs.

    `sum_i (sum_p g_p x_ip)^2` is also `g^T (x^T x) g`, which is cheaper where there are few places.

    Args:
        uses: as in `square_sum`.
        gradients: as in `square_sum`.
        samples: as in `square_sum`.
        order: as in `square_sum`.
        chosen: as in `square_sum`.

    Returns:
        Float64 [signals, samples, groups * out], of the view of the uses.
    """
    groups, out, features = uses[0].view.sizes
    places = sum(of_use[0].numel() for of_use in gradients) // max(1, samples * groups * out)
    apart = len(uses) > 1 and not _is_short(places, features, len(gradients[0]) * out)
    found = []
    for part in _parts(samples, chosen, chunk(uses, gradients, samples, same=True)):
        if apart:
            squares = [each.square_().sum(-1) for each in _added_products(uses, gradients, samples, order, part)]
        else:
            x = inputs(uses, samples, order, part)
            assert x is not None
            signals = [gradients_at(uses, signal, samples, order, part) for signal in zip(*gradients, strict=True)]
            squares = _row_squares(x, signals)
        found.append(torch.stack(squares).flatten(2).double())
    return torch.cat(found, 1)


def _is_short(places: int, features: int, rows: int) -> bool:
    """Whether products of inputs between places are less work than those of gradients with inputs."""
    return places == 1 or places * features + rows * places < rows * features


def _added_products(
    uses: Sequence[Use], gradients: Sequence[Sequence[Tensor]], samples: int, order: Order, part: Samples
) -> list[Tensor]:
    """For each signal the per-sample gradient, added up use by use: places of several uses are not written out."""
    totals: list[Tensor] = []
    for use, signals in zip(uses, gradients, strict=True):
        x = inputs([use], samples, order, part)
        assert x is not None
        each = [products(gradients_at([use], [signal], samples, order, part), x) for signal in signals]
        totals = [total.add_(more) for total, more in zip(totals, each, strict=True)] if totals else each
    return totals


def _row_squares(x: Tensor, signals: Sequence[Tensor]) -> list[Tensor]:
    """For each signal [samples, groups, out, places], with x [samples, groups, in, places], [samples, groups, out]."""
    features, places = x.shape[2:]
    if places == 1:
        lengths = x.square().sum((2, 3))[:, :, None]
        return [g[..., 0].square() * lengths for g in signals]
    rows = len(signals) * signals[0].shape[2]
    if _is_short(places, features, rows):
        between = torch.bmm(x.flatten(0, 1).transpose(1, 2), x.flatten(0, 1))
        return [_forms(g, between) for g in signals]
    return [products(g, x).square_().sum(-1) for g in signals]


def _forms(g: Tensor, between: Tensor) -> Tensor:
    """`g^T between g` of every row, with g [samples, groups, out, places]."""
    flat = g.flatten(0, 1)
    return torch.bmm(flat, between).mul_(flat).sum(-1).clamp_min_(0).reshape(g.shape[:3])


def _parts(samples: int, chosen: Tensor | None, step: int) -> Iterator[Samples]:
    """The samples, or those chosen, a few at a time."""
    if chosen is not None:
        yield from torch.split(chosen, step) if len(chosen) else ()
        return
    yield from (slice(start, start + step) for start in range(0, samples, step))


def per_sample_gradients(
    uses: Sequence[Use], gradients: Sequence[Tensor], samples: int, order: Order, part: Samples = slice(None)
) -> Tensor:
    """Per-sample gradients of one tensor, written out.

    Args:
        uses: as in `square_sum`.
        gradients: for each use the gradient at its output, of one signal.
        samples: as in `square_sum`.
        order: as in `square_sum`.
        part: which samples.

    Returns:
        [samples of the part, *shape of the tensor].
    """
    by_use = []
    for use, gradient in zip(uses, gradients, strict=True):
        if isinstance(use.view, Tokens):
            by_use.append(_token_gradients(use, gradient, samples, order, part))
            continue
        x, g = inputs([use], samples, order, part), gradients_at([use], [gradient], samples, order, part)
        by_use.append(to_native(g.sum(-1, keepdim=True) if x is None else products(g, x), use.view.layout))
    return torch.stack(by_use).sum(0) if len(by_use) > 1 else by_use[0]


def alike(uses: Sequence[Use]) -> bool:
    """Whether all uses have one normal form, so that they can be joined."""
    first = uses[0].view
    return all(
        use.view.sizes == first.sizes and use.view.layout == first.layout and not isinstance(use.view, Tokens)
        for use in uses
    )


def chunk(uses: Sequence[Use], gradients: Sequence[Sequence[Tensor]], samples: int, same: bool) -> int:
    """Tell how many samples to take at once; `same` is what `alike` says."""
    groups, out, columns = uses[0].view.sizes
    signals = len(gradients[0])
    at_outputs = sum(of_use[0].numel() for of_use in gradients) // max(1, samples)
    places = at_outputs // max(1, groups * out)
    written_out = groups * out * columns if places > 1 or not same else 0
    values = signals * at_outputs + groups * columns * places + signals * written_out
    return max(1, CHUNK_BYTES // max(1, values * gradients[0][0].element_size()))


def _by_sample(rows: Tensor, samples: int, order: Order, part: Samples) -> Tensor:
    """The rows of the samples of a part, those of a sample together: [samples of the part * rows of one, ...]."""
    each = rows.shape[0] // samples
    if each == 1:
        return rows[part]
    if order == "major":
        return rows.reshape(samples, each, *rows.shape[1:])[part].flatten(0, 1)
    return rows.reshape(each, samples, *rows.shape[1:]).transpose(0, 1)[part].flatten(0, 1)


def _gradient_rows(use: Use, gradient: Tensor, samples: int, order: Order, part: Samples) -> Tensor:
    rows = gradient if use.lead == 1 else gradient.reshape(use.rows, *gradient.shape[use.lead :])
    return _by_sample(rows, samples, order, part)


def inputs(uses: Sequence[Use], samples: int, order: Order, part: Samples) -> Tensor | None:
    """Bring the inputs of all uses to [samples, groups, in, places]; None where they are 1."""
    joined = []
    for use in uses:
        if use.x is not None:
            x = _by_sample(use.x, samples, order, part)
            joined.append(_places_last(use.view.inputs(single(x)), use.rows // samples))
    return _concatenated(joined) if joined else None


def gradients_at(uses: Sequence[Use], gradients: Sequence[Tensor], samples: int, order: Order, part: Samples) -> Tensor:
    """Bring the gradients of all uses to [samples, groups, out, places]."""
    joined = []
    for use, gradient in zip(uses, gradients, strict=True):
        g = _gradient_rows(use, gradient, samples, order, part)
        joined.append(_places_last(use.view.gradients(single(g)), use.rows // samples))
    return _concatenated(joined)


def single(t: Tensor) -> Tensor:
    """At least single precision: models may compute in half precision inside, by autocast."""
    return t.float() if t.itemsize < 4 else t


def _places_last(normal: Tensor, each: int) -> Tensor:
    """[samples * rows of one, groups, features, places] to [samples, groups, features, rows of one * places]."""
    return normal if each == 1 else normal.reshape(-1, each, *normal.shape[1:]).movedim(1, -2).flatten(-2)


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), -1) if len(parts) > 1 else parts[0]


def _squares(x: Tensor | None, signals: Sequence[Tensor]) -> Tensor:
    """Sum over signals and samples of the squared sum over places.

    Args:
        x: [samples, groups, in, places], or None where it is 1.
        signals: [samples, groups, out, places] each.

    Returns:
        [groups, out, in].
    """
    if x is None:
        return torch.stack([g.sum(-1) for g in signals]).square().sum((0, 1)).unsqueeze(-1)
    if x.shape[-1] == 1:
        power = torch.stack([g[..., 0] for g in signals]).square().sum(0)
        return torch.einsum("bgo,bgi->goi", power, x[..., 0].square())
    samples, groups, out, _ = signals[0].shape
    row_bytes = samples * groups * x.shape[2] * x.element_size()
    if len(signals) * out * row_bytes <= CHUNK_BYTES:
        squares = products(torch.cat(list(signals), 2), x).square_().sum(0)
        return squares.reshape(groups, len(signals), out, -1).sum(1)
    rows = max(1, CHUNK_BYTES // max(1, row_bytes))
    parts = zip(*(torch.split(g, rows, 2) for g in signals), strict=True)
    return torch.cat([sum((products(g, x).square_().sum(0) for g in part), x.new_zeros(())) for part in parts], 1)


def products(g: Tensor, x: Tensor) -> Tensor:
    """Multiply `g x^T` for each sample and group, [samples, groups, out, in].

    The batch axes are joined by hand: `torch.matmul` copies tensors with axes of length 1 to do so.
    """
    joined = torch.bmm(g.flatten(0, 1), x.flatten(0, 1).transpose(1, 2))
    return joined.reshape(*g.shape[:3], x.shape[2])


def _token_keys(use: Use, samples: int, order: Order, part: Samples) -> tuple[Tensor, int]:
    """Number of (sample, token) for every row of the part, sample by sample, and how many samples."""
    assert use.x is not None
    tokens = _by_sample(use.x, samples, order, part).reshape(-1, use.rows // samples)
    first = torch.arange(len(tokens), device=tokens.device) * use.view.layout.shape[0]
    return (tokens + first[:, None]).flatten(), len(tokens)


def _token_gradients(use: Use, gradient: Tensor, samples: int, order: Order, part: Samples) -> Tensor:
    """Gradients [samples, tokens, features] of a table."""
    keys, count = _token_keys(use, samples, order, part)
    g = single(_gradient_rows(use, gradient, samples, order, part))
    table = g.new_zeros(count * use.view.layout.shape[0], g.shape[-1])
    return table.index_add_(0, keys, g).reshape(count, *use.view.layout.shape)


@dataclass(frozen=True, eq=False)
class Picked:
    """The rows of a table that samples pick, each once for a sample.

    Attributes:
        tokens: which row of the table each is, [rows].
        gradients: for each signal their gradients [rows, features].
    """

    tokens: Tensor
    gradients: Iterator[Tensor]


def picked_rows(
    uses: Sequence[Use],
    gradients: Sequence[Sequence[Tensor]],
    samples: int,
    order: Order,
    part: Samples = slice(None),
) -> Picked:
    """Find the rows of a table that the samples of a part pick; arguments as in `square_sum`."""
    keys = torch.cat([_token_keys(use, samples, order, part)[0] for use in uses])
    met, index = torch.unique(keys, return_inverse=True)

    def of_signal(signal: Sequence[Tensor]) -> Tensor:
        pairs = zip(uses, signal, strict=True)
        g = torch.cat([single(_gradient_rows(use, at, samples, order, part)) for use, at in pairs])
        return g.new_zeros(len(met), g.shape[-1]).index_add_(0, index, g)

    return Picked(met % uses[0].view.layout.shape[0], map(of_signal, zip(*gradients, strict=True)))


def _token_squares(
    uses: Sequence[Use], gradients: Sequence[Sequence[Tensor]], samples: int, order: Order, part: Samples
) -> Tensor:
    """`square_sum` of a table: only the rows that a sample picks are written out, each once for a sample."""
    met = picked_rows(uses, gradients, samples, order, part)
    total = torch.zeros(uses[0].view.layout.shape, dtype=torch.float64, device=met.tokens.device)
    for picked in met.gradients:
        total.index_add_(0, met.tokens, picked.square().double())
    return total
