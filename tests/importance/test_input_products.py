"""Correlations of the inputs of layers on random inputs: which forms get them, and how far they are believed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import waterfill
from waterfill.importance import DiagonalForm, random_inputs
from waterfill.importance.input_products import BELIEVED, InputProducts, input_products
from waterfill.quantize import Feedback, Trellis

ALIKE = np.array([[[1.0, 1.0], [1.0, 1.0]]])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(6, 8, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0]


class Elementwise(nn.Module):
    """A layer, and a matrix that is not one of a layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.rand(4, 4))

    def forward(self, x):
        return self.layer(x) @ torch.tanh(self.scale)


class Refusing(nn.Linear):
    def forward(self, _):
        raise SystemError("not like this")


def correlations(form):
    roots = np.sqrt(np.diagonal(form.columns, axis1=1, axis2=2))
    return form.columns / (roots[:, :, None] * roots[:, None, :])


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))


def deep():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (perceptron, {"2.weight"}),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, groups=1), nn.AdaptiveAvgPool2d(1)), {"0.weight"}),
        (lambda: nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.AdaptiveAvgPool1d(1)), {"0.weight"}),
        (Recurrent, {"cell.weight_ih_l0", "cell.weight_hh_l0"}),
        (lambda: nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 11)), {"1.weight"}),
        (lambda: nn.Sequential(nn.Linear(5, 6), Elementwise()), {"1.layer.weight"}),
    ],
)
def test_matrices_of_layers_have_cross_terms(model, names):
    forms = random_inputs().estimate(model())
    assert {name for name, form in forms.items() if form.has_cross_terms} == names
    for form in forms.values():
        assert (form.diagonal() > 0).all()


def test_prices_of_single_errors_stay():
    prices = DiagonalForm(np.outer([1.0, 4.0, 2.0], [3.0, 5.0]).astype(np.float32))
    form = InputProducts(np.array([[[9.0, 2.0], [2.0, 1.0]]]), 1e9).form(prices)
    np.testing.assert_allclose(form.diagonal(), prices.values, rtol=1e-6)


@pytest.mark.parametrize(("positions", "expected"), [(1e9, BELIEVED), (2.0, BELIEVED / 1.3), (0.2, BELIEVED / 1.6)])
def test_correlations_of_few_positions_are_believed_less(positions, expected):
    form = InputProducts(ALIKE, positions).form(DiagonalForm(np.ones((3, 2), np.float32)))
    np.testing.assert_allclose(form.columns[0, 0, 1], expected)


def test_an_input_that_is_always_zero_goes_with_no_other():
    products = np.zeros((1, 2, 2))
    products[0, 0, 0] = 4.0
    form = InputProducts(products, 100.0).form(DiagonalForm(np.ones((3, 2), np.float32)))
    np.testing.assert_allclose(form.columns, np.eye(2)[None])


def test_positions_are_added_until_there_are_enough():
    model, read = perceptron(), []
    batches = (read.append(k) or torch.randn(8, 20) for k in range(40))
    assert input_products(model, batches, 0)["2.weight"].positions >= 2 * 30 * 0.9
    assert 8 <= len(read) < 40


def test_hidden_units_that_are_alike_go_together_and_opposite_ones_do_not():
    model = perceptron()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
        model[0].weight[2], model[0].bias[2] = -model[0].weight[0], -model[0].bias[0]
    found = correlations(random_inputs().estimate(model)["2.weight"])[0]
    assert found[0, 1] > 0.95 * found[0, 1:].max() and found[0, 1] > 0.4
    assert abs(found[0, 2]) < 1e-6


def test_nothing_is_known_of_a_module_that_cannot_be_watched():
    model = Refusing(6, 4)
    assert input_products(model, [torch.randn(8, 6)], 0) == {}


def test_feedback_on_random_inputs_lowers_the_error_on_others(tmp_path):
    model = deep()
    x = torch.randn(256, 20, generator=torch.Generator().manual_seed(5))
    error = {}
    for quantizer in (Feedback(8), Trellis(8)):
        result = waterfill.compress(model, rate=5, effort="fast", quantizers=[quantizer])
        result.save(tmp_path / "m.wf")
        copy = waterfill.load(tmp_path / "m.wf", into=deep())
        with torch.no_grad():
            error[type(quantizer)] = float((copy(x) - model(x)).square().mean())
    assert error[Feedback] < 0.9 * error[Trellis]
