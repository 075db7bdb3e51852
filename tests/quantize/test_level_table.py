"""Magnitudes for which a file has no steps: levels in a table, within the step that is asked for."""

import numpy as np
import pytest

import conformance
from conformance import packed, random_form, random_weight, w_hat, weight
from waterfill.compression.encoder import Encoder
from waterfill.errors import UnsupportedModelError
from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import Prune, Scalar, Threshold, Trellis, Vector
from waterfill.quantize.floating import relative
from waterfill.quantize.level_table import LevelTable, needs_table
from waterfill.records import Codebook, Layout, Relative, Uniform

LAYOUT = Layout((64, 40))


@pytest.mark.parametrize("log_scale", [-143, -130, -100, -70])
@pytest.mark.parametrize("bits", [2, 8, 20])
def test_tiny_weights_come_back_within_the_step_that_is_asked_for(log_scale, bits):
    some = random_weight(LAYOUT, scale=2.0**log_scale)
    step = 2.0 ** (log_scale - bits)
    for form in (None, DiagonalForm(np.full((64, 40), 2.0**20, np.float32))):
        found = LevelTable().quantize(some, form, (1 if form is None else 2.0**20) * step**2 / 12)
        conformance.check_record(found, some, form)
        conformance.check_file(found, LAYOUT)
        assert isinstance(found.rule, Codebook | Relative)
        half = max(step / 2, 2.0**-149)
        assert np.abs(w_hat(found, LAYOUT).astype(np.float64) - some.matrix).max() <= 1.001 * half


@pytest.mark.parametrize("mantissa", [20, 23])
def test_short_floating_point_numbers_have_no_scales_of_rows(mantissa):
    """A file has none of them. Numbers so small that their bits count differ from row to row."""
    every, layout = np.arange(96), Layout((96, 96))
    smooth = np.linalg.cholesky(0.95 ** np.abs(every[:, None] - every)).T
    some = weight(layout, np.random.default_rng(0).normal(size=(96, 96)) @ smooth * 1e-40)
    found = relative(some, None, mantissa)
    assert found.spread.scales == (None, None, None)
    conformance.check_file(found, layout)


def test_tiny_weights_take_as_many_bits_as_others():
    for bits in (1, 2, 3):
        tiny, usual = random_weight(LAYOUT, scale=2.0**-100), random_weight(LAYOUT)
        found = LevelTable().quantize(tiny, None, 4.0 ** (-100 - bits) / 12)
        scalar = Scalar(lmbda=0).quantize(usual, None, 4.0**-bits / 12)
        table = 32 * len(found.rule.values)
        assert found.bits - table == pytest.approx(scalar.bits, rel=0.02)


def test_weights_that_do_not_pay_for_their_bits_are_zeros_without_a_table():
    found = LevelTable().quantize(random_weight(LAYOUT, scale=1e-30), random_form(LAYOUT), 1e-4)
    assert isinstance(found.rule, Uniform)
    assert not found.symbols.any()
    assert found.bits < 100


@pytest.mark.parametrize("quantizer", [Scalar(), Trellis(8), Threshold()])
def test_matrices_below_the_steps_have_a_table_and_others_do_not(quantizer):
    encoder = Encoder(quantizer)
    tiny, small = random_weight(LAYOUT, scale=2.0**-75), random_weight(LAYOUT, scale=2.0**-40)
    assert needs_table(tiny.matrix)
    assert encoder.job(tiny, None).quantizer == LevelTable()
    assert encoder.job(small, None).quantizer == quantizer
    assert encoder.job(weight(LAYOUT, 0.0), None).quantizer == quantizer
    assert encoder.job(random_weight(Layout((0, 4))), None).quantizer == quantizer


@pytest.mark.parametrize("log_scale", [-110, -140])
def test_what_is_kept_of_tiny_weights_is_rounded_finely(log_scale):
    some = random_weight(LAYOUT, scale=2.0**log_scale)
    found = Prune(0.5).quantize(some, None, 1.0)
    conformance.check_record(found, some, None)
    kept = w_hat(found, LAYOUT) != 0
    assert 0.45 < kept.mean() <= 0.5
    error = np.abs(w_hat(found, LAYOUT) - some.matrix)[kept]
    assert error.max() <= max(0.1 * np.abs(some.matrix)[kept].min(), 2.0**-149)


def test_a_tiny_vector_of_known_importance_comes_back_within_its_step():
    layout = Layout((500,))
    tiny = random_weight(layout, scale=2.0**-100)
    form = DiagonalForm(np.full((1, 500), 2.0**60, np.float32))
    found = Vector(fineness=1.0).quantize(tiny, form, 2.0**60 * 4.0**-106 / 12)
    assert np.abs(w_hat(found, layout).astype(np.float64) - tiny.matrix).max() <= 1.001 * 2.0**-107


def test_a_value_beyond_the_largest_step_is_an_error_that_names_the_tensor():
    layout = Layout((3,))
    huge = weight(layout, np.float32([1.0, 2.0, 3e38]))
    form = DiagonalForm(np.ones((1, 3), np.float32))
    encoder = Encoder(Scalar())
    with pytest.raises(UnsupportedModelError, match=r"tensor 'w' \(3,\): a value is .* Exclude"):
        encoder.quantize({"w": encoder.job(huge, form)}, 1e-3)


def test_scales_are_left_out_where_they_take_the_range_that_weights_need():
    layout, rng = Layout((16, 16, 3)), np.random.default_rng(0)
    matrix = (rng.normal(size=(16, 48)) * 2.0**91.0).astype(np.float32)
    rows, columns = (2.0 ** rng.choice([-30, 30], size) for size in (16, 16))
    form = DiagonalForm((rows[:, None, None] * columns[:, None] * np.ones(3)).reshape(16, 48).astype(np.float32))
    found = Scalar().quantize(weight(layout, matrix), form, 1e-3)
    assert np.abs(w_hat(found, layout) - matrix).max() <= 2.0**-19 * np.abs(matrix).max()
    assert packed(found, layout).data
