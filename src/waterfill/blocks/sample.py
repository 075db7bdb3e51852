"""Some rows of a large matrix in the place of all: a source fitted to a million weights is known well enough."""

from __future__ import annotations

from dataclasses import dataclass

from waterfill.protocols import QuadraticForm
from waterfill.records import Layout, Weight

SAMPLED = 1 << 20
"""Weights that are looked at, at least."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of a matrix that stand for all of them where a source is fitted.

    Attributes:
        weight: the rows.
        form: what their errors cost.
        times: how many rows each of them stands for.
    """

    weight: Weight
    form: QuadraticForm | None
    times: float

    @classmethod
    def of(cls, weight: Weight, form: QuadraticForm | None) -> Sample:
        """Every k-th row of a large matrix, all of a smaller one."""
        step = max(1, weight.matrix.size // SAMPLED)
        if step == 1:
            return cls(weight, form, 1.0)
        rows = weight.matrix[::step]
        some = Weight(weight.name, rows, Layout(rows.shape))
        of_some = None if form is None else form.rows_of(slice(None, None, step))
        return cls(some, of_some, len(weight.matrix) / len(rows))
