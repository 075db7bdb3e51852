"""The importance of a module without data: what errors do to its outputs on random inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from waterfill.errors import UnsupportedModelError
from waterfill.importance.data_free import LARGEST, DataFreeEstimator, row_scale
from waterfill.importance.forms import DiagonalForm, Doubles
from waterfill.importance.input_products import InputProducts, input_products
from waterfill.importance.weight_excess import weight_excess
from waterfill.models.batches import call
from waterfill.models.cloning import clone
from waterfill.models.norm_statistics import matched_inputs, remembering_norms
from waterfill.models.trial_inputs import RandomInput, input_of, is_taken, parameters_with_gradients, quiet
from waterfill.protocols import QuadraticForm
from waterfill.records import Weight

SCALES = (0.05, 0.3, 1.0, 3.0)
"""Standard deviations of real inputs, for nobody says which is right; all count alike."""

SIGNS = 4
"""Random signs of the outputs for each batch."""

MORE = 31
"""Further batches of a scale, at most, where layers have few positions for their columns."""

POWER = 0.6
"""To which the sensitivities are taken: random inputs are not real ones, and errors are not small."""

LEAST_ROW, LEAST_COLUMN = 0.02, 0.05
"""Sensitivities of rows and columns relative to their mean, at least: other inputs may need what these do not."""

LEAST_TENSOR = 1e-4
"""Sensitivity of a tensor relative to the mean of all, at least."""

HIGHEST_SHIFT = 600.0
"""Natural logarithm of a factor between prices, at most."""

LARGEST_MODEL = 1 << 27
"""Parameters of a model that is run without data, at most: a copy of it is made."""


@dataclass(frozen=True)
class random_inputs(DataFreeEstimator):
    """`I = (r_i c_j)^0.6`: mean squared gradients of the outputs on random inputs, by rows and columns.

    Errors in two columns of a row go together as the inputs of the layer do there, see `InputProducts.form`.

    The default without data. The inputs are found by trying what the first layers allow: random integers for an
    embedding, noise of several scales and smoothness for others. Where batch norms remember statistics of training, the
    inputs are moved until they show these. A tensor that random inputs say nothing of is priced as by `row_scale`, and
    so are all where no input is found, or where there are only weights.

    Source: squared gradients under random signs are the diagonal of Eq. 5 of the paper.

    Attributes:
        seed: of what is drawn.
    """

    seed: int = 0

    @property
    def name(self) -> str:
        """`random_inputs`."""
        return "random_inputs"

    def forms(self, weights: Mapping[str, Weight]) -> dict[str, DiagonalForm]:
        """Give the forms where there are only weights: those of `row_scale`."""
        return row_scale().forms(weights)

    def forms_of(self, model: nn.Module, weights: Mapping[str, Weight]) -> dict[str, QuadraticForm]:
        """Forms of the weights of a model, a copy of which is run on what it takes."""
        return self.trial(model).forms(weights)

    def trial(self, model: nn.Module) -> NoiseTrial:
        """Find what a copy of the module takes.

        Args:
            model: the network, which is not run itself.
        """
        copy = _copy(model)
        return NoiseTrial(copy, None if copy is None else input_of(copy), self.seed)


@dataclass(frozen=True, eq=False)
class NoiseTrial:
    """A module that may be run on noise.

    Attributes:
        model: a copy; None where there is none.
        found: what it takes; None where that is not known.
        seed: of what is drawn.
    """

    model: nn.Module | None
    found: RandomInput | None
    seed: int

    @property
    def note(self) -> str:
        """One sentence about what the prices go by."""
        if self.found is None:
            return UNKNOWN_INPUT
        return f"No data were given: errors are priced by what they do to the outputs on random inputs {self.found}."

    def forms(self, weights: Mapping[str, Weight]) -> dict[str, QuadraticForm]:
        """Give the forms of the module's matrices.

        Args:
            weights: by name.
        """
        plain = row_scale().forms(weights)
        if self.model is None or self.found is None:
            return {**plain}
        squares, products = self._measured(self.model, self.found, weights)
        excesses = {name: weight_excess(weights[name].matrix) for name in plain}
        prices = _prices(squares, plain, excesses)
        return {**prices, **{name: each.form(prices[name]) for name, each in products.items()}}

    def _measured(
        self, model: nn.Module, found: RandomInput, weights: Mapping[str, Weight]
    ) -> tuple[dict[str, Doubles], dict[str, InputProducts]]:
        """Mean squared gradients [out, in] of the matrices, and products of their inputs.

        Each batch counts by its share in a relative error. Layers that read a whole sample have no products: those
        would be of the noise alone.
        """
        total: dict[str, Doubles] = {}
        products: dict[str, InputProducts] = {}
        for number, (inputs, more) in enumerate(self._batches(model, found)):
            squares = _squared_gradients(model, inputs, weights, self.seed + number)
            scale = sum(_cost_of_zero(weights[name], each) for name, each in squares.items())
            if not (math.isfinite(scale) and scale > 0):
                continue
            total = {name: total.get(name, 0) + each / scale for name, each in squares.items()}
            for name, each in input_products(model, chain([inputs], more), self.seed + number).items():
                share = float(squares[name].sum()) / scale if name in squares else 0.0
                if share > 0 and each.products.shape[1:] != (math.prod(found.shape),) * 2:
                    here = each.scaled(share / each.trace)
                    products[name] = products[name].plus(here) if name in products else here
        return total, products

    def _batches(self, model: nn.Module, found: RandomInput) -> Iterator[tuple[Tensor, Iterator[Tensor]]]:
        """Random inputs of several scales, or such that fit the norms, and more like them."""
        generator = torch.Generator().manual_seed(self.seed)
        if remembering_norms(model) and not found.values:
            yield matched_inputs(model, found.draw(generator)), iter(())
            return
        others = torch.Generator().manual_seed(self.seed + 1)
        for scale in SCALES:
            inputs = found.draw(generator, scale)
            if is_taken(model, inputs):
                yield inputs, (found.draw(others, scale) for _ in range(MORE))


UNKNOWN_INPUT = (
    "No data were given, and no random inputs were found that the model takes: errors are priced by the sizes of rows "
    "and tensors. Give a few batches for smaller files."
)
"""Said where the sizes of the weights are all that is known of a module."""


def _copy(model: nn.Module) -> nn.Module | None:
    """A copy that can be run and has gradients; None where there is none."""
    parameters = list(model.parameters())
    if not 0 < sum(each.numel() for each in parameters) <= LARGEST_MODEL:
        return None
    try:
        found = clone(model)
    except UnsupportedModelError:
        return None
    parameters_with_gradients(found)
    return found


def _squared_gradients(
    model: nn.Module, inputs: Tensor, weights: Mapping[str, Weight], seed: int
) -> dict[str, Doubles]:
    """Mean squared gradients of the outputs for random signs, by name; tensors without any are left out.

    Every output has a sign of its own, so that products of different outputs and samples vanish in the mean.
    """
    generator = torch.Generator().manual_seed(seed)
    known = {name: each for name, each in parameters_with_gradients(model).items() if name in weights}
    matrices = {name: each for name, each in known.items() if not weights[name].is_vector}
    found: dict[str, Tensor] = {}
    if not matrices:
        return {}
    with quiet(model):
        output = call(model, inputs)
        for number in range(SIGNS):
            signs = 2.0 * torch.randint(0, 2, output.shape, generator=generator).to(output) - 1
            gradients = torch.autograd.grad(
                output, list(matrices.values()), signs, retain_graph=number < SIGNS - 1, allow_unused=True
            )
            for name, gradient in zip(matrices, gradients, strict=True):
                if gradient is not None:
                    squares = gradient.double().square()
                    found[name] = found[name] + squares if name in found else squares
    return {name: weights[name].layout.to_matrix(each.cpu().numpy()) for name, each in found.items()}


def _prices(
    squares: Mapping[str, Doubles], plain: Mapping[str, DiagonalForm], excesses: Mapping[str, float]
) -> dict[str, DiagonalForm]:
    """Prices by rows and columns to the power; those that are not known go by the sizes of the weights.

    Tensors are compared, and taken to the power, as if their weights had the usual size.

    Args:
        squares: mean squared gradients [out, in], by name.
        plain: prices by the sizes of the weights.
        excesses: of the weights over the usual size.
    """
    squares = {name: each * excesses[name] ** 2 for name, each in squares.items()}
    usual = {name: form.values.astype(np.float64) * excesses[name] ** 2 for name, form in plain.items()}
    count = sum(each.size for each in squares.values())
    least = LEAST_TENSOR * sum(float(each.sum()) for each in squares.values()) / max(1, count)
    known = {name: _outer(each, least) ** POWER for name, each in squares.items() if each.any()}
    logs = [(each.size, _mean_log(each) - _mean_log(usual[name])) for name, each in known.items()]
    shift = sum(size * log for size, log in logs) / max(1, sum(size for size, _ in logs))
    factor = math.exp(min(shift, HIGHEST_SHIFT))
    found = {}
    for name, each in usual.items():
        values: Doubles = (known[name] if name in known else each * factor) / excesses[name] ** 2
        found[name] = DiagonalForm(np.minimum(values, LARGEST).astype(np.float32))
    return found


def _cost_of_zero(weight: Weight, squares: Doubles) -> float:
    """What it costs to set a matrix to zero."""
    return float((squares * np.square(weight.matrix, dtype=np.float64)).sum())


def _mean_log(values: NDArray[Any]) -> float:
    return float(np.log(values.mean(dtype=np.float64))) if values.size else 0.0


def _outer(squares: Doubles, least: float) -> Doubles:
    """Products of a mean over rows and one over columns, without what the draws leave open about single weights."""
    mean = squares.mean()
    rows = np.maximum(squares.mean(1, keepdims=True), LEAST_ROW * mean)
    columns = np.maximum(squares.mean(0, keepdims=True), LEAST_COLUMN * mean)
    found: Doubles = rows * (columns / columns.mean()) * max(1.0, least / mean)
    return found
