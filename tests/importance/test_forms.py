import numpy as np
import pytest
import torch

from waterfill.errors import UsageError
from waterfill.importance import DiagonalForm, DrawnForm, DrawnQuarticForm, QuarticForm, identity
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


VALUES, FOURTH = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
FORMS = [
    DiagonalForm(VALUES),
    DrawnForm(VALUES, np.abs(FOURTH), 7),
    QuarticForm(VALUES, FOURTH),
    DrawnQuarticForm(VALUES, FOURTH, np.abs(VALUES), 7),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
def test_mu_is_a_share_of_the_mean_of_what_is_regularised(form):
    part = "fourth" if isinstance(form, QuarticForm) else "values"
    before = getattr(form, part).astype(float)
    more = form.regularised(0.3)
    assert type(more) is type(form)
    assert getattr(more, part).dtype == np.float32
    np.testing.assert_allclose(getattr(more, part), before + 0.3 * np.abs(before).mean(), rtol=1e-6, atol=1e-7)
    for name in {"values", "fourth", "standard_errors", "fourth_errors", "count"} - {part}:
        assert getattr(more, name, None) is getattr(form, name, None)
    assert getattr(form.regularised(0), part) is getattr(form, part)
    for mu in (-1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="mu is"):
            form.regularised(mu)


def test_nothing_is_regularised_to_nothing():
    assert DiagonalForm(np.zeros((0, 3), np.float32)).regularised(2).values.shape == (0, 3)


@pytest.mark.parametrize("form", FORMS[2:], ids=lambda form: type(form).__name__)
def test_clipped_forms_are_convex(form):
    clipped = form.clipped()
    assert type(clipped) is type(form)
    np.testing.assert_array_equal(clipped.values, np.where(VALUES > 0, VALUES, 0))
    np.testing.assert_array_equal(clipped.fourth, np.where(FOURTH > 0, FOURTH, 0))
    assert clipped.fourth.dtype == np.float32
