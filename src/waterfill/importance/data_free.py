"""Importances that need no data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from waterfill.importance.forms import COST_UNIT, DiagonalForm, Doubles
from waterfill.importance.weight_excess import weight_excess
from waterfill.models.torch_module import inventory
from waterfill.protocols import Output, Progress, QuadraticForm
from waterfill.records import Weight

LARGEST = 1e30
"""Of an importance: float32 holds it, and its product with any weight of that tensor."""

LEAST_ROW = 1e-3
"""Root mean square of a row relative to that of its tensor, at least."""


class DataFreeEstimator(ABC):
    """Estimators that need no data."""

    @abstractmethod
    def forms(self, weights: Mapping[str, Weight]) -> Mapping[str, QuadraticForm]:
        """Forms of the weights, by name, where nothing else is known; a tensor that has none is unknown."""

    def forms_of(self, model: nn.Module, weights: Mapping[str, Weight]) -> Mapping[str, QuadraticForm]:
        """Forms of the weights of a model, by name.

        Args:
            model: the network.
            weights: by name.
        """
        del model
        return self.forms(weights)

    def estimate(
        self,
        model: nn.Module,
        data: Iterable[Any] | None = None,
        output: Output | None = None,
        *,
        fold_norms: bool = True,
        progress: Progress | None = None,
    ) -> Mapping[str, QuadraticForm]:
        """Give the forms of a model's matrices, by name in its state dict.

        Args:
            model: the network; nothing of it changes.
            data: not used.
            output: not used.
            fold_norms: not used.
            progress: not used.
        """
        del data, output, progress
        return self.forms_of(model, inventory(model, fold_norms=fold_norms).weights)


class _ByWeights(DataFreeEstimator):
    """Estimators that look only at the weights."""

    unit: ClassVar[str] = COST_UNIT

    def forms(self, weights: Mapping[str, Weight]) -> dict[str, DiagonalForm]:
        """One form for every matrix; vectors have none, for nothing is known about them without data."""
        matrices = {name: weight for name, weight in weights.items() if not weight.is_vector}
        values = {
            name: np.full(weight.matrix.shape, self._prices(weight), np.float32) for name, weight in matrices.items()
        }
        return {name: DiagonalForm(each, unit=self.unit) for name, each in values.items()}

    @abstractmethod
    def _prices(self, weight: Weight) -> float | Doubles:
        """Importance of every element of a matrix, or of the elements of every row, [out, 1]."""


@dataclass(frozen=True)
class identity(_ByWeights):
    """`I = 1`: the squared error of the weights themselves, the paper's baseline."""

    unit: ClassVar[str] = "squared weight"

    @property
    def name(self) -> str:
        """`identity`."""
        return "identity"

    def _prices(self, weight: Weight) -> float:  # noqa: ARG002 - the same for all
        return 1.0


@dataclass(frozen=True)
class weight_scale(_ByWeights):
    """`I = rms(W)^-power`, constant in a tensor: between absolute (0) and relative errors (2).

    Networks rescale the outputs of a layer by norms and by the next layer, so that neither the absolute nor the
    relative error of a layer decides alone; docs/decisions.md has the measurements behind the 1.

    Attributes:
        power: 0 weighs absolute errors alike, 2 relative errors.
    """

    power: float = 1.0

    @property
    def name(self) -> str:
        """`weight_scale` with its power."""
        return f"weight_scale({self.power:g})"

    def _prices(self, weight: Weight) -> float:
        power = float(np.square(weight.matrix, dtype=np.float64).mean()) if weight.matrix.size else 0.0
        return min(power ** (-self.power / 2), LARGEST) if power > 0 else 1.0


@dataclass(frozen=True)
class row_scale(_ByWeights):
    """`I = rms(W)^0.5 / rms(row)`: between absolute and relative errors, of the rows of a tensor too.

    The default where there are only weights. A few large rows would take the step away from all others under one price
    for a tensor, where a norm, a gate or a ReLU behind them makes small rows matter as much; see docs/decisions.md.
    Tensors of an unusual size are priced as if they had the usual one, see `weight_excess`.
    """

    @property
    def name(self) -> str:
        """`row_scale`."""
        return "row_scale"

    def _prices(self, weight: Weight) -> float | Doubles:
        matrix = weight.matrix
        sums = np.einsum("oi,oi->o", matrix, matrix, dtype=np.float64, casting="same_kind")
        squares = sums[:, None] / max(1, matrix.shape[1])
        mean = float(squares.mean()) if squares.size else 0.0
        if not mean > 0:
            return 1.0
        rows = np.sqrt(np.maximum(squares, LEAST_ROW**2 * mean))
        usual = weight_excess(weight.matrix) ** -1.5  # prices of a usual size, 1/2, for errors of this one, -2
        found: Doubles = np.minimum(usual * mean**0.25 / rows, LARGEST)
        return found
