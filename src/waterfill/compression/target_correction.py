"""Targets of matrices in a compressed model: what undoes the errors of the layers before them.

Where the layers before are compressed already, a matrix W sees the inputs x' in the place of x. Its output is nearest
to that of the original with the target

    W + W (C - A') A'^-1,    C = E[x x'^T],  A' = E[x' x'^T],

and then error feedback goes on from there. A' is damped where there are few positions, and then less is corrected.

Source: least squares of the original's outputs on the inputs of the compressed layer; for pruning, He, Zhang and Sun
2017, "Channel pruning for accelerating very deep neural networks", equation 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.compression.sampled_change import can_be_trusted, is_flat, sampled_shift
from waterfill.importance.factored import SHRINKAGE
from waterfill.models.uses import View
from waterfill.models.watch import ProductWatch
from waterfill.protocols import QuadraticForm
from waterfill.records import Floats, Layout, Weight

POSITIONS_PER_INPUT, FEWEST_POSITIONS, MOST_POSITIONS = 8, 1 << 12, 1 << 14
"""Positions at which the inputs of a matrix are compared, about: so many for each of them, within bounds."""

BUDGET_BYTES = 1 << 29
"""Memory for the inputs of all matrices in the original."""

RIDGE = 1e-4
"""Share of the mean diagonal that is always added, for inputs that are never there."""


IN_DOUBLE = 1024
"""Inputs up to which a factor is in double precision, which takes hardly longer there."""


@dataclass(frozen=True, eq=False)
class DampedInputs:
    """Inputs of matrices in the compressed model, for targets to be solved for; one for all that read them.

    Attributes:
        seen: mean of `x' x'^T`, float64 or float32 [groups, in, in]; targets are solved for on its device.
        damping: share of the mean diagonal of `seen` that is added to it, for each input.
    """

    seen: Tensor
    damping: float

    @cached_property
    def _factor(self) -> Tensor | None:
        """Lower Cholesky factor of A', damped, in single precision where there are many inputs; None without one."""
        single = self.seen.shape[-1] > IN_DOUBLE
        for dtype in (torch.float32, torch.float64)[not single :]:
            factor = self._damped(dtype).mT  # in the order of LAPACK, which then needs no second one
            wrong = torch.empty(len(factor), dtype=torch.int32, device=factor.device)
            torch.linalg.cholesky_ex(factor, out=(factor, wrong))
            if not wrong.any():
                return factor
        return None

    def _damped(self, dtype: torch.dtype) -> Tensor:
        damped = self.seen.to(dtype, copy=True)
        means = self.seen.diagonal(dim1=1, dim2=2).mean(1)
        added = (self.damping * self.seen.shape[-1] + RIDGE) * means
        damped.diagonal(dim1=1, dim2=2).add_(torch.where(means > 0, added, 1.0)[:, None])
        return damped

    def moves(self, matrix: Floats, missed: Tensor) -> Floats | None:
        """How far the target of a matrix is from it.

        Args:
            matrix: W [out, in].
            missed: `W (C - A')` [groups, out of each, in]: mean product of what its outputs miss with `x'`.

        Returns:
            `W (C - A') A'^-1`, [out, in]; None where it is not to be trusted.
        """
        return _trusted(self.solved(missed), matrix)

    def solved(self, wanted: Tensor) -> Tensor | None:
        """Solve `Z A' = wanted` for A' with its damping, [groups, rows, in]; None where A' has no factor."""
        if self._factor is None:
            return None
        half = torch.linalg.solve_triangular(self._factor.mT, wanted.to(self._factor), upper=True, left=False)
        found: Tensor = torch.linalg.solve_triangular(self._factor, half, upper=False, left=False)
        return found


@dataclass(frozen=True, eq=False)
class InputChange:
    """How the inputs of matrices in the compressed model differ from those in the original; one for all that read them.

    Attributes:
        inputs: those in the compressed model.
        change: mean of `(x - x') x'^T`, float64 or float32 [groups, in, in].
        rows: how many all of these matrices have together, in each group.
    """

    inputs: DampedInputs
    change: Tensor
    rows: int

    @cached_property
    def _solved(self) -> Tensor | None:
        """`(C - A') A'^-1`, [groups, in, in], with which a matrix is a product; None where A' has no factor."""
        return self.inputs.solved(self.change)

    def shift(self, matrix: Floats) -> Floats | None:
        """How far the target of a matrix is from it, as `DampedInputs.moves`.

        It is solved for, or a product with what is solved for once where that is less work for all matrices.

        Args:
            matrix: W [out, in].
        """
        groups, inputs = self.change.shape[:2]
        weights = torch.from_numpy(matrix).to(self.change).reshape(groups, -1, inputs)
        if self.rows < inputs:
            return self.inputs.moves(matrix, torch.bmm(weights, self.change))
        solved = self._solved
        return None if solved is None else _trusted(torch.bmm(weights.to(solved), solved), matrix)


def _trusted(moves: Tensor | None, matrix: Floats) -> Floats | None:
    """Moves [groups, out of each, in] of a matrix [out, in] in its shape; None where they are not to be trusted."""
    if moves is None or not can_be_trusted(moves, torch.from_numpy(matrix).to(moves.device)):
        return None
    found: Floats = moves.reshape(matrix.shape).float().cpu().numpy()
    return found


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """Inputs of a matrix in the compressed model, beside those in the original.

    Attributes:
        layout: how the layer reads the tensor as a matrix.
        change: how they differ, or how far the target is from the matrix [out, in] already; None where positions of
            both do not correspond.
        form: what errors cost for these inputs; None where it is the form that was estimated on the original.
    """

    layout: Layout
    change: InputChange | Floats | None
    form: QuadraticForm | None = None

    def rows_of(self, rows: slice) -> LayerInputs:
        """The same for some rows of the matrix."""
        form = None if self.form is None else self.form.rows_of(rows)
        change = self.change[rows] if isinstance(self.change, np.ndarray) else self.change
        return replace(self, change=change, form=form)

    def target(self, weight: Weight) -> Weight:
        """The target of a weight for these inputs; the weight itself where that is not to be trusted.

        Args:
            weight: what it is in the original, or some of its rows.
        """
        if self.change is None:
            return weight
        same = (self.layout.transposed, self.layout.groups) == (weight.layout.transposed, weight.layout.groups)
        layout = weight.layout if same else self.layout
        matrix = weight.matrix if same else layout.to_matrix(weight.layout.from_matrix(weight.matrix))
        moves = self.change if isinstance(self.change, np.ndarray) else self.change.shift(matrix)
        if moves is None:
            return weight
        moved: Floats = matrix + moves
        return replace(weight, matrix=moved if same else weight.layout.to_matrix(layout.from_matrix(moved)))


Visit: TypeAlias = Callable[[Sequence[str], Mapping[str, LayerInputs]], Mapping[str, Tensor]]
"""Takes the names of matrices in the order in which the model uses them, and what they see; gives their values."""


@dataclass(frozen=True, eq=False)
class Requantization:
    """Matrices to quantize again one after the other, each with a target of its own.

    Every tensor in `names` is visited that one product uses once in a pass (a linear or convolutional layer, or a
    matrix product); all others stay as they are.

    Attributes:
        names: of tensors of both models, in their state dicts.
        visit: what gives a tensor its values.
    """

    names: Collection[str]
    visit: Visit


@contextmanager
def record_inputs(original: nn.Module, names: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Record samples of the inputs of all matrices in the pass of the original that is made inside.

    Args:
        original: the network.
        names: of the matrices; those that are not used once by one product are left out.

    Yields:
        Inputs [groups, in, positions] by name, of flat matrices outputs [groups, out, positions]; complete when it is
        left.
    """
    tensors = {name: each for name, each in _named(original, names).items() if each.numel()}
    inputs: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    positions = BUDGET_BYTES // (4 * max(1, sum(each[0].numel() for each in tensors.values())))

    def record(name: str, view: View, x: Tensor) -> None:
        calls[name] += 1
        if calls[name] == 1:
            wanted = min(max(FEWEST_POSITIONS, POSITIONS_PER_INPUT * view.sizes[2]), MOST_POSITIONS)
            inputs[name] = recorded(view, x, tensors[name], max(1, min(wanted, positions)))

    with ProductWatch(tensors, record) as watch:
        yield inputs
    for name in [*watch.missed, *(name for name, count in calls.items() if count > 1)]:
        inputs.pop(name, None)


@contextmanager
def requantize(compressed: nn.Module, sequence: Requantization, before: Mapping[str, Tensor]) -> Iterator[None]:
    """Give matrices new values when the pass of the compressed model that is made inside comes to them.

    Args:
        compressed: the network to fill.
        sequence: which matrices, and how.
        before: their inputs or outputs in the original, by `record_inputs`.
    """
    tensors = _named(compressed, before.keys() & set(sequence.names))

    def fill(name: str, view: View, x: Tensor) -> None:
        inputs = compare_inputs(view, before[name], x, tensors[name])
        tensors[name].copy_(sequence.visit([name], {name: inputs})[name].reshape(tensors[name].shape))

    with ProductWatch(tensors, fill):
        yield


def recorded(view: View, x: Tensor, tensor: Tensor, positions: int) -> Tensor:
    """Samples of the inputs of a layer; of its outputs where it is flat, for they take less room.

    Args:
        view: how the layer reads its input.
        x: the input [rows, ...].
        tensor: its matrix.
        positions: how many, about.

    Returns:
        float32 [groups, in or out, positions].
    """
    found = sampled(view, x, positions)
    return torch.bmm(_matrix(view, tensor), found) if is_flat(*view.sizes[1:]) else found


def sampled(view: View, x: Tensor, positions: int) -> Tensor:
    """Inputs of a layer at some of its positions, the same ones for inputs of the same shape.

    Args:
        view: how the layer reads its input.
        x: the input [rows, ...].
        positions: how many, about; of every row as many.

    Returns:
        float32 [groups, in, positions], on the device of the input.
    """
    generator = torch.Generator().manual_seed(0)
    chosen = torch.arange(len(x))
    if len(x) > positions:
        chosen = torch.randperm(len(x), generator=generator)[:positions]
    places = view.places(x)
    each = max(1, min(places, -(-positions // len(chosen))))
    found = torch.empty(view.sizes[0], view.sizes[2], len(chosen), each, device=x.device)
    start = 0
    for rows in torch.split(chosen, max(1, len(chosen) // 64)):
        some = torch.randperm(places, generator=generator)[:each]
        written_out = view.inputs(x[rows.to(x.device)].float(), some)
        found[:, :, start : start + len(rows)] = written_out.permute(1, 2, 0, 3)
        start += len(rows)
    return found.flatten(2)


def compare_inputs(view: View, before: Tensor, x: Tensor, tensor: Tensor) -> LayerInputs:
    """Compare the inputs of a layer with those that it had.

    Args:
        view: how the layer reads its input.
        before: its inputs in the original [groups, in, positions], by `sampled`; its outputs where it is flat.
        x: its input in the compressed model, of the same samples.
        tensor: the matrix of the layer in the original.
    """
    now = sampled(view, x, before.shape[-1])
    positions = now.shape[-1]
    if is_flat(*view.sizes[1:]):
        return LayerInputs(view.layout, sampled_shift(before, now, _matrix(view, tensor), SHRINKAGE / positions, RIDGE))
    dtype = torch.float32 if now.shape[1] > IN_DOUBLE else torch.float64
    seen = torch.bmm(now, now.mT).to(dtype).div_(positions)
    change = torch.bmm(before - now, now.mT).to(dtype).div_(positions)
    return LayerInputs(view.layout, InputChange(DampedInputs(seen, SHRINKAGE / positions), change, view.sizes[1]))


def _matrix(view: View, tensor: Tensor) -> Tensor:
    """A tensor as a layer reads it, float32 [groups, out, in], on its device."""
    matrix = view.layout.to_matrix(tensor.detach().cpu().float().numpy())
    return torch.from_numpy(np.ascontiguousarray(matrix)).reshape(view.sizes).to(tensor.device)


def _named(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: each for name, each in parameters if name in names and each.is_floating_point()}
