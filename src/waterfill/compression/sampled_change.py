"""Targets of matrices with few rows and many inputs, from samples of the inputs themselves.

The target of `target_correction` solves `Z A' = W (C - A')`. A Cholesky decomposition of A' takes `N in^2 + in^3 / 3`
multiplications for N positions, whatever the number of rows. The method of conjugate gradients takes `2 N in` for every
row and step, and needs no matrix [in, in]: A' comes in as the product of the samples with their transpose. All rows
share one A', and each step looks in the directions of all of them together, so that few steps are enough.

Source: O'Leary 1980, "The block conjugate gradient algorithm and related methods"; directions are made orthonormal in
every step as in Dubrulle 2001, "Retooling the method of block conjugate gradients".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill.records import Floats

STEPS = 32
"""Steps at most."""

RESIDUAL = 0.03
"""Part of the right-hand side that may be left in every row: so much less is corrected, about.

On a convolution of 8,192 inputs and 16 rows behind a compressed one 32 steps left 20.4 % of the error of its outputs,
12 steps (to a residual of .03) left 22.2 %, 6 steps (.1) 30.9 %. Row by row it took 40 steps to a residual of .03.
"""

FARTHEST = 1.0
"""A target farther from the weights than this, relative to their norm, is not to be trusted."""

FROM_INPUTS, INPUTS_PER_ROW = 1024, 24
"""From so many inputs on, and so many for every row, the samples themselves are used."""


def is_flat(rows: int, inputs: int) -> bool:
    """Whether a matrix has so few rows that samples are soon multiplied with each."""
    return inputs >= max(FROM_INPUTS, INPUTS_PER_ROW * rows)


def can_be_trusted(moves: Tensor, weights: Tensor) -> bool:
    """Whether moves of weights are finite, and not too far."""
    return bool(torch.linalg.vector_norm(moves) <= FARTHEST * torch.linalg.vector_norm(weights))


def sampled_shift(before: Tensor, now: Tensor, weights: Tensor, damping: float, ridge: float) -> Floats | None:
    """How far the target of a matrix is from it, by the outputs that it misses position by position.

    Args:
        before: outputs W x in the original, float32 [groups, out of each, positions].
        now: inputs x' in the compressed model, float32 [groups, in, positions].
        weights: W, float32 [groups, out of each, in].
        damping: share of the mean diagonal of A' that is added to it, for each input.
        ridge: the same for all inputs.

    Returns:
        `W (C - A') A'^-1`, [out, in]; None where it is not to be trusted.
    """
    missed = torch.bmm(before - torch.bmm(weights, now), now.mT) / now.shape[2]
    moves = SampledInputs(now, damping, ridge).solved(missed)
    return moves.flatten(0, 1).cpu().numpy() if can_be_trusted(moves, weights) else None


@dataclass(frozen=True, eq=False)
class SampledInputs:
    """A' of a matrix in the compressed model, damped, as the product of samples of its inputs.

    Attributes:
        now: inputs x', float32 [groups, in, positions].
        damping: share of the mean diagonal of A' that is added to it, for each input.
        ridge: the same for all inputs.
    """

    now: Tensor
    damping: float
    ridge: float

    def solved(self, wanted: Tensor) -> Tensor:
        """Solve `Z A' = wanted` for A' with its damping."""
        added, least = self._added(), RESIDUAL**2 * _squares(wanted)
        found, residual = torch.zeros_like(wanted), wanted.clone()
        directions = _orthonormal(residual)
        for _ in range(STEPS):
            if not bool((_squares(residual) > least).any()):
                break
            moved = self._times(directions) + added * directions
            curved = _Curvature.of(directions, moved)
            if not curved.is_known:
                break
            steps = curved.solved(directions, residual)
            found += torch.bmm(steps, directions)
            residual -= torch.bmm(steps, moved)
            directions = _orthonormal(residual - torch.bmm(curved.solved(moved, residual), directions))
        return found

    def _times(self, rows: Tensor) -> Tensor:
        """Multiply rows by A', without its damping."""
        return torch.bmm(torch.bmm(rows, self.now), self.now.transpose(1, 2)) / self.now.shape[2]

    def _added(self) -> Tensor:
        """What is added to the diagonal of A', [groups, 1, 1]."""
        _, inputs, positions = self.now.shape
        means = torch.linalg.vector_norm(self.now, dim=(1, 2)).square() / (inputs * positions)
        added = (self.damping * inputs + self.ridge) * means
        return torch.where(means > 0, added, 1.0)[:, None, None]


@dataclass(frozen=True, eq=False)
class _Curvature:
    """`P A' P^T` of directions P, by its Cholesky factor.

    Attributes:
        root: lower factor, [groups, rows, rows].
        is_known: whether it is one; roundings may leave none.
    """

    root: Tensor
    is_known: bool

    @classmethod
    def of(cls, directions: Tensor, moved: Tensor) -> _Curvature:
        """Take the products of directions [groups, rows, in] with themselves times A'."""
        found = torch.bmm(directions, moved.transpose(1, 2)).double()
        root, wrong = torch.linalg.cholesky_ex((found + found.transpose(1, 2)) / 2)
        return cls(root, not bool(wrong.any()))

    def solved(self, left: Tensor, residual: Tensor) -> Tensor:
        """Solve `Z P A' P^T = residual left^T`, [groups, rows, rows]."""
        wanted = torch.bmm(left, residual.transpose(1, 2)).double()
        return torch.cholesky_solve(wanted, self.root).transpose(1, 2).to(residual)


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows that span all of some rows [groups, rows, in]."""
    found: Tensor = torch.linalg.qr(rows.transpose(1, 2))[0].transpose(1, 2)
    return found


def _squares(rows: Tensor) -> Tensor:
    return rows.square().sum(2, keepdim=True)
