"""Sums of squared gradients: what an estimator has seen so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from waterfill.errors import CalibrationError, UsageError
from waterfill.importance.forms import COST_UNIT, DiagonalForm
from waterfill.records import Layout


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over samples; they can be merged in any order.

    Attributes:
        sums: squared gradients, by name, float64 of the shape of the tensor, on its device; or several sums of each
            tensor, [kinds, *shape], of which `forms` makes no forms.
        count: number of predictions or samples that the sums are over.
    """

    sums: Mapping[str, Tensor]
    count: int = 0

    def merge(self, other: Moments) -> Moments:
        """Add what another one has seen.

        Raises:
            UsageError: they are about different tensors.
        """
        if self.sums.keys() != other.sums.keys():
            raise UsageError(
                f"Moments of {len(self.sums)} tensors cannot be merged with those of {len(other.sums)} others; "
                "expected the same names. Merge states of the same model."
            )
        return Moments({name: total + other.sums[name] for name, total in self.sums.items()}, self.count + other.count)

    def absorb(self, other: Moments) -> Moments:
        """Add what another one has seen, which is of no use after that; as `merge`."""
        return self.merge(other)

    def on_host(self) -> Moments:
        """The same sums on the CPU, for other processes."""
        return Moments({name: total.cpu() for name, total in self.sums.items()}, self.count)

    def forms(
        self, layouts: Mapping[str, Layout], *, factor: float = 1.0, unit: str = COST_UNIT
    ) -> dict[str, DiagonalForm]:
        """Means as diagonal forms in normal form.

        Args:
            layouts: how each tensor is read as a matrix.
            factor: of the forms.
            unit: of the forms.

        Raises:
            CalibrationError: nothing was seen.
        """
        self.check()
        means = {name: (total.cpu().numpy() / self.count).astype(np.float32) for name, total in self.sums.items()}
        return {
            name: DiagonalForm(layouts[name].to_matrix(mean), factor=factor, unit=unit) for name, mean in means.items()
        }

    def check(self) -> None:
        """Check that there is something to take a mean of.

        Raises:
            CalibrationError: nothing was seen.
        """
        if self.count == 0:
            raise CalibrationError(
                "No prediction was seen; expected at least one. Give batches with samples, not all of them ignored."
            )
