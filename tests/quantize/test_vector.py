import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import Scalar, Vector
from waterfill.reconstruct import reconstruct
from waterfill.records import Layout, Relative, Uniform, Weight

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def vector(values):
    values = np.asarray(values, np.float32)
    return Weight("v", values.reshape(1, -1), Layout(values.shape))


def w_hat(quantized, weight):
    return reconstruct(quantized.symbols.reshape(-1), quantized.rule, weight.layout)


@given(hnp.arrays(np.float32, st.integers(1, 30), elements=floats), st.floats(-60, 20))
@settings(max_examples=200, deadline=None)
def test_without_importance_every_value_keeps_its_sign_and_its_relative_precision(values, level):
    weight = vector(values)
    quantized = Vector().quantize(weight, None, 2.0**level)
    assert isinstance(quantized.rule, Relative)
    assert 4 <= quantized.rule.mantissa <= 23
    found = w_hat(quantized, weight).astype(np.float64)
    assert (np.signbit(found) == np.signbit(values)).all()
    normal = np.abs(values) >= 2.0**-126
    relative = np.abs(found / np.where(normal, values, 1) - 1)[normal]
    top = np.abs(values)[normal] > 3.2e38  # the largest patterns are not rounded up to infinity
    assert (relative <= 2.0 ** -(quantized.rule.mantissa + 1 - top)).all()
    assert (np.abs(found - values)[~normal] <= 2.0 ** -(127 + quantized.rule.mantissa)).all()


@pytest.mark.parametrize("scale", [2.0**-127, 2.0**-138, 2.0**-148])
def test_without_importance_subnormal_numbers_are_no_zeros(scale):
    weight = vector(scale * np.array([1.0, -1.5, 2.0]))
    found = w_hat(Vector().quantize(weight, None, 1e9), weight)
    assert np.abs(found - weight.matrix).max() <= max(np.abs(weight.matrix).max() / 32, 2.0**-149)


def test_the_mantissa_follows_the_water_level():
    weight = vector(np.random.default_rng(0).normal(size=50))
    bits = [Vector(power=3.0).quantize(weight, None, 3.0 * 4.0**-n).rule.mantissa for n in range(30)]
    assert bits == [min(max(n + 2, 4), 22) for n in range(30)]
    positive = vector(np.abs(weight.matrix[0]))
    assert Vector().quantize(positive, None, 1e-30).rule.mantissa == 23


def test_importance_zero_everywhere_is_unknown_importance():
    weight = vector([1.0, 2.0, 3.0])
    quantized = Vector().quantize(weight, DiagonalForm(np.zeros((1, 3), np.float32)), 0.01)
    assert isinstance(quantized.rule, Relative)
    assert quantized.distortion == 0


def test_a_known_importance_gives_steps_finer_than_a_matrix_has():
    rng = np.random.default_rng(0)
    weight = vector(rng.normal(size=4000))
    form = DiagonalForm(rng.gamma(1.0, 1.0, (1, 4000)).astype(np.float32))
    for fineness in (1.0, 4.0, 16.0):
        quantized = Vector(fineness=fineness).quantize(weight, form, 1e-3)
        assert isinstance(quantized.rule, Uniform)
        assert quantized.distortion / 4000 == pytest.approx(1e-3 / fineness**2, rel=0.1)
    matrix = Scalar(lmbda=0.0).quantize(weight, DiagonalForm(np.full((1, 4000), form.values.mean())), 1e-3)
    assert Vector(fineness=1.0).quantize(weight, form, 1e-3).rule.step == matrix.rule.step


def test_the_rate_falls_and_the_distortion_rises_with_the_water_level():
    weight = vector(np.random.default_rng(0).normal(size=500))
    form = DiagonalForm(np.ones((1, 500), np.float32))
    for some in (None, form):
        found = [Vector().quantize(weight, some, 4.0**level) for level in range(-12, 3)]
        assert (np.diff([item.bits for item in found]) <= 0).all()
        assert (np.diff([item.distortion for item in found]) >= 0).all()
        assert found[0].bits > 2 * found[-1].bits


def test_values_around_another_number_than_zero_cost_what_their_spread_costs():
    noise = np.random.default_rng(0).normal(size=2000)
    form = DiagonalForm(np.ones((1, 2000), np.float32))
    near, far = (Vector().quantize(vector(noise + mean), form, 0.01) for mean in (0, 100))
    assert abs(near.rule.offset) <= 1
    assert far.rule.offset > 1000
    assert far.bits == pytest.approx(near.bits, rel=0.01)


def test_a_step_is_never_finer_than_the_largest_value_needs():
    form = DiagonalForm(np.ones((1, 3), np.float32))
    quantized = Vector().quantize(vector([1.0, 0.5, -0.25]), form, 1e-40)
    assert quantized.rule.step == -64 * 20
    assert quantized.distortion == 0


@pytest.mark.parametrize("rate", [20, 30, 40])
def test_zeros_among_fine_values_still_fit_into_symbols(rate):
    for values in ([0, 1, 1, 1, -1], [0, -1e30, 1e30, 1e30], [0, 0, 1e-30, 1e38], [-0.0, 0.0, 3e38, -3e38, 3e38]):
        weight = vector(values)
        found = w_hat(Vector().quantize(weight, None, 4.0**-rate), weight)
        assert np.allclose(found, weight.matrix[0], rtol=2.0**-20, atol=0)
