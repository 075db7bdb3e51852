import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.compression import encoder as allocate
from waterfill.compression.encoder import Job, Trial, lowest_within, mean_power, plan, temper
from waterfill.errors import TargetError, UnsupportedModelError, UsageError
from waterfill.importance.factored import SCALE_DAMPING, KroneckerForm
from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import Scalar, Vector
from waterfill.records import Coded, Entry, Inventory, Layout, Weight

# The plan -------------------------------------------------------------------------------------------------------------


def weight(name, shape, seed=0):
    layout = Layout(shape)
    out, channels, taps = layout.axes
    return Weight(name, np.random.default_rng(seed).normal(size=(out, channels * taps)).astype(np.float32), layout)


def inventory(**shapes):
    weights = {name: weight(name, shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    entries = tuple(Entry(name, shape, "float32", Coded(Layout(shape))) for name, shape in shapes.items())
    return Inventory(entries, weights, {})


def form(item, seed=0, scale=1.0):
    values = scale * np.random.default_rng(seed).gamma(0.5, size=item.matrix.shape)
    return DiagonalForm(values.astype(np.float32))


MODEL = inventory(conv=(6, 4, 3, 3), bias=(6,), head=(10, 54), shift=(10,))
FORMS = {name: form(MODEL.weights[name], seed, 10.0**seed) for seed, name in enumerate(("conv", "bias", "head"))}


def test_matrices_get_the_quantizer_and_vectors_their_own():
    scalar = Scalar(lmbda=0.2)
    jobs = plan(MODEL, FORMS, [scalar])
    assert list(jobs) == ["conv", "bias", "head", "shift"]
    assert jobs["conv"].quantizer is jobs["head"].quantizer is scalar
    power = mean_power(jobs)
    assert jobs["bias"].quantizer == jobs["shift"].quantizer == Vector(power)
    assert all(job.weight is MODEL.weights[name] for name, job in jobs.items())
    assert jobs["bias"].form is FORMS["bias"]
    assert jobs["shift"].form is None


@pytest.mark.parametrize("count", [0, 2])
def test_there_is_one_quantizer(count):
    with pytest.raises(UsageError, match=f"Got {count} quantizers; expected one"):
        plan(MODEL, FORMS, [Scalar()] * count)


def test_only_the_importance_of_matrices_is_tempered():
    jobs = plan(MODEL, FORMS, [Scalar()], power=0.5)
    expected = temper({"conv": FORMS["conv"], "head": FORMS["head"]}, 0.5)
    assert jobs["bias"].form is FORMS["bias"]
    assert jobs["shift"].form is None
    for name, tempered in expected.items():
        assert (jobs[name].form.diagonal() == tempered.diagonal()).all()


def test_mean_power_is_the_cost_of_zero_per_matrix_weight():
    costs = [FORMS[name].cost(MODEL.weights[name].matrix) for name in ("conv", "head")]
    assert mean_power(plan(MODEL, FORMS, [Scalar()])) == pytest.approx(sum(costs) / (6 * 36 + 540))
    squares = [np.square(MODEL.weights[name].matrix).sum() for name in ("conv", "head")]
    assert mean_power(plan(MODEL, {}, [Scalar()])) == pytest.approx(sum(squares) / (6 * 36 + 540))


def test_mean_power_of_nothing_is_one():
    zero = Weight("w", np.zeros((3, 3), np.float32), Layout((3, 3)))
    vector = MODEL.weights["bias"]
    for jobs in ({}, {"w": Job(zero, Scalar(), None)}, {"v": Job(vector, Vector(), None)}):
        assert mean_power(jobs) == 1.0


# Tempering


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
    assert temper(zero, 0.5) == zero
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
    assert temper({"w": none}, 0.5)["w"] is none
    assert np.isfinite(none.tempered(1.0, 0.0).diagonal()).all()
    assert KroneckerForm(np.zeros(0), np.zeros((1, 0, 0))).tempered(1.0, 0.5).columns.shape == (1, 0, 0)


# Quantizing in parallel -----------------------------------------------------------------------------------------------


def test_the_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    jobs = plan(MODEL, FORMS, [Scalar()])
    found = []
    for count in (1, 2, 7):
        monkeypatch.setattr(allocate.os, "cpu_count", lambda count=count: count)
        found.append(allocate.quantize(jobs, 0.01 * mean_power(jobs)))
    for other in found[1:]:
        assert list(other) == list(jobs)
        for name, item in other.items():
            assert (item.symbols == found[0][name].symbols).all()
            assert (item.bits, item.distortion) == (found[0][name].bits, found[0][name].distortion)


def test_progress_counts_every_tensor():
    calls = []
    jobs = plan(MODEL, FORMS, [Scalar()])
    allocate.quantize(jobs, 0.1, lambda *call: calls.append((*call, threading.current_thread())))
    assert calls == [("quantize", n, 4, threading.main_thread()) for n in (1, 2, 3, 4)]


def test_an_error_names_the_tensor_once():
    class Refuses:
        def quantize(self, weight, form, water_level):
            del weight, form, water_level
            raise UnsupportedModelError("too odd")

    with pytest.raises(UnsupportedModelError, match=r"^tensor 'conv' \(6, 4, 3, 3\): too odd$"):
        allocate.quantize(plan(MODEL, {}, [Refuses()]), 1.0)


def test_one_water_level_costs_the_same_everywhere_at_high_rate():
    jobs = plan(MODEL, FORMS, [Scalar(lmbda=0.0)])
    level = 1e-6 * mean_power(jobs)
    found = allocate.quantize(jobs, level)
    for name in ("conv", "head"):
        assert found[name].distortion / found[name].symbols.size == pytest.approx(level, rel=0.3)


# The search -----------------------------------------------------------------------------------------------------------


class Counting:
    """A quantity of a level, with every level that was tried."""

    def __init__(self, function):
        self.function = function
        self.levels = []

    def __call__(self, level):
        assert math.isfinite(level)
        self.levels.append(level)
        return Trial(level, float(self.function(level)), f"made at {level}")


def search(function, limit, first=0.0, slope=-0.5, within=0.01, precision=1e-4, **options):
    measure = Counting(function)
    found = lowest_within(measure, limit, first, slope=slope, within=within, precision=precision, **options)
    assert found.level in measure.levels
    assert found.made == f"made at {found.level}"
    assert found.value <= limit
    return found, measure.levels


def size(level):
    """Like the size of a file: it falls by half a bit a weight an octave, down to a floor."""
    return 100 + 1000 * np.log2(1 + 2.0 ** (-level / 2))


@given(st.floats(110, 20_000), st.floats(-40, 20))
@settings(max_examples=200, deadline=None)
def test_a_smooth_quantity_is_met_within_its_tolerance(limit, first):
    found, levels = search(size, limit, first)
    assert found.value >= limit * 0.99
    assert len(levels) <= 20


@given(st.floats(1e-6, 1e3), st.floats(-30, 20), st.floats(-3, -0.1))
@settings(max_examples=200, deadline=None)
def test_a_wrong_guess_of_the_slope_does_no_harm(limit, first, slope):
    found, levels = search(lambda level: 2.0 ** (-level), limit, first, slope)
    assert found.value >= limit * 0.99
    assert len(levels) <= 24


@given(st.floats(200, 20_000), st.floats(-30, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_noise_never_lifts_the_result_above_the_limit(limit, first, seed):
    rng = np.random.default_rng(seed)
    found, levels = search(lambda level: size(level) * rng.uniform(0.99, 1.01), limit, first)
    assert found.value >= limit * 0.96
    assert len(levels) <= 25


@given(st.floats(1, 30), st.floats(-30, 20), st.floats(0.3, 3))
@settings(max_examples=200, deadline=None)
def test_of_a_staircase_the_highest_stair_below_the_limit_is_found(limit, first, width):
    def steps(level):
        return max(1, 20 - math.floor(level / width))

    found, levels = search(steps, limit, first, precision=0.01, span=(-100, 100))
    assert found.value + 1 > limit
    assert len(levels) <= 25


def test_a_quantity_that_jumps_to_zero_or_below():
    found, _ = search(lambda level: 1.0 if level < 3 else 0.0, 0.5, precision=0.01)
    assert 3 <= found.level <= 3.01
    found, _ = search(lambda level: 0.2 if level < 3 else -0.1, 0.1, precision=0.01)
    assert 3 <= found.level <= 3.01


def test_a_quantity_that_is_infinite_below_some_level():
    found, _ = search(lambda level: math.inf if level < 3 else 2.0**-level, 0.5, first=-5, precision=0.01)
    assert 3 <= found.level <= 3.01
    found, _ = search(lambda level: math.inf if level < -3 else 2.0**-level, 0.5, first=-5)
    assert found.value >= 0.495


def test_the_floor_is_told_when_the_limit_is_below_it():
    for first in (-40.0, 0.0, 24.0):
        with pytest.raises(TargetError) as caught:
            search(size, 99, first)
        assert caught.value.args == (pytest.approx(size(24), rel=1e-9),)
    with pytest.raises(TargetError) as caught:
        search(lambda _: 5.0, 1.0, span=(-1000, 1000), tries=3)
    assert caught.value.args == (5.0,)


@given(st.floats(-100, 100), st.floats(1, 1e6), st.floats(-20, 0), st.floats(0, 20))
@settings(max_examples=200, deadline=None)
def test_no_level_is_outside_the_span(first, limit, low, high):
    measure = Counting(size)
    try:
        found = lowest_within(measure, limit, first, slope=-0.5, within=0.01, precision=1e-4, span=(low, high))
    except TargetError as error:
        assert size(high) > limit
        assert error.args[0] == size(high)
    else:
        assert found.value <= limit
        assert found.value >= 0.99 * limit or found.level == low
    assert all(low <= level <= high for level in measure.levels)
    assert len(measure.levels) <= 25


def test_the_lowest_level_is_enough_when_everything_fits():
    found, levels = search(size, 1e9, 0.0)
    assert found.level == allocate.LOWEST_LOG2
    assert len(levels) < 16


def test_the_number_of_tries_is_kept():
    found, levels = search(lambda level: size(level) * (2 if level < 1.2345 else 1), 1000, precision=0.0, tries=7)
    assert len(levels) <= 8
    assert found.value <= 1000
