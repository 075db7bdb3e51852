"""Prices of tensors that nothing reaches: never zero, for the next user may read what this one does not."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from waterfill.importance import COST_UNIT, UnfactoredForm
from waterfill.importance.weight_excess import weight_excess
from waterfill.protocols import QuadraticForm
from waterfill.records import Weight

UNREACHED = "does not reach the output that was read"
"""Why nothing is known of a tensor of a module on which the output does not depend."""

LIKE_THE_LEAST = "priced like the least important of its kind"
"""How a matrix is priced that nothing reaches, for reasons."""


class LeastPrices:
    """The least mean price of an error among the matrices of a model, by their shape.

    Prices are compared as those of weights of a usual size, see `weight_excess`.
    """

    def __init__(self) -> None:
        self._least: dict[tuple[int, ...], float] = {}
        self._like: QuadraticForm | None = None

    def note(self, weight: Weight, form: QuadraticForm) -> None:
        """Take in a tensor whose price is known; vectors and prices of zero do not count."""
        self._like = self._like or form
        mean = 0.0 if weight.is_vector else float(form.diagonal().mean()) * weight_excess(weight.matrix) ** 2
        if mean > 0:
            shape = weight.matrix.shape
            self._least[shape] = min(mean, self._least.get(shape, mean))

    def form(self, weight: Weight, reason: str) -> UnfactoredForm:
        """Price a matrix like the least important of its shape, or of all where there is none of its shape.

        Args:
            weight: the matrix.
            reason: why nothing else is known of it.
        """
        usual = self._least.get(weight.matrix.shape, min(self._least.values(), default=1.0))
        least = usual / weight_excess(weight.matrix) ** 2
        factor, unit = (1.0, COST_UNIT) if self._like is None else (self._like.factor, self._like.unit)
        return UnfactoredForm(np.full(weight.matrix.shape, least, np.float32), reason, factor=factor, unit=unit)


def unreached(weights: Mapping[str, Weight], forms: Mapping[str, QuadraticForm]) -> list[str]:
    """Names of the tensors whose errors cost nothing by their forms."""
    known = {name: form for name, form in forms.items() if name in weights}
    return [name for name, form in known.items() if weights[name].matrix.any() and not form.diagonal().any()]


def priced_like_the_least(
    weights: Mapping[str, Weight], forms: Mapping[str, QuadraticForm], names: Collection[str]
) -> tuple[dict[str, QuadraticForm], dict[str, str]]:
    """Give other forms to some tensors: matrices like the least important of their kind, vectors none.

    Args:
        weights: of the model, by name.
        forms: what errors cost, by name.
        names: of the tensors that nothing reaches.

    Returns:
        The forms, and the reasons of those tensors, by name.
    """
    prices, found = LeastPrices(), {name: form for name, form in forms.items() if name not in names}
    for name, form in found.items():
        if name in weights:
            prices.note(weights[name], form)
    reasons = {}
    for name in names:
        if weights[name].is_vector:
            reasons[name] = f"{UNREACHED}: a short floating-point number"
        else:
            reasons[name] = f"{UNREACHED}: {LIKE_THE_LEAST}"
            found[name] = prices.form(weights[name], UNREACHED)
    return found, reasons
