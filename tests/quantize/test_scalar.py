import numpy as np
import pytest

from waterfill.codec.rans import HEADER_BYTES
from waterfill.codec.scales import side_bits
from waterfill.codec.symbols import encode, spread_codes
from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import Scalar
from waterfill.reconstruct import reconstruct
from waterfill.records import Layout, Weight


def weight(matrix, shape=None):
    matrix = np.ascontiguousarray(matrix, np.float32)
    return Weight("w", matrix, Layout(shape or matrix.shape))


def gaussian(shape=(200, 200), seed=0):
    return weight(np.random.default_rng(seed).normal(size=shape))


def laplace(shape=(200, 200), seed=0):
    return weight(np.random.default_rng(seed).laplace(size=shape))


def rate(quantized):
    return quantized.bits / quantized.symbols.size


def mean_cost(quantized):
    return quantized.distortion / quantized.symbols.size


def factored(out, width, seed=0, decades=2):
    """Importance that factors over rows and columns; each factor spans some decades."""
    rng = np.random.default_rng(seed)
    rows, columns = (10 ** (decades * rng.uniform(-0.5, 0.5, n)) for n in (out, width))
    return DiagonalForm(np.outer(rows, columns).astype(np.float32))


@pytest.mark.parametrize("form", [None, factored(80, 80)], ids=["no importance", "importance"])
@pytest.mark.parametrize("lmbda", [0.0, 0.11])
def test_the_rate_falls_and_the_distortion_rises_with_the_water_level(form, lmbda):
    some = laplace((80, 80))
    found = [Scalar(lmbda).quantize(some, form, 2.0**level) for level in range(-16, 10, 2)]
    assert (np.diff([item.bits for item in found]) < 0)[:-3].all()
    assert (np.diff([item.bits for item in found]) <= 0).all()
    assert (np.diff([item.distortion for item in found]) > 0)[:-3].all()
    assert (np.diff([item.distortion for item in found]) >= 0).all()


def test_the_rate_falls_as_a_bit_grows_dearer():
    some = laplace()
    found = [Scalar(lmbda).quantize(some, None, 0.02) for lmbda in (0.03, 0.06, 0.11, 0.2, 0.4, 0.8)]
    assert len({item.rule.step for item in found}) == 1
    assert (np.diff([item.bits for item in found]) < 0).all()
    assert (np.diff([item.distortion for item in found]) > 0).all()


@pytest.mark.parametrize("level", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("form", [None, factored(200, 200)], ids=["no importance", "importance"])
def test_at_high_rate_the_mean_cost_is_the_water_level(level, form):
    assert mean_cost(Scalar(lmbda=0.0).quantize(gaussian(), form, level)) == pytest.approx(level, rel=0.1)


@pytest.mark.parametrize(("lmbda", "level"), [(0.0, 0.02), (0.0, 0.005), (0.11, 0.1), (0.11, 0.02), (0.11, 0.005)])
def test_a_gaussian_lies_between_its_bound_and_a_quarter_bit_above(lmbda, level):
    some = gaussian()
    quantized = Scalar(lmbda).quantize(some, None, level)
    bound = 0.5 * np.log2(some.matrix.var() / mean_cost(quantized))
    assert bound <= rate(quantized) <= bound + 0.27


@pytest.mark.parametrize("level", [0.2, 0.05, 0.01, 0.001])
def test_a_laplacian_is_never_below_its_shannon_bound(level):
    some = laplace()
    quantized = Scalar().quantize(some, None, level)
    entropy = np.log2(2 * np.e * np.abs(some.matrix).mean())  # of the Laplacian with this mean magnitude
    bound = entropy - 0.5 * np.log2(2 * np.pi * np.e * mean_cost(quantized))
    assert bound <= rate(quantized) <= bound + 0.27


def test_two_water_levels_an_octave_of_step_apart_are_a_bit_apart():
    fine, coarse = (Scalar(0.0).quantize(gaussian(), None, level) for level in (1e-5, 4e-5))
    assert rate(fine) - rate(coarse) == pytest.approx(1, abs=0.02)


def test_knowing_an_importance_that_factors_saves_bits():
    some, form = gaussian(), factored(200, 200)
    known = Scalar().quantize(some, form, 0.01)
    assert known.rule.rows is not None
    assert known.rule.channels is not None
    levels = 2.0 ** np.arange(-14, 2)
    found = [Scalar().quantize(some, None, level) for level in levels]
    costs = [form.cost(some.matrix - w_hat(item, some)) for item in found]
    ignored = np.interp(np.log(known.distortion), np.log(costs), [rate(item) for item in found])
    assert costs[0] < known.distortion < costs[-1]
    assert rate(known) <= ignored - 0.3


def test_importance_that_is_the_same_everywhere_needs_no_scales():
    some = gaussian((60, 60))
    form = DiagonalForm(np.full((60, 60), 3, np.float32))
    known, plain = Scalar().quantize(some, form, 0.03), Scalar().quantize(some, None, 0.01)
    assert known.rule.rows is known.rule.channels is known.rule.taps is None
    assert (known.symbols == plain.symbols).all()
    assert known.distortion == pytest.approx(3 * plain.distortion)


def test_importance_of_the_taps_goes_into_the_steps():
    rng = np.random.default_rng(0)
    some = weight(rng.normal(size=(40, 20 * 9)), (40, 20, 3, 3))
    taps = 10.0 ** np.arange(-2, 2.5, 0.5)
    form = DiagonalForm(np.tile(taps, (40, 20)).astype(np.float32))
    rule = Scalar().quantize(some, form, 0.01).rule
    assert rule.rows is rule.channels is None
    assert np.diff(rule.taps) == pytest.approx(-2 * np.log2(np.sqrt(10)), abs=1)


@pytest.mark.parametrize(("share_lost", "most"), [(0.3, 0.15), (0.03, 0.2), (0.003, 0.22)])
def test_a_sparse_matrix_costs_little(share_lost, most):
    rng = np.random.default_rng(0)
    matrix = np.where(rng.random((300, 300)) < 0.01, rng.laplace(size=(300, 300)), 0)
    quantized = Scalar().quantize(weight(matrix), None, share_lost * np.square(matrix).mean())
    assert rate(quantized) < most
    assert (quantized.symbols[matrix == 0] == 0).all()


def test_rows_of_other_scales_cost_what_they_cost_alone():
    matrix = gaussian().matrix * 2.0 ** np.repeat([0, 3], 100)[:, None].astype(np.float32)
    both = Scalar().quantize(weight(matrix), None, 0.01)
    alone = [Scalar().quantize(weight(part), None, 0.01).bits for part in (matrix[:100], matrix[100:])]
    assert both.spread.rows is not None
    assert both.bits <= 1.01 * sum(alone) + 200


def test_weights_are_pruned_as_the_level_rises():
    some = laplace()
    zeros = [(Scalar().quantize(some, None, 4.0**level).symbols == 0).mean() for level in range(-8, 6)]
    assert (np.diff(zeros) >= 0).all()
    assert zeros[0] < 0.01
    assert zeros[-1] == 1


def test_fitting_again_pays():
    some = laplace()
    once, often = (Scalar(rounds=n).quantize(some, None, 0.1) for n in (1, 3))

    def lagrangian(item):
        return item.distortion / 1.2 + 0.11 * item.bits

    assert lagrangian(often) < lagrangian(once) < lagrangian(Scalar(lmbda=0.0).quantize(some, None, 0.1))


def w_hat(quantized, weight):
    values = reconstruct(quantized.symbols.reshape(-1), quantized.rule, weight.layout)
    return values.reshape(weight.matrix.shape)


def test_levels_move_to_the_centroids():
    some = laplace()
    quantized = Scalar().quantize(some, None, 0.1)
    assert quantized.rule.shrink[0] != 0
    values = w_hat(quantized, some)
    step = 2.0 ** (quantized.rule.step / 64)
    for k in (1, -1, 2, -2):
        inside = quantized.symbols == k
        assert values[inside].mean() == pytest.approx(some.matrix[inside].mean(), abs=0.02 * step)


@pytest.mark.parametrize("level", [1.0, 0.1, 0.01])
def test_bits_are_those_of_the_stream_also_where_wide_rows_leave_out_low_bits(level):
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(128, 256)) * np.exp2(rng.uniform(-3, 3, size=(128, 1)))).astype(np.float32)
    wide = weight(matrix)
    quantized = Scalar().quantize(wide, factored(128, 256), level)
    codes = spread_codes(quantized.spread, wide.layout, 0, matrix.size)
    stream = len(encode(quantized.symbols.reshape(-1), codes)) - HEADER_BYTES
    spread, rule = quantized.spread, quantized.rule
    side = side_bits(rule.scales) + side_bits(spread.scales, rule.scales)
    assert quantized.bits == pytest.approx(8 * stream + side, rel=2e-3)
