"""Targets of matrices with few rows and many inputs, from samples of the inputs themselves.

The target of `target_correction` solves `Z A' = W (C - A')`. A Cholesky decomposition of A' takes `N in^2 + in^3 / 3`
multiplications for N positions, whatever the number of rows. The method of conjugate gradients takes `2 N in` for every
row and step, and needs no matrix [in, in]: A' comes in as the product of the samples with their transpose.

Source: Hestenes and Stiefel 1952, "Methods of conjugate gradients for solving linear systems".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill.records import Floats

STEPS = 64
"""Steps at most."""

RESIDUAL = 0.03
"""Part of the right-hand side that may be left in every row: so much less is corrected, about.

On a convolution of 8,192 inputs behind a compressed one 95 steps left 22.9 % of the error of its outputs, 40 steps (to
a residual of .03) left 23.6 %, 22 steps (.1) 27.9 %.
"""

FARTHEST = 1.0
"""A target farther from the weights than this, relative to their norm, is not to be trusted."""

FROM_INPUTS, INPUTS_PER_ROW = 1024, 64
"""From so many inputs on, and so many for every row, the samples themselves are used."""


def is_flat(rows: int, inputs: int) -> bool:
    """Whether a matrix has so few rows that samples are soon multiplied with each."""
    return inputs >= max(FROM_INPUTS, INPUTS_PER_ROW * rows)


def can_be_trusted(moves: Tensor, weights: Tensor) -> bool:
    """Whether moves of weights are finite, and not too far."""
    return bool(torch.linalg.vector_norm(moves) <= FARTHEST * torch.linalg.vector_norm(weights))


@dataclass(frozen=True, eq=False)
class SampledChange:
    """How the inputs of a matrix in the compressed model differ from those in the original, position by position.

    Attributes:
        before: inputs x in the original, float32 [groups, in, positions].
        now: inputs x' in the compressed model, of the same shape.
        damping: share of the mean diagonal of A' that is added to it, for each input.
        ridge: the same for all inputs.
    """

    before: Tensor
    now: Tensor
    damping: float
    ridge: float

    def shift(self, matrix: Floats) -> Floats | None:
        """How far the target of a matrix is from it, as `InputChange.shift`.

        Args:
            matrix: W [out, in].
        """
        weights = torch.from_numpy(matrix).to(self.now).reshape(len(self.now), -1, matrix.shape[1])
        moves = self._moves(weights)
        return moves.numpy().reshape(matrix.shape) if can_be_trusted(moves, weights) else None

    def _moves(self, weights: Tensor) -> Tensor:
        positions = self.now.shape[2]
        missed = torch.bmm(weights, self.before).sub_(torch.bmm(weights, self.now))
        return self._solved(torch.bmm(missed, self.now.transpose(1, 2)) / positions)

    def _solved(self, wanted: Tensor) -> Tensor:
        """Solve `Z A' = wanted` for A' with its damping; of every row by itself."""
        added, least = self._added(), RESIDUAL**2 * _squares(wanted)
        found, residual, direction = torch.zeros_like(wanted), wanted.clone(), wanted.clone()
        left = _squares(residual)
        for _ in range(STEPS):
            if not bool((left > least).any()):
                break
            moved = self._times(direction) + added * direction
            step = left / (direction * moved).sum(2, keepdim=True).clamp_min(torch.finfo(moved.dtype).tiny)
            found += step * direction
            residual -= step * moved
            before, left = left, _squares(residual)
            direction = residual + left / before.clamp_min(torch.finfo(moved.dtype).tiny) * direction
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


def _squares(rows: Tensor) -> Tensor:
    return rows.square().sum(2, keepdim=True)
