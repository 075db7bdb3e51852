"""Correlations of the inputs of layers, as far as random inputs show those of real ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from waterfill.importance.factored import SHRINKAGE, KroneckerForm
from waterfill.importance.forms import DiagonalForm, Doubles
from waterfill.importance.kronecker import KroneckerState, kronecker
from waterfill.models.trial_inputs import quiet

BELIEVED = 0.7
"""Share of a correlation on random inputs that is taken for one on real inputs."""

MOST_COLUMNS = 4096
"""Columns of a matrix whose products are all kept, at most: 128 MiB."""

POSITIONS = 2.0
"""Positions for each column that are enough."""


@dataclass(frozen=True, eq=False)
class InputProducts:
    """Mean products of the inputs of a layer.

    Attributes:
        products: `x x^T`, float64 [groups, in, in].
        positions: over how many.
        device: where they were summed, and are factored; None for the processor.
    """

    products: Doubles
    positions: float
    device: str | None = None

    @property
    def trace(self) -> float:
        """Mean over groups."""
        return float(np.trace(self.products, axis1=1, axis2=2).mean())

    def scaled(self, factor: float) -> InputProducts:
        """Multiply the products.

        Args:
            factor: not below 0.
        """
        return InputProducts(factor * self.products, self.positions, self.device)

    def plus(self, other: InputProducts) -> InputProducts:
        """Add products at other positions."""
        return InputProducts(self.products + other.products, self.positions + other.positions, self.device)

    def form(self, prices: DiagonalForm) -> KroneckerForm:
        """Give cross terms to a form by rows and columns, whose diagonal stays.

        Correlations are shrunk twice: for random inputs are not real ones, and as `KroneckerForm.shrunk` has it where
        there are fewer positions than columns.

        Args:
            prices: products of a number for each row and one for each column, [out, in].
        """
        inputs = self.products.shape[1]
        values = prices.values.astype(np.float64)
        rows = values.mean(1)
        columns = np.sqrt(values.mean(0) / values.mean())
        diagonals = np.diagonal(self.products, axis1=1, axis2=2)
        roots = np.sqrt(np.where(diagonals > 0, diagonals, 1.0))
        share = BELIEVED / (1 + SHRINKAGE * inputs / max(1.0, self.positions))
        found = share * self.products / (roots[:, :, None] * roots[:, None, :])
        found[:, range(inputs), range(inputs)] = 1.0
        factors = _rounded(rows), _rounded(found * columns[:, None] * columns)
        return KroneckerForm(*factors, device=self.device)


def _rounded(values: Doubles) -> Doubles:
    """Values in single precision: the last bits of sums in double precision go by the number of threads."""
    return values.astype(np.float32).astype(np.float64)


def input_products(model: nn.Module, batches: Iterable[Tensor], seed: int) -> dict[str, InputProducts]:
    """Multiply the inputs of every layer with themselves, by the name of its matrix.

    Args:
        model: the network, a copy.
        batches: inputs that it takes, the first of which is read, and others while positions are few.
        seed: of the signals that tell which positions the outputs depend on.

    Returns:
        Products of finite inputs; matrices that are not those of one linear map have none, nor has any where gradients
        cannot be had.
    """
    found: dict[str, InputProducts] = {}
    try:
        with quiet(model):
            state = kronecker(draws=1, seed=seed, largest=MOST_COLUMNS).begin(model, "values")
            for inputs in batches:
                state = state.update(inputs)
                found = _products(state)
                if all(each.positions >= POSITIONS * each.products.shape[1] for each in found.values()):
                    break
    except Exception:  # noqa: BLE001 - whatever a stranger's module raises says that nothing is known of its layers
        return {}
    return {name: each for name, each in found.items() if 0 < each.trace < np.inf}


def _products(state: KroneckerState) -> dict[str, InputProducts]:
    """Those of the matrices that have cross terms."""
    return {
        name: InputProducts(form.columns, form.positions, form.device)
        for name, form in state.forms().items()
        if isinstance(form, KroneckerForm) and form.columns.ndim == 3
    }
