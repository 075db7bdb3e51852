"""Sums of squared gradients row by row, and how far random signals leave them open."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from waterfill.importance.forms import Doubles


@dataclass(frozen=True, eq=False)
class RowSums:
    """Sums over samples of squared per-sample gradients, of which random signals give a part.

    Attributes:
        total: of all, float64 [rows].
        drawn: the part of it that random signals gave, float64 [rows].
        squares: the sum of squares of what each sample and random signal gave, float64 [rows].
        number: how many these were.
    """

    total: Tensor
    drawn: Tensor
    squares: Tensor
    number: int

    @classmethod
    def of(cls, found: Tensor, *, drawn: bool, left_out: int = 0) -> RowSums:
        """Add up what samples gave.

        Args:
            found: float64 [signals, samples, rows].
            drawn: whether the signals are random.
            left_out: how many samples were left out by chance, and give nothing.
        """
        total = found.sum((0, 1))
        nothing = torch.zeros_like(total)
        if not drawn:
            return cls(total, nothing, nothing, 0)
        return cls(total, total, found.square().sum((0, 1)), found.shape[0] * found.shape[1] + left_out)

    def on_host(self) -> RowSums:
        """The same sums on the CPU."""
        return RowSums(self.total.cpu(), self.drawn.cpu(), self.squares.cpu(), self.number)

    def merge(self, other: RowSums) -> RowSums:
        """Add the sums of other samples."""
        sums = self.total + other.total, self.drawn + other.drawn, self.squares + other.squares
        return RowSums(*sums, self.number + other.number)

    def relative_errors(self) -> Doubles:
        """Relative standard error of every row's total, as far as signals are random: 0 where all were sent.

        It is that of a sum of independent terms, so it has also what samples differ by that were sent random signals,
        and is rather too large.
        """
        if not self.number:
            return np.zeros(len(self.total))
        spread = self.squares - self.drawn.square() / self.number
        variance = spread * self.number / (self.number - 1) if self.number > 1 else self.squares
        errors = variance.clamp_min(0).sqrt() / self.total.clamp_min(torch.finfo(torch.float64).tiny)
        return np.asarray(torch.where(self.total > 0, errors, 0.0).cpu().numpy())
