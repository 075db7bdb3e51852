"""The quantizer with error feedback: what it is worth, what it falls back to, and the step it ends with."""

from dataclasses import replace

import numpy as np
import pytest

import conformance
from waterfill.errors import UsageError
from waterfill.importance.factored import KroneckerForm
from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import Feedback, Scalar, Trellis, feedback
from waterfill.quantize.feedback import centred
from waterfill.quantize.trellis import lagrangian
from waterfill.reconstruct import reconstruct
from waterfill.records import Layout, Uniform, Weight

STATES = [1, 4, 8, 64]


def correlated(inputs, rho=0.9):
    """Of a first-order autoregression."""
    return rho ** np.abs(np.subtract.outer(np.arange(inputs), np.arange(inputs)))


def gaussian(out, inputs, seed=0):
    matrix = np.random.default_rng([out, inputs, seed]).normal(size=(out, inputs)).astype(np.float32)
    return Weight("w", matrix, Layout(matrix.shape))


def product(out, inputs, rho=0.9):
    return KroneckerForm(np.ones(out), correlated(inputs, rho)[None])


def water_filling(form, item):
    """Bits per weight of a white Gaussian source at the cost of an item."""
    values, wanted = np.linalg.eigvalsh(form.columns[0]), item.distortion / item.symbols.shape[0]
    low, high = 1e-12, float(values.max())
    for _ in range(100):
        level = (low * high) ** 0.5
        low, high = (level, high) if np.minimum(values, level).sum() < wanted else (low, level)
    return 0.5 * np.log2(np.maximum(values / low, 1)).mean()


def same(one, two):
    return (one.symbols == two.symbols).all() and (one.bits, one.distortion) == (two.bits, two.distortion)


# What it is worth

GAPS = [(1, 0.1, 0.36), (8, 0.1, 0.19), (64, 0.1, 0.15), (1, 0.01, 0.30), (8, 0.01, 0.14), (64, 0.01, 0.11)]
"""States, water levels, and bits per weight a little above what was measured."""


@pytest.mark.parametrize(("states", "level", "most"), GAPS)
def test_the_gap_to_reverse_water_filling_is_small(states, level, most):
    some, form = gaussian(256, 64), product(256, 64)
    item = Feedback(states).quantize(some, form, level)
    assert 0 < item.bits / some.matrix.size - water_filling(form, item) < most


@pytest.mark.parametrize(("rows", "margin"), [(1, 0.15), (4, 0.3), (16, 0.4), (128, 0.5)])
@pytest.mark.parametrize("states", [8, 64])
def test_it_beats_a_path_without_feedback(rows, margin, states):
    """By so many bits per weight at the same cost, at 6 dB a bit."""
    some, form = gaussian(rows, 96), product(rows, 96)
    fed, plain = (each.quantize(some, form, 0.01) for each in (Feedback(states), Trellis(states)))
    saved = (plain.bits - fed.bits) / some.matrix.size + 0.5 * np.log2(plain.distortion / fed.distortion)
    assert saved > margin


@pytest.mark.parametrize("states", [1, 8])
def test_errors_of_earlier_spans_are_made_up_for(states, monkeypatch):
    some, form = gaussian(64, 48), product(64, 48)
    whole = Feedback(states).quantize(some, form, 0.01)
    monkeypatch.setattr(feedback, "LARGEST_SPAN", 64 * 4)
    parts = Feedback(states).quantize(some, form, 0.01)
    assert states == 1 or parts.spread.trellis.log_span == 2
    assert lagrangian(parts, 0.01) == pytest.approx(lagrangian(whole, 0.01), rel=0.02)
    conformance.check_file(parts, some.layout)


def test_the_rate_falls_with_the_water_level():
    found = [Feedback(8).quantize(gaussian(32, 24), product(32, 24), 2.0**level) for level in range(-14, 3, 2)]
    assert (np.diff([item.bits for item in found]) < 0).all()
    assert (np.diff([item.distortion for item in found]) > 0).all()


def test_filtering_pays_at_low_rate():
    some, form = gaussian(128, 32), product(128, 32)
    costs = [lagrangian(Feedback(1, regulariser=part).quantize(some, form, 0.3), 0.3) for part in (0.0, 1.1)]
    assert costs[1] < 0.97 * costs[0]


def test_not_all_elements_stand_aside_at_low_rate():
    """The gap to reverse water-filling was 0.2 bit where all of them did."""
    some, form = gaussian(256, 64), product(256, 64)
    item = Feedback(64).quantize(some, form, 0.3)
    assert item.bits / some.matrix.size - water_filling(form, item) < 0.17


def test_rows_that_differ_in_importance_have_steps_of_their_own():
    some, form = gaussian(64, 32), product(64, 32)
    form.rows[:] = 10.0 ** np.linspace(-3, 3, 64)
    item = Feedback(8).quantize(some, form, 1e-3)
    assert item.rule.rows is not None
    rows = np.square(some.matrix - conformance.w_hat(item, some.layout)).sum(1)
    assert rows[:8].mean() > 100 * rows[-8:].mean()


# What it falls back to


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize(
    "form",
    [
        None,
        DiagonalForm(np.full((6, 5), 0.5, np.float32)),
        KroneckerForm(np.ones(6), np.ones((1, 5))),
        KroneckerForm(np.zeros(6), correlated(5)[None]),
        KroneckerForm(np.zeros((6, 6)), correlated(5)[None]),
    ],
    ids=["none", "diagonal", "diagonal columns", "no rows", "no full rows"],
)
def test_without_cross_terms_it_is_another_quantizer(states, form):
    some = gaussian(6, 5)
    plain = Scalar() if states == 1 else Trellis(states)
    assert same(Feedback(states).quantize(some, form, 0.01), plain.quantize(some, form, 0.01))


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("make", ["sparse", "of two values", "zero"])
def test_no_matrix_costs_more_than_without_feedback(states, make):
    some, rng = gaussian(64, 32), np.random.default_rng(0)
    keep = {"sparse": rng.random(some.matrix.shape) < 0.02, "zero": False, "of two values": True}[make]
    matrix = np.where(keep, np.sign(some.matrix) * 0.3 if make == "of two values" else some.matrix, 0)
    some, form = replace(some, matrix=matrix.astype(np.float32)), product(64, 32)
    plain = Scalar() if states == 1 else Trellis(states)
    fed, known = (each.quantize(some, form, 1e-3) for each in (Feedback(states), plain))
    assert lagrangian(fed, 1e-3) <= lagrangian(known, 1e-3)


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (0, 5), (5, 0)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_matrices_of_any_size_and_scale(states, shape, scale):
    some = gaussian(*shape)
    some = replace(some, matrix=(some.matrix * scale).astype(np.float32))
    for level in (1e-6, 1.0):
        item = Feedback(states).quantize(some, product(*shape), level)
        conformance.check_record(item, some, product(*shape))
        conformance.check_file(item, some.layout)


@pytest.mark.parametrize(
    ("layout", "groups"), [(Layout((8, 3, 2, 2)), 2), (Layout((6, 1, 3)), 6), (Layout((4, 3, 2), True, 2), 2)]
)
@pytest.mark.parametrize("full", [False, True])
def test_groups_and_full_factors(layout, groups, full):
    out, channels, taps = layout.axes
    rng = np.random.default_rng(0)
    some = conformance.random_weight(layout)
    columns = np.stack([correlated(channels * taps, rho) for rho in rng.uniform(0.3, 0.9, groups)])
    rows = np.kron(np.eye(groups), correlated(out // groups)) if full else rng.uniform(0.1, 3, out)
    for states in STATES:
        conformance.run(conformance.Subject(Feedback(states), ()), some, KroneckerForm(rows, columns), 0.03)


@pytest.mark.parametrize(
    "options",
    [{"states": 2}, {"states": 65}, {"states": 8192}, {"lmbda": -1.0}, {"regulariser": np.nan}, {"rounds": 0}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError, match="expected"):
        Feedback(**options)


# The step it ends with


def cost(some, form, levels, rule):
    return form.cost(some.matrix - reconstruct(levels.reshape(-1), rule, some.layout).reshape(levels.shape))


@pytest.mark.parametrize("scale", [0.3, 1.0, 6.0])
@pytest.mark.parametrize("off", [-20, 0, 20])
def test_no_step_and_shifts_nearby_are_cheaper(scale, off):
    rng = np.random.default_rng(0)
    some, form = gaussian(24, 16), product(24, 16)
    rows = rng.integers(-4, 5, 24).astype(np.int8)
    rule = Uniform(int(off - 64 * np.log2(scale)), rows=rows)
    steps = 2.0 ** (rule.step / 64 + rows[:, None] / 4 - off / 64)
    levels = np.rint(some.matrix / steps).astype(np.int32)
    found = centred(some, form, levels, rule)
    least = cost(some, form, levels, found)
    assert least <= cost(some, form, levels, rule)
    assert (found.rows == rows).all()
    for step in (-3, -1, 0, 1, 3):
        for index in (None, 0, 1, 2):
            for move in (-6, -2, 2, 6):
                shrink = list(found.shrink)
                if index is not None:
                    shrink[index] = int(np.clip(shrink[index] + move, -64, 64))
                near = replace(found, step=found.step + step, shrink=tuple(shrink))
                assert least <= 1.002 * cost(some, form, levels, near)


def test_levels_that_are_zero_leave_the_step_alone():
    some, form, rule = gaussian(4, 3), product(4, 3), Uniform(-30)
    assert centred(some, form, np.zeros((4, 3), np.int32), rule) is rule
    assert centred(some, form, -np.rint(some.matrix / 0.1).astype(np.int32), rule) is rule


@pytest.mark.parametrize("spread", [1, 2, 3])
@pytest.mark.parametrize("middle", [4, 13, 40])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_levels_of_about_one_size_keep_their_values(spread, middle, rho):
    """They do not tell a step from a shift: a tiny step stayed where the shift cannot grow to make up for it."""
    rng = np.random.default_rng(0)
    sign = rng.choice(np.float32([-1, 1]), (64, 20))
    some, form = Weight("w", 0.2 * sign, Layout(sign.shape)), product(64, 20, rho)
    levels = (sign * (middle + rng.integers(0, spread + 1, sign.shape))).astype(np.int32)
    rule = Uniform(round(64 * np.log2(0.2 / middle)))
    assert cost(some, form, levels, centred(some, form, levels, rule)) < 1.1 * cost(some, form, levels, rule)
