"""Hulls against brute force, shares of bits against closed forms, measuring against full evaluations."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from waterfill.compression import distortion_curves as curves
from waterfill.compression.distortion_curves import FARTHEST, OFFSETS, Curve, mean_ratio, measure, offsets, some
from waterfill.distortion import KL_DIVERGENCE, SQUARED_ERROR, distortion_for
from waterfill.evaluation import evaluate, reference_outputs
from waterfill.models.batches import split

# Hulls ----------------------------------------------------------------------------------------------------------------


@st.composite
def curves_of(draw):
    count = draw(st.integers(1, 7))
    bits = draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))
    losses = draw(st.lists(st.integers(0, 20) | st.just(np.inf), min_size=count, max_size=count))
    return Curve(tuple(range(count)), tuple(map(float, bits)), tuple(map(float, losses)))


def slow_hull(curve):
    """Points that none has both as few bits and as little loss as, and that lie below every line of two others."""
    points = sorted(set(zip(curve.bits, curve.losses, strict=True)))
    least = [(b, d) for b, d in points if not any(b2 <= b and d2 <= d and (b2, d2) != (b, d) for b2, d2 in points)]

    def above(point, left, right):
        (b, d), (b1, d1), (b2, d2) = point, left, right
        return b1 < b < b2 and not np.isinf(d1) and ((d - d1) * (b2 - b1) >= (d2 - d1) * (b - b1))

    kept = [p for p in least if not any(above(p, *pair) for pair in combinations(least, 2) if p not in pair)]
    return kept[::-1]


@given(curves_of())
@settings(deadline=None)
def test_a_hull_is_convex_and_falls_and_is_that_of_brute_force(curve):
    hull = curve.hull()
    found = [(curve.bits[i], curve.losses[i]) for i in hull]
    assert found == slow_hull(curve)
    slopes = [(d2 - d1) / (b1 - b2) for (b1, d1), (b2, d2) in pairwise(found)]
    assert all(slope > 0 for slope in slopes) and slopes == sorted(set(slopes))


@given(curves_of())
@settings(deadline=None)
def test_a_hull_has_the_best_point_at_every_price_of_a_bit(curve):
    hull = curve.hull()
    for price in (0.01, 0.3, 1.0, 4.0, 100.0):
        costs = [loss + price * bits for bits, loss in zip(curve.bits, curve.losses, strict=True)]
        assert min(costs[i] for i in hull) == min(costs)


# One curve ------------------------------------------------------------------------------------------------------------


def exponential(values, power, places=OFFSETS):
    """Loss that goes as the level, and half a bit less for every value and octave."""
    return Curve(
        tuple(places),
        tuple(values * (9.0 - place / 2) for place in places),
        tuple(power * 2.0**place for place in places),
    )


def test_offset_of_a_slope_is_halfway_between_points_and_goes_as_the_level_beyond():
    curve = Curve((-1.0, 1.0, 3.0), (60.0, 40.0, 30.0), (10.0, 50.0, 210.0))
    slopes = np.log2([2.0, 16.0])
    assert [curve.offset(slope) for slope in slopes] == [0.0, 2.0]
    assert curve.offset(slopes.mean()) == pytest.approx(1.0)
    assert curve.offset(slopes[0] - 0.5) == pytest.approx(-0.5)
    assert curve.offset(slopes[1] + 0.5) == pytest.approx(2.5)
    assert [curve.offset(slope) for slope in (-200, 200)] == [-FARTHEST, FARTHEST]


@pytest.mark.parametrize(
    "curve",
    [
        Curve((-1.0, 1.0, 3.0), (5.0, 4.0, 3.0), (0.0, 0.0, 0.0)),
        Curve((-1.0, 1.0, 3.0), (5.0, 5.0, 5.0), (1.0, 2.0, 3.0)),
        Curve((-1.0, 1.0, 3.0), (5.0, 4.0, 3.0), (np.inf, np.inf, np.inf)),
        Curve((-1.0, 1.0, 3.0), (5.0, 4.0, 3.0), (3.0, 2.0, 1.0)),
    ],
)
def test_nothing_is_known_of_a_curve_that_never_rises(curve):
    assert len(curve.hull()) == 1
    assert [curve.offset(slope) for slope in (-9.0, 0.0, 9.0)] == [0.0, 0.0, 0.0]


def test_a_point_where_the_model_breaks_down_is_not_gone_to():
    curve = Curve((-1.0, 1.0, 3.0), (60.0, 40.0, 30.0), (10.0, 50.0, np.inf))
    assert curve.hull() == [0, 1, 2]
    assert [curve.offset(slope) for slope in (1.0, 2.0, 8.0)] == [0.0, 0.0, 0.0]


def test_bits_are_linear_between_points_and_beyond_them():
    curve = Curve((-1.0, 1.0, 3.0), (60.0, 40.0, 30.0), (1.0, 2.0, 3.0))
    places = [-2.0, -1.0, 0.0, 1.0, 2.5, 3.0, 4.0, 12.0]
    assert [curve.bits_at(place) for place in places] == [70.0, 60.0, 50.0, 40.0, 32.5, 30.0, 25.0, 0.0]


# Shares ---------------------------------------------------------------------------------------------------------------

PARTS = st.lists(st.tuples(st.floats(10, 1e5), st.floats(-1.5, 1.5)), min_size=1, max_size=6)


@given(PARTS, st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_shares_of_exponential_curves_are_those_of_the_closed_form(parts, unit):
    """With D = d 2^o and R = n (c - o / 2) the slopes are equal where o = s - log2(d / n), and sum n o = 0."""
    logs, counts = np.array([log for _, log in parts]), np.array([count for count, _ in parts])
    found = offsets({f"{i}": exponential(n, unit * n * 2.0**log) for i, (n, log) in enumerate(parts)})
    expected = (counts * logs).sum() / counts.sum() - logs
    np.testing.assert_allclose([found[f"{i}"] for i in range(len(parts))], expected, atol=1e-6)


def convex(numbers):
    """A curve with rising slopes of these base-2 logarithms, on tensors of some size."""
    size, first, *steps = numbers
    slopes = np.exp2(np.cumsum([first, *steps]))
    bits = size * np.array([6.0, 5.0, 4.2])
    losses = 0.01 + np.concatenate([[0.0], np.cumsum(slopes * -np.diff(bits))])
    return Curve(OFFSETS, tuple(bits), tuple(losses))


CONVEX = st.tuples(st.floats(10, 1e4), st.floats(-6, 6), st.floats(0.5, 4)).map(convex)


def slope_at(curve, offset):
    """Inverse of `offset`, by halving."""
    low, high = -200.0, 200.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if curve.offset(middle) < offset else (low, middle)
    return low


@given(st.lists(CONVEX, min_size=1, max_size=5))
@settings(deadline=None)
def test_shares_have_one_slope_and_keep_the_bits(given_curves):
    named = {f"{i}": curve for i, curve in enumerate(given_curves)}
    found = offsets(named)
    before = sum(curve.bits_at(0.0) for curve in given_curves)
    assert sum(curve.bits_at(found[name]) for name, curve in named.items()) == pytest.approx(before, rel=1e-6)
    slopes = [slope_at(curve, found[name]) for name, curve in named.items() if abs(found[name]) < FARTHEST]
    assert np.ptp(slopes or [0.0]) < 1e-6
    farthest = [slope_at(curve, found[name]) for name, curve in named.items() if found[name] == FARTHEST]
    assert all(slope <= min(slopes) + 1e-6 for slope in farthest if slopes)


def test_one_curve_and_equal_curves_stay():
    curve = convex([100.0, 0.3, 1.0])
    for count in (1, 3):
        found = offsets({str(i): curve for i in range(count)})
        assert all(abs(offset) < 1e-9 for offset in found.values())
    assert offsets({}) == {}


def test_a_curve_that_is_not_known_stays_and_the_others_share():
    flat = Curve(OFFSETS, (9.0, 8.0, 7.0), (0.0, 0.0, 0.0))
    found = offsets({"flat": flat, "a": exponential(100, 100.0), "b": exponential(100, 400.0)})
    assert found == {"flat": 0.0, "a": pytest.approx(1.0), "b": pytest.approx(-1.0)}


def test_a_mean_ratio_is_geometric_and_leaves_out_what_has_none():
    assert mean_ratio([2.0, 8.0], [1.0, 1.0]) == pytest.approx(4.0)
    assert mean_ratio([2.0, 0.0, np.inf, 5.0], [1.0, 1.0, 1.0, 0.0]) == pytest.approx(2.0)
    assert mean_ratio([], []) == mean_ratio([0.0], [1.0]) == 1.0


# Measuring ------------------------------------------------------------------------------------------------------------


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 4))


GROUPS = {"first": ["0.weight"], "last": ["4.weight"], "vectors": ["0.bias", "1.weight", "4.bias"]}


def trial(model):
    """Other values of a group at a point: scaled, by as much as the point says."""
    state = {name: each.clone() for name, each in model.state_dict().items()}
    return lambda group, point: {name: state[name] * (1.1 + 0.5 * point) for name in GROUPS[group]}


def full_evaluations(model, batches, references, output):
    """One evaluation after the other, each of a fresh model."""
    found, changes = {}, trial(model)
    for group in GROUPS:
        found[group] = []
        for point in range(len(OFFSETS)):
            other = net()
            other.load_state_dict(model.state_dict() | changes(group, point))
            result = evaluate(other, batches, references, output=output)
            found[group].append(result.kl if output == "logits" else result.squared_error)
    return found


DATA = {
    "logits": lambda: [(torch.randn(n, 5), torch.randint(0, 4, (n,))) for n in (7, 12, 1)],
    "values": lambda: [torch.randn(n, 5) for n in (7, 12, 1)],
}


@pytest.mark.parametrize("output", DATA)
def test_measuring_is_a_loop_of_full_evaluations(output):
    model, batches = net(), DATA[output]()
    references = reference_outputs(model, batches)
    before, told = {name: each.clone() for name, each in model.state_dict().items()}, []
    found = measure(
        model,
        zip(batches, references, strict=True),
        distortion_for(output),
        list(GROUPS),
        trial(model),
        lambda *p: told.append(p),
    )
    expected = full_evaluations(model, batches, references, output)
    assert found.keys() == expected.keys()
    for group, losses in expected.items():
        assert found[group] == pytest.approx(losses, rel=1e-5) and losses[0] < losses[2]
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    assert model.training and all(each.grad is None for each in model.parameters())
    assert told == [("curves", done, 9) for done in range(1, 10)]


def test_predictions_that_do_not_count_are_left_out():
    model = net()
    batches = [
        (torch.randn(6, 5), torch.tensor([-100, 1, 2, -100, 0, 3])),
        (torch.randn(2, 5), torch.tensor([-100, -100])),
    ]
    references = reference_outputs(model, batches)
    found = measure(model, zip(batches, references, strict=True), KL_DIVERGENCE, list(GROUPS), trial(model))
    for group, losses in full_evaluations(model, batches, references, "logits").items():
        assert found[group] == pytest.approx(losses, rel=1e-5)


def test_a_model_that_breaks_down_loses_everything():
    model, batches = net(), [torch.randn(3, 5)]
    references = reference_outputs(model, batches)
    broken = {"4.bias": torch.full((4,), torch.nan)}
    found = measure(model, zip(batches, references, strict=True), SQUARED_ERROR, ["a"], lambda *_: broken)
    assert found == {"a": [np.inf] * len(OFFSETS)}
    assert model[4].bias.isfinite().all()


def test_the_first_samples_up_to_a_number_of_samples_or_values(monkeypatch):
    monkeypatch.setattr(curves, "MOST_SAMPLES", 10)
    monkeypatch.setattr(curves, "MOST_VALUES", 30)

    def taken(*sizes, values=1):
        batches = [torch.randn(size, 2) for size in sizes]
        found = list(some(batches, [torch.randn(size, values) for size in sizes]))
        inputs = [split(batch)[0] for batch, _ in found]
        assert all(each.equal(whole[: len(each)]) for each, whole in zip(inputs, batches, strict=False))
        assert [len(reference) for _, reference in found] == list(map(len, inputs))
        return list(map(len, inputs))

    assert [taken(4, 4, 2, 1), taken(4, 4, 3), taken(11, 1), taken(2)] == [[4, 4, 2], [4, 4, 2], [10], [2]]
    assert [taken(4, 3, 4, values=4), taken(8, 2, values=4), taken(2, 1, values=40)] == [[4, 3], [7], [1]]


def test_a_batch_is_whole_where_outputs_are_not_one_for_every_sample(monkeypatch):
    monkeypatch.setattr(curves, "MOST_SAMPLES", 2)
    batch, reference = torch.randn(6, 2), torch.randn(3, 4)
    assert next(some([batch], [reference]))[0] is batch
    pairs = [(batch, torch.arange(6)), (batch, torch.arange(2))]
    (cut, target), whole = (next(some([pair], [torch.randn(6, 4)]))[0] for pair in pairs)
    assert target.tolist() == [0, 1]
    assert cut.equal(batch[:2])
    assert whole is pairs[1]
