import numpy as np
import pytest
import torch

from waterfill.errors import UsageError
from waterfill.importance import DiagonalForm, QuarticForm, identity
from waterfill.protocols import QuadraticForm


def test_cost_is_the_weighted_sum_of_squares():
    values, error = np.random.default_rng(0).random((2, 3, 4), np.float32)
    form: QuadraticForm = DiagonalForm(values)
    dense = np.diag(values.ravel().astype(float))
    e = error.ravel().astype(float)
    assert form.cost(error) == pytest.approx(e @ dense @ e, rel=1e-12)
    assert form.diagonal() is values


def test_cost_is_summed_in_double_precision():
    form = DiagonalForm(np.ones((1, 2**20), np.float32))
    assert form.cost(np.full((1, 2**20), 1e-3, np.float32)) == pytest.approx(
        2**20 * float(np.float32(1e-3)) ** 2, rel=1e-12
    )


def test_an_error_of_another_shape_is_refused():
    with pytest.raises(UsageError, match=r"\[2\].*\[1, 2\].*normal form"):
        DiagonalForm(np.ones((1, 2), np.float32)).cost(np.ones(2, np.float32))


def test_identity_needs_no_data():
    forms = identity().estimate(torch.nn.Conv2d(2, 3, 3), None)
    assert forms["weight"].values.shape == (3, 18)
    assert np.all(forms["weight"].values == 1)


def test_quartic_forms_price_squares_and_fourth_powers():
    values, fourth, error = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    form: QuadraticForm = QuarticForm(values, fourth)
    e = error.astype(float)
    assert form.cost(error) == pytest.approx((values * e**2 + fourth * e**4).sum(), rel=1e-12)
    assert form.diagonal() is values
    assert form.quartic() is fourth
    with pytest.raises(UsageError, match=r"\[2\].*\[4, 5\].*normal form"):
        form.cost(np.ones(2, np.float32))
