"""Weights that are quantized at several levels: nothing that is kept changes results, and bits are foreseen."""

import numpy as np
import pytest

import conformance
from waterfill.importance.factored import KroneckerForm
from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import Feedback, Scalar, Trellis, prefilter
from waterfill.quantize.prepared import Prepared
from waterfill.records import Layout, Weight


def correlated(inputs, rho=0.9):
    return rho ** np.abs(np.subtract.outer(np.arange(inputs), np.arange(inputs)))


def gaussian(out, inputs, seed=0):
    matrix = np.random.default_rng([out, inputs, seed]).normal(size=(out, inputs)).astype(np.float32)
    return Weight("w", matrix, Layout(matrix.shape))


def product(out, inputs):
    return KroneckerForm(np.linspace(0.5, 2, out), correlated(inputs)[None])


FORMS = {
    "none": lambda *_: None,
    "diagonal": lambda out, inputs: DiagonalForm(np.linspace(0.1, 2, out * inputs, dtype=np.float32).reshape(out, -1)),
    "product": product,
}


def same(one, two):
    return (one.symbols == two.symbols).all() and (one.bits, one.distortion) == (two.bits, two.distortion)


@pytest.mark.parametrize("quantizer", [Feedback(8), Feedback(1), Trellis(8), Scalar()], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_kept_changes_nothing(quantizer, form):
    some, price = gaussian(12, 40), FORMS[form](12, 40)
    prepared = Prepared(quantizer, some, price)
    for level in (0.1, 0.01, 0.0101, 0.1):
        assert same(prepared.quantize(level), quantizer.quantize(some, price, level))


def test_filters_of_a_matrix_with_many_inputs_are_kept(monkeypatch):
    made = []
    monkeypatch.setattr(prefilter, "GRID", 4)
    monkeypatch.setattr(prefilter, "_factor", lambda *args, make=prefilter._factor: made.append(args) or make(*args))
    prepared = Prepared(Feedback(8), gaussian(12, 40), KroneckerForm(np.ones(12), correlated(40)[None]))
    for level in (0.01, 0.0101, 0.0099):
        prepared.quantize(level)
    assert len(made) == 1
    prepared.quantize(0.02)
    assert len(made) == 2


@pytest.mark.parametrize("quantizer", [Feedback(64), Trellis(64), Scalar()], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("shape", "within"), [((2048, 64), 0.04), ((24, 16), 0.08)])
def test_bits_are_foreseen(quantizer, form, shape, within):
    some, price = gaussian(*shape), FORMS[form](*shape)
    prepared = Prepared(quantizer, some, price)
    for level in (0.1, 0.003):
        assert prepared.estimate_bits(level) == pytest.approx(prepared.quantize(level).bits, rel=within)


def test_a_large_matrix_is_foreseen_from_some_rows():
    seen = []

    class Watched:
        def quantize(self, weight, form, level):
            seen.append((weight.matrix.shape, form.diagonal().shape))
            return Scalar().quantize(weight, form, level)

    some = gaussian(4096, 32)
    assert Prepared(Watched(), some, product(4096, 32)).estimate_bits(0.01) > 0
    assert seen == [((2048, 32), (2048, 32))]


def test_groups_that_rows_cannot_be_taken_of_are_quantized_whole():
    layout = Layout((300, 400))
    some = conformance.random_weight(layout)
    form = KroneckerForm(np.ones(300), np.tile(correlated(400)[None], (300, 1, 1)))
    prepared = Prepared(Scalar(), some, form)
    assert prepared.estimate_bits(0.01) == Scalar().quantize(some, form, 0.01).bits
