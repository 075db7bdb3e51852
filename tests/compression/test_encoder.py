import gc
import math
import os
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest

from waterfill.compression.encoder import Encoder, Job, decoded_matrix, mean_scale, mean_zero_cost, only_quantizer
from waterfill.errors import UnsupportedModelError, UsageError
from waterfill.importance.factored import SCALE_DAMPING, KroneckerForm
from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import Feedback, Scalar, Trellis, Vector
from waterfill.records import Layout, Weight

# Jobs -------------------------------------------------------------------------------------------------------------


def weight(name, shape, seed=0):
    layout = Layout(shape)
    out, channels, taps = layout.axes
    return Weight(name, np.random.default_rng(seed).normal(size=(out, channels * taps)).astype(np.float32), layout)


def weights(**shapes):
    return {name: weight(name, shape, seed) for seed, (name, shape) in enumerate(shapes.items())}


def form(item, seed=0, scale=1.0):
    values = scale * np.random.default_rng(seed).gamma(0.5, size=item.matrix.shape)
    return DiagonalForm(values.astype(np.float32))


MODEL = weights(conv=(6, 4, 3, 3), bias=(6,), head=(10, 54), shift=(10,))
FORMS = {name: form(MODEL[name], seed, 10.0**seed) for seed, name in enumerate(("conv", "bias", "head"))}
MATRICES = {name: FORMS[name] for name in ("conv", "head")}


def encoder_of(quantizer, forms=FORMS, power=1.0):
    """An encoder whose scales are those of the model."""
    known = {name: forms[name] for name in MATRICES if name in forms}
    plain = Encoder(quantizer, mean_scale(MODEL, known), power)
    return replace(plain, zero_cost=mean_zero_cost(plain.jobs(MODEL, forms)))


def plan(forms, quantizer, power=1.0):
    return encoder_of(quantizer, forms, power).jobs(MODEL, forms)


def product_of(item, seed):
    """A product with a matrix over columns."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(item.matrix.shape[1], 80))
    return KroneckerForm(10 ** rng.uniform(-2, 2, len(item.matrix)), (root @ root.T)[None], factor=0.5)


@pytest.mark.parametrize("quantizer", [Scalar(), Trellis(states=8), Feedback(states=8)])
def test_a_loss_is_the_cost_of_the_errors_and_needs_no_product_where_the_search_made_it(quantizer, monkeypatch):
    forms = {name: product_of(MODEL[name], seed) for seed, name in enumerate(MATRICES)}
    jobs = encoder_of(quantizer, forms, power=0.5).jobs(MODEL, forms)
    for name, importance in forms.items():
        job, matrix = jobs[name], MODEL[name].matrix.astype(np.float64)
        found = job.quantizer.quantize(job.weight, job.form, 0.1)
        error = matrix - decoded_matrix(job.weight.layout, found)
        expected = 0.5 * np.einsum("o,oi,ij,oj->", importance.rows, error, importance.columns[0], error)
        with monkeypatch.context() as changes:
            changes.setattr(KroneckerForm, "row_costs", None)
            assert job.loss(found) == pytest.approx(expected, rel=1e-5)
        assert replace(job, form=None).loss(found) == pytest.approx(expected, rel=1e-5)


def test_matrices_get_the_quantizer_and_vectors_their_own():
    scalar = Scalar(lmbda=0.2)
    jobs = plan(FORMS, scalar)
    assert list(jobs) == ["conv", "bias", "head", "shift"]
    assert jobs["conv"].quantizer is jobs["head"].quantizer is scalar
    assert jobs["bias"].quantizer == jobs["shift"].quantizer == Vector(mean_zero_cost(jobs))
    assert all(job.weight is MODEL[name] for name, job in jobs.items())
    assert all(jobs[name].form is jobs[name].importance is form for name, form in FORMS.items())
    assert jobs["shift"].form is jobs["shift"].importance is None


def test_tensors_of_one_importance_have_forms_of_their_own():
    """One object may price several tensors of one shape, which differ in level and basis."""
    importance = form(MODEL["head"])
    twin = replace(MODEL["head"], name="twin")
    encoder = replace(encoder_of(Scalar()), offsets={"twin": 2.0})
    forms = [encoder.job(each, importance).form for each in (MODEL["head"], twin, MODEL["head"], twin)]
    assert forms[0] is importance is forms[2] and forms[1] is forms[3]
    np.testing.assert_array_equal(forms[1].diagonal(), importance.diagonal() / 4)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_forms_are_made_once_and_go_with_their_importance(power):
    encoder = Encoder(Scalar(), power=power)
    importance = form(MODEL["conv"])
    made = encoder.job(MODEL["conv"], importance).form
    assert encoder.job(MODEL["conv"], importance).form is made
    kept = weakref.ref(importance), weakref.ref(made)
    del importance, made
    gc.collect()
    assert [each() for each in kept] == [None, None]


@pytest.mark.parametrize("count", [0, 2])
def test_there_is_one_quantizer(count):
    with pytest.raises(UsageError, match=f"Got {count} quantizers; expected one"):
        only_quantizer([Scalar()] * count)


def test_only_the_importance_of_matrices_is_tempered():
    jobs = plan(FORMS, Scalar(), power=0.5)
    expected = temper(MATRICES, 0.5)
    assert jobs["bias"].form is FORMS["bias"]
    assert jobs["shift"].form is None
    for name, tempered in expected.items():
        assert (jobs[name].form.diagonal() == tempered.diagonal()).all()
        assert jobs[name].importance is FORMS[name]


def test_the_mean_is_the_cost_of_zero_per_matrix_weight():
    costs = [FORMS[name].cost(MODEL[name].matrix) for name in ("conv", "head")]
    assert mean_zero_cost(plan(FORMS, Scalar())) == pytest.approx(sum(costs) / (6 * 36 + 540))
    squares = [np.square(MODEL[name].matrix).sum() for name in ("conv", "head")]
    assert mean_zero_cost(plan({}, Scalar())) == pytest.approx(sum(squares) / (6 * 36 + 540))


def test_the_mean_of_nothing_is_one():
    zero = Weight("w", np.zeros((3, 3), np.float32), Layout((3, 3)))
    vector = MODEL["bias"]
    for jobs in ({}, {"w": Job(zero, Scalar(), None, None)}, {"v": Job(vector, Vector(), None, None)}):
        assert mean_zero_cost(jobs) == 1.0


# Tempering


def temper(forms, power):
    """Forms to a power about the mean of their scales."""
    return {
        name: form.tempered(mean_scale(dict.fromkeys(forms, MODEL["conv"]), forms), power)
        for name, form in forms.items()
    }


def diagonals(forms):
    return np.concatenate([form.diagonal().reshape(-1).astype(np.float64) for form in forms.values()])


def test_power_one_is_the_identity():
    assert temper(FORMS, 1.0) == FORMS
    assert temper({}, 0.5) == {}


def test_power_zero_is_the_mean_everywhere():
    tempered = temper(FORMS, 0.0)
    assert diagonals(tempered) == pytest.approx(diagonals(FORMS).mean(), rel=1e-5)


@pytest.mark.parametrize("power", [0.25, 0.5, 0.75, 2.0])
def test_tempering_is_a_power_over_all_tensors_about_their_mean(power):
    before, after = diagonals(FORMS), diagonals(temper(FORMS, power))
    mean = before.mean()
    assert after == pytest.approx(mean * (before / mean) ** power, rel=1e-4)
    assert (after[before == before.max()] >= mean if power > 0 else True).all()
    assert (after.mean() <= mean * (1 + 1e-5)) == (power <= 1)  # Jensen
    assert np.isfinite(after).all()


def test_tempering_does_not_depend_on_the_unit_of_importance():
    scaled = {name: DiagonalForm(form.values * np.float32(1024)) for name, form in FORMS.items()}
    assert diagonals(temper(scaled, 0.5)) == pytest.approx(1024 * diagonals(temper(FORMS, 0.5)), rel=1e-5)


def test_tempering_what_is_all_zero_or_partly_zero():
    zero = {"w": DiagonalForm(np.zeros((2, 3), np.float32))}
    assert not temper(zero, 0.5)["w"].values.any()
    partly = temper({"w": DiagonalForm(np.float32([[0, 4]]))}, 0.5)
    assert partly["w"].values[0, 0] == 0
    assert partly["w"].values[0, 1] == pytest.approx(2 * np.sqrt(2))


def crossed(seed=0, groups=2, out=6, inputs=5, full=False, scale=1.0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(groups, inputs, 2 * inputs))
    rows = scale * rng.gamma(1.0, size=out)
    if full:
        blocks = rng.normal(size=(groups, out // groups, out))
        rows = np.zeros((groups, out // groups, groups, out // groups))
        rows[range(groups), :, range(groups)] = scale * blocks @ blocks.swapaxes(1, 2)
        rows = rows.reshape(out, out)
    return KroneckerForm(rows, roots @ roots.swapaxes(1, 2), "why")


def geometric_means(form):
    """`g_o det(A)^(1/n)` of every row, from the determinant of the damped matrix."""
    damped = form.damped(SCALE_DAMPING).columns
    per_group = np.linalg.det(damped) ** (1 / damped.shape[1])
    return form.rows.reshape(len(per_group), -1) * per_group[:, None]


def test_cross_terms_keep_their_shape_and_their_scales_are_tempered():
    forms = {"a": crossed(0), "b": crossed(1, groups=1, scale=100.0), "c": FORMS["conv"]}
    weights = [*(np.repeat(geometric_means(forms[name]), 5) for name in "ab"), FORMS["conv"].values.ravel()]
    mean = np.concatenate(weights).mean(dtype=np.float64)
    for power in (0.0, 0.5):
        found = temper(forms, power)
        for name in "ab":
            wanted = mean * (geometric_means(forms[name]) / mean) ** power
            np.testing.assert_allclose(geometric_means(found[name]), wanted, rtol=1e-9)
            ratio = found[name].columns / forms[name].columns
            np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-12)
            assert found[name].reason == "why"
        np.testing.assert_allclose(found["c"].values, mean * (FORMS["conv"].values / mean) ** power, rtol=1e-5)
    assert forms["a"].tempered(mean, 1.0) is forms["a"]


def test_a_full_matrix_over_rows_keeps_its_shape_too():
    form = crossed(full=True, groups=1)
    found = form.tempered(3.0, 0.25)
    ratio = np.kron(found.rows, found.columns[0]) / np.kron(form.rows, form.columns[0])
    assert ratio == pytest.approx(np.full(ratio.shape, ratio[0, 0]), rel=1e-9)
    scale = math.prod(
        np.linalg.det(damped) ** (1 / len(damped))
        for damped in (form.damped(SCALE_DAMPING).rows, form.damped(SCALE_DAMPING).columns[0])
    )
    assert form.scale_total == pytest.approx(30 * scale)
    assert ratio[0, 0] * scale == pytest.approx(3.0 * (scale / 3.0) ** 0.25)


@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_two_diagonals_are_tempered_like_their_product(power):
    form = KroneckerForm(np.array([1.0, 2.0, 0.0, 8.0]), np.array([[0.5, 0.0, 4.0], [1.0, 2.0, 3.0]]))
    plain = DiagonalForm(form.diagonal())
    assert form.scale_total == pytest.approx(plain.scale_total)
    np.testing.assert_allclose(form.tempered(1.5, power).diagonal(), plain.tempered(1.5, power).values, rtol=1e-5)


def test_a_singular_matrix_has_a_scale_and_one_of_nothing_stays_finite():
    one = KroneckerForm(np.ones(2), np.array([[[1.0, 1.0], [1.0, 1.0]]]))
    assert one.scale_total == pytest.approx(4 * math.sqrt(SCALE_DAMPING * (2 + SCALE_DAMPING)))
    none = KroneckerForm(np.zeros(4), np.zeros((2, 3, 3)))
    assert not temper({"w": none}, 0.5)["w"].diagonal().any()
    assert np.isfinite(none.tempered(1.0, 0.0).diagonal()).all()
    assert KroneckerForm(np.zeros(0), np.zeros((1, 0, 0))).tempered(1.0, 0.5).columns.shape == (1, 0, 0)


# Quantizing in parallel -----------------------------------------------------------------------------------------------


def test_the_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    encoder = encoder_of(Scalar())
    jobs = encoder.jobs(MODEL, FORMS)
    found = []
    for count in (1, 2, 7):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        found.append(encoder.quantize(jobs, 0.01 * mean_zero_cost(jobs)))
    for other in found[1:]:
        assert list(other) == list(jobs)
        for name, item in other.items():
            assert (item.symbols == found[0][name].symbols).all()
            assert (item.bits, item.distortion) == (found[0][name].bits, found[0][name].distortion)


def test_progress_counts_every_tensor():
    calls = []
    told = replace(encoder_of(Scalar()), progress=lambda *call: calls.append((*call, threading.current_thread())))
    told.quantize(told.jobs(MODEL, FORMS), 0.1)
    assert calls == [("quantize", n, 4, threading.main_thread()) for n in (1, 2, 3, 4)]


def test_an_error_names_the_tensor_once():
    class Refuses:
        def quantize(self, weight, form, water_level):
            del weight, form, water_level
            raise UnsupportedModelError("too odd")

    with pytest.raises(UnsupportedModelError, match=r"^tensor 'head' \(10, 54\): too odd$"):
        Encoder(Refuses()).quantize(plan({}, Refuses()), 1.0)


def test_one_water_level_costs_the_same_everywhere_at_high_rate():
    encoder = encoder_of(Scalar(lmbda=0.0))
    jobs = encoder.jobs(MODEL, FORMS)
    level = 1e-6 * mean_zero_cost(jobs)
    found = encoder.quantize(jobs, level)
    for name in ("conv", "head"):
        assert found[name].distortion / found[name].symbols.size == pytest.approx(level, rel=0.3)
