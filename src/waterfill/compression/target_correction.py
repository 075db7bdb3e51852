"""Targets of matrices in a compressed model: what undoes the errors of the layers before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from waterfill.importance.factored import SHRINKAGE
from waterfill.models.uses import View
from waterfill.models.watch import ProductWatch

Refill: TypeAlias = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]
"""Takes the name of a tensor and the values that it should have; gives those that it gets. Both of its own shape."""

MOST_POSITIONS = 1 << 14
"""Positions at which the inputs of a matrix are compared, about."""

BUDGET_BYTES = 1 << 29
"""Memory for the inputs of all matrices in the original."""

FARTHEST = 1.0
"""A target farther from the weights than this, relative to their norm, is not to be trusted."""

RIDGE = 1e-4
"""Share of the mean diagonal that is always added, for inputs that are never there."""


@dataclass(frozen=True, eq=False)
class InSequence:
    """Matrices to fill again one after the other, each with a target of its own.

    Where the layers before are compressed already, a matrix W sees the inputs x' in the place of x. Its output is
    nearest to that of the original with the target

        W + W (C - A') A'^-1,    C = E[x x'^T],  A' = E[x' x'^T],

    and then error feedback goes on from there. A' is damped as the importance is where there are few positions, and
    then less is corrected. Every tensor in `names` is filled again that one product uses once in a pass (a linear or
    convolutional layer, or a matrix product); all others stay as they are.

    Source: least squares of the original's outputs on the inputs of the compressed layer; for pruning, He, Zhang and
    Sun 2017, "Channel pruning for accelerating very deep neural networks", equation 1.

    Attributes:
        names: of tensors of both models, in their state dicts.
        refill: what gives a tensor its values.
    """

    names: Collection[str]
    refill: Refill


@dataclass(frozen=True, eq=False)
class Before:
    """Matrices of the original with a sample of their inputs.

    Attributes:
        values: float32, of their own shapes, by name.
        inputs: [groups, in, positions], by name.
    """

    values: Mapping[str, NDArray[np.float32]]
    inputs: Mapping[str, Tensor]


@contextmanager
def noting(original: nn.Module, names: Collection[str]) -> Iterator[Before]:
    """Note the inputs of all matrices in the pass of the original that is made inside; complete when it is left.

    Args:
        original: the network.
        names: of the matrices; those that are not used once by one product are left out.
    """
    tensors = {name: each for name, each in _named(original, names).items() if each.numel()}
    inputs: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    positions = BUDGET_BYTES // (4 * max(1, sum(each[0].numel() for each in tensors.values())))

    def note(name: str, view: View, x: Tensor) -> bool:
        calls[name] += 1
        if calls[name] == 1:
            inputs[name] = sampled(view, x, max(1, min(MOST_POSITIONS, positions)))
        return False

    values = {name: each.detach().cpu().float().numpy() for name, each in tensors.items()}
    with ProductWatch(tensors, note) as watch:
        yield Before(values, inputs)
    for name in [*watch.missed, *(name for name, count in calls.items() if count > 1)]:
        inputs.pop(name, None)


@contextmanager
def refilling(compressed: nn.Module, sequence: InSequence, before: Before) -> Iterator[None]:
    """Fill the matrices when the pass of the compressed model that is made inside comes to them.

    Args:
        compressed: the network to fill.
        sequence: which matrices, and how.
        before: the original.
    """
    tensors = _named(compressed, before.inputs.keys() & set(sequence.names))

    def fill(name: str, view: View, x: Tensor) -> bool:
        inputs = before.inputs[name]
        target = moved(before.values[name], view, inputs, sampled(view, x, inputs.shape[-1]))
        tensors[name].copy_(torch.from_numpy(sequence.refill(name, target)))
        return True

    with ProductWatch(tensors, fill):
        yield


def sampled(view: View, x: Tensor, positions: int) -> Tensor:
    """Inputs of a layer at some of its positions, the same ones for inputs of the same shape.

    Args:
        view: how the layer reads its input.
        x: the input [rows, ...].
        positions: how many, about; of every row as many.

    Returns:
        float32 [groups, in, positions].
    """
    generator = torch.Generator().manual_seed(0)
    chosen = torch.arange(len(x))
    if len(x) > positions:
        chosen = torch.randperm(len(x), generator=generator)[:positions]
    found = []
    for rows in torch.split(chosen, max(1, len(chosen) // 64)):
        written_out = view.inputs(x[rows.to(x.device)].float())
        places = written_out.shape[-1]
        each = max(1, min(places, -(-positions // len(chosen))))
        some = torch.randperm(places, generator=generator)[:each].to(x.device)
        found.append(written_out[..., some].permute(1, 2, 0, 3).flatten(2).cpu())
    return torch.cat(found, -1)


def moved(values: NDArray[np.float32], view: View, before: Tensor, now: Tensor) -> NDArray[np.float32]:
    """The target of a tensor, see `InSequence`.

    Args:
        values: what it is in the original, of its own shape.
        view: how the layer reads it.
        before: its inputs in the original [groups, in, positions].
        now: its inputs in the compressed model.

    Returns:
        Of the shape of the values; the values themselves where the target is not to be trusted.
    """
    positions = now.shape[-1]
    seen = torch.bmm(now, now.transpose(1, 2)).double() / positions
    change = torch.bmm(before - now, now.transpose(1, 2)).double() / positions
    matrix = view.layout.to_matrix(values).astype(np.float64)
    moves = shift(matrix, seen, change, SHRINKAGE / positions)
    return values if moves is None else view.layout.from_matrix((matrix + moves).astype(np.float32))


def shift(matrix: NDArray[np.float64], seen: Tensor, change: Tensor, damping: float) -> NDArray[np.float64] | None:
    """How far the target of a matrix is from it, see `InSequence`.

    Args:
        matrix: W [out, in].
        seen: A', float64 [groups, in, in].
        change: C - A', of the same shape.
        damping: share of the mean diagonal of A' that is added to it, for each input.

    Returns:
        [out, in]; None where it is not to be trusted.
    """
    groups, inputs = seen.shape[:2]
    means = seen.diagonal(dim1=1, dim2=2).mean(1)
    added = (damping * inputs + RIDGE) * means
    damped = seen + torch.diag_embed(torch.where(means > 0, added, 1.0)[:, None].expand(groups, inputs))
    solved = torch.linalg.solve(damped, change.transpose(1, 2)).transpose(1, 2).numpy()
    moves: NDArray[np.float64] = (matrix.reshape(groups, -1, inputs) @ solved).reshape(matrix.shape)
    if not np.isfinite(moves).all() or np.linalg.norm(moves) > FARTHEST * np.linalg.norm(matrix):
        return None
    return moves


def _named(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    return {name: each for name, each in model.named_parameters(remove_duplicate=False) if name in names}
