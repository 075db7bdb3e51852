"""Importances against BackPACK, an independent implementation, on networks that both support."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from waterfill.importance import gradient, hessian, kl

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its imports
    backpack = pytest.importorskip("backpack", reason="BackPACK is not installed (make test installs it)")
    from backpack import extensions

CLASSES = 5


def network(activation):
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 4, 3, padding=1, stride=2)
    head = (nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 8), activation(), nn.Linear(8, CLASSES))
    return nn.Sequential(convolution, activation(), *head)


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 2, 8, 8, generator=generator), torch.arange(7) % CLASSES


def theirs(model, extension, attribute):
    """What BackPACK says about the mean cross-entropy, by parameter."""
    x, y = batch()
    extended, loss = backpack.extend(model), backpack.extend(nn.CrossEntropyLoss())
    with warnings.catch_warnings(), backpack.backpack(extension):
        warnings.simplefilter("ignore")  # of hooks
        loss(extended(x), y).backward()
    return {name: getattr(parameter, attribute) for name, parameter in extended.named_parameters()}


def close(forms, expected):
    assert forms.keys() == expected.keys()
    for name, form in forms.items():
        found = expected[name].detach().numpy()
        np.testing.assert_allclose(
            form.diagonal().reshape(-1), found.reshape(-1), rtol=2e-4, atol=1e-6 * np.abs(found).max(), err_msg=name
        )


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
def test_kl_is_the_generalized_gauss_newton_diagonal(activation):
    expected = theirs(network(activation), extensions.DiagGGNExact(), "diag_ggn_exact")
    close(kl().estimate(network(activation), [batch()]), expected)


def test_gradient_is_the_mean_square_of_single_gradients():
    singles = theirs(network(nn.Sigmoid), extensions.BatchGrad(), "grad_batch")
    expected = {name: 7 * each.square().sum(0) for name, each in singles.items()}  # theirs are those of the mean loss
    close(gradient().estimate(network(nn.Sigmoid), [batch()]), expected)


def test_hessian_of_a_relu_network_is_its_hessian_diagonal():
    expected = theirs(network(nn.ReLU), extensions.DiagHessian(), "diag_h")
    close(hessian().estimate(network(nn.ReLU), [batch()]), expected)


def test_hessian_of_a_curved_network_is_its_hessian_diagonal_within_the_noise():
    expected = theirs(network(nn.Sigmoid), extensions.DiagHessian(), "diag_h")
    forms = hessian(draws=256).estimate(network(nn.Sigmoid), [batch()])
    for name, form in forms.items():
        found = expected[name].detach().numpy().reshape(form.values.shape)
        deviation = np.abs(form.values - found) / (form.standard_errors + 1e-5 * np.abs(found).max())
        assert deviation.max() < 5 and np.sqrt(np.square(deviation).mean()) < 1.5, name
