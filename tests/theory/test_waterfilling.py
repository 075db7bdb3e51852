"""Water-filling against bisection, a solver, and the laws of rate and distortion."""

import itertools
from math import fsum, inf, log, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize

from waterfill.errors import UsageError
from waterfill.theory import weighted_waterfilling
from waterfill.theory.waterfilling import Rectangles

volume = st.one_of(st.sampled_from([0.0, 0.3, 1.0]), st.floats(1e-6, 1e6))
some_volumes = st.lists(volume, max_size=12).map(np.array)
volumes_that_hold = st.lists(volume, min_size=1, max_size=12).map(np.array).filter(np.any)
shares = st.floats(1e-6, 1 - 1e-6)
laws = settings(max_examples=200, deadline=None, derandomize=True)


def distortion(volumes, level):
    return fsum(min(level, each) for each in volumes)


def rate(volumes, level):
    return fsum(max(0.0, log2(each / level) / 2) for each in volumes if each > 0)


def level_where(excess, volumes):
    """The root of a function of the level that changes its sign once, by bisection in the logarithm."""
    low = log2(min(volumes[volumes > 0])) - 100
    return 2 ** brentq(lambda octave: excess(2**octave), low, log2(max(volumes)) + 1e-9, xtol=1e-13)


@laws
@given(some_volumes, st.floats(-25, 25))
def test_distortion_and_rate_at_a_level_are_their_sums(volumes, octave):
    rectangles, level = Rectangles(volumes), 2.0**octave
    assert rectangles.distortion(level) == pytest.approx(distortion(volumes, level), rel=1e-12)
    assert rectangles.rate(level) == pytest.approx(rate(volumes, level), rel=1e-11, abs=1e-11)


@laws
@given(volumes_that_hold, shares)
def test_the_level_at_a_distortion_is_what_bisection_finds(volumes, share):
    wanted, rectangles = share * fsum(volumes), Rectangles(volumes)
    found = level_where(lambda level: distortion(volumes, level) - wanted, volumes)
    assert rectangles.level_at_distortion(wanted) == pytest.approx(found, rel=1e-9)
    assert rectangles.rate_at_distortion(wanted) == pytest.approx(rate(volumes, found), rel=1e-9, abs=1e-8)


@laws
@given(volumes_that_hold, st.floats(0.01, 40))
def test_the_level_at_a_rate_is_what_bisection_finds(volumes, bits):
    found = level_where(lambda level: rate(volumes, level) - bits, volumes)
    assert Rectangles(volumes).level_at_rate(bits) == pytest.approx(found, rel=1e-9)


@laws
@given(volumes_that_hold, shares, st.floats(0.01, 400))
def test_levels_lead_back_to_the_distortion_and_to_the_rate(volumes, share, bits):
    rectangles = Rectangles(volumes)
    wanted = share * rectangles.total
    assert rectangles.distortion(rectangles.level_at_distortion(wanted)) == pytest.approx(wanted, rel=1e-12)
    assert rectangles.rate(rectangles.level_at_rate(bits)) == pytest.approx(bits, rel=1e-9)
    level = rectangles.level_at_rate(bits)
    assert rectangles.level_at_distortion(rectangles.distortion(level)) == pytest.approx(level, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_rate_is_convex_and_its_slope_is_the_level(seed):
    """`dR / dD = -1 / (2 mu ln 2)`: the reason why all rectangles are filled alike."""
    volumes = np.random.default_rng(seed).lognormal(0, 2, size=40)
    rectangles = Rectangles(volumes)
    distortions = np.linspace(0.002, 0.998, 400) * rectangles.total
    rates = np.array([rectangles.rate_at_distortion(each) for each in distortions])
    assert (np.diff(rates) < 0).all()
    assert (np.diff(rates, 2) > -1e-10).all()
    step = 1e-6 * rectangles.total
    for each in distortions[::20]:
        slope = (rectangles.rate_at_distortion(each + step) - rectangles.rate_at_distortion(each - step)) / (2 * step)
        assert slope == pytest.approx(-1 / (2 * rectangles.level_at_distortion(each) * log(2)), rel=1e-4)


@laws
@given(volumes_that_hold, st.floats(1, 3))
def test_nothing_is_left_to_pay_from_the_total_on(volumes, factor):
    rectangles = Rectangles(volumes)
    assert rectangles.total == pytest.approx(fsum(volumes), rel=1e-12)
    assert rectangles.rate_at_distortion(factor * rectangles.total) == pytest.approx(0, abs=1e-12)
    assert rectangles.rate_at_distortion(0.999 * rectangles.total) > 0
    assert rectangles.level_at_distortion(factor * rectangles.total) == pytest.approx(volumes.max(), rel=1e-12)
    assert rectangles.distortion(factor * rectangles.highest) == pytest.approx(rectangles.total, rel=1e-12)
    assert rectangles.rate(rectangles.highest) == pytest.approx(0, abs=1e-12)


@laws
@given(volumes_that_hold)
def test_no_distortion_costs_infinitely_many_bits(volumes):
    rectangles = Rectangles(volumes)
    assert rectangles.level_at_distortion(0.0) == 0
    assert rectangles.rate_at_distortion(0.0) == inf
    assert rectangles.level_at_rate(inf) == 0


@pytest.mark.parametrize("volumes", [[], [0.0], [0.0, 0.0, 0.0], np.zeros((2, 0))])
def test_rectangles_that_hold_nothing_cost_nothing(volumes):
    rectangles = Rectangles(volumes)
    assert (rectangles.total, rectangles.highest) == (0, 0)
    for each in (0.0, 1.0):
        assert (rectangles.rate(each), rectangles.distortion(each), rectangles.rate_at_distortion(each)) == (0, 0, 0)
        assert (rectangles.level_at_distortion(each), rectangles.level_at_rate(each)) == (0, 0)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 100])
@pytest.mark.parametrize("each", [0.3, 1.0, 7.7])
def test_equal_volumes_share_equally(count, each):
    rectangles = Rectangles(np.full(count, each))
    for bits in (0.1, 1.0, 5.0):  # per rectangle
        level = each * 4.0**-bits
        assert rectangles.rate_at_distortion(count * level) == pytest.approx(count * bits, rel=1e-12, abs=1e-12)
        assert rectangles.level_at_rate(count * bits) == pytest.approx(level, rel=1e-12)


def test_at_no_rate_equal_volumes_are_full():
    for each, count in itertools.product([0.3, 1.0, 7.7], [1, 2, 3, 7, 10, 100]):
        assert Rectangles(np.full(count, each)).level_at_rate(0.0) == pytest.approx(each, rel=1e-12)


@laws
@given(volumes_that_hold, shares, st.floats(-60, 60))
def test_the_unit_of_distortion_plays_no_role(volumes, share, octave):
    unit, wanted = 2.0**octave, share * fsum(volumes)
    plain, scaled = Rectangles(volumes), Rectangles(unit * volumes)
    assert scaled.rate_at_distortion(unit * wanted) == pytest.approx(plain.rate_at_distortion(wanted), abs=1e-9)
    assert scaled.level_at_rate(3.0) == pytest.approx(unit * plain.level_at_rate(3.0), rel=1e-9)


@laws
@given(volumes_that_hold, shares, st.randoms(use_true_random=False))
def test_neither_order_nor_shape_nor_empty_rectangles_play_a_role(volumes, share, random):
    order = random.sample(range(volumes.size), volumes.size)
    shuffled = np.stack([volumes[order], np.zeros(volumes.size)])
    wanted = share * fsum(volumes)
    assert Rectangles(shuffled).rate_at_distortion(wanted) == Rectangles(volumes).rate_at_distortion(wanted)
    assert Rectangles(shuffled).level_at_rate(1.5) == Rectangles(volumes).level_at_rate(1.5)


@laws
@given(volumes_that_hold, volumes_that_hold, shares, shares)
def test_sharing_a_distortion_is_never_dearer_than_keeping_it_apart(first, second, here, there):
    ours, theirs = here * fsum(first), there * fsum(second)
    apart = Rectangles(first).rate_at_distortion(ours) + Rectangles(second).rate_at_distortion(theirs)
    together = Rectangles(np.concatenate([first, second])).rate_at_distortion(ours + theirs)
    assert together <= apart + 1e-9


def test_a_million_rectangles_are_what_bisection_finds():
    volumes = np.random.default_rng(0).lognormal(0, 3, size=1_000_000)
    rectangles = Rectangles(volumes)
    for share in (1e-4, 0.1, 0.9):
        wanted = share * volumes.sum()
        low, high = 0.0, volumes.max()
        for _ in range(80):
            level = (low + high) / 2
            low, high = (level, high) if np.minimum(volumes, level).sum() < wanted else (low, level)
        bits = float(np.maximum(0, np.log2(volumes / level)).sum()) / 2
        assert rectangles.level_at_distortion(wanted) == pytest.approx(level, rel=1e-10)
        assert rectangles.rate_at_distortion(wanted) == pytest.approx(bits, rel=1e-9)
        assert rectangles.level_at_rate(bits) == pytest.approx(level, rel=1e-8)


# Weights of an importance and a variance ------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "mu"), [(1.0, 1 / 3), (3.0, 1.0), (9.0, 4.0), (14.0, 9.0), (20.0, 9.0)])
def test_figure_6(asked, mu):
    levels = weighted_waterfilling([3, 2, 1], [3, 2, 1], asked)
    assert levels.mu == pytest.approx(mu)
    assert np.dot([3, 2, 1], levels.per_weight_distortion) == pytest.approx(min(asked, 14.0))


weights_of = st.lists(
    st.tuples(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), st.one_of(st.just(0.0), st.floats(1e-3, 1e3))),
    min_size=1,
    max_size=10,
).map(lambda pairs: np.array(pairs).T)


@laws
@given(weights_of, st.floats(0, 2))
def test_the_volumes_add_up_to_the_distortion_and_none_overflows(weights, share):
    importance, variance = weights
    total = float(importance @ variance)
    levels = weighted_waterfilling(importance, variance, share * total)
    assert importance @ levels.per_weight_distortion == pytest.approx(min(share, 1) * total, rel=1e-12)
    assert (levels.per_weight_distortion <= variance * (1 + 1e-12)).all()
    unimportant = importance * variance == 0
    assert (levels.per_weight_distortion[unimportant] == variance[unimportant]).all()
    filled = importance * levels.per_weight_distortion
    assert filled[~unimportant] == pytest.approx(np.minimum(levels.mu, (importance * variance)[~unimportant]))


def bits_at(distortions, variance):
    return float(np.log2(variance / distortions).sum()) / 2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_no_solver_finds_a_cheaper_share(seed, share):
    importance, variance = np.random.default_rng(seed).gamma(1.0, size=(2, 5)) + 0.05
    total = share * importance @ variance
    found = minimize(
        lambda d: bits_at(d, variance),
        share * variance,
        jac=lambda d: -0.5 / d / log(2),
        bounds=[(1e-6, each) for each in variance],
        constraints={"type": "ineq", "fun": lambda d: total - importance @ d, "jac": lambda _: -importance},
        method="SLSQP",
        options={"ftol": 1e-11, "maxiter": 500},
    )
    assert found.success
    ours = weighted_waterfilling(importance, variance, total).per_weight_distortion
    assert bits_at(ours, variance) == pytest.approx(found.fun, abs=1e-6)
    assert bits_at(ours, variance) <= found.fun + 1e-9
    assert ours == pytest.approx(found.x, rel=1e-3)


@laws
@given(st.integers(0, 2**32 - 1), shares)
def test_no_random_share_of_the_same_distortion_is_cheaper(seed, share):
    rng = np.random.default_rng(seed)
    importance, variance = rng.lognormal(size=(2, 6))
    other = rng.uniform(1e-3, 1, size=6) * variance * share
    ours = weighted_waterfilling(importance, variance, importance @ other).per_weight_distortion
    assert bits_at(ours, variance) <= bits_at(other, variance) + 1e-9


def test_the_distortions_have_the_shape_of_the_weights():
    importance, variance = np.random.default_rng(0).gamma(1.0, size=(2, 3, 4))
    levels = weighted_waterfilling(importance, variance, 2.0)
    flat = weighted_waterfilling(importance.reshape(-1), variance.reshape(-1), 2.0)
    np.testing.assert_array_equal(levels.per_weight_distortion, flat.per_weight_distortion.reshape(3, 4))
    assert levels.mu == flat.mu


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([1, 2], [1], 1.0), r"importance has the shape \[2\], variance the shape \[1\]; expected the same"),
        (([-1.0], [1.0], 1.0), "importance has the entry -1; expected numbers of at least zero"),
        (([1.0], [-2.0], 1.0), "variance has the entry -2; expected numbers of at least zero"),
        (([np.inf], [1.0], 1.0), "importance has 1 of 1 entries that are NaN or infinite; expected finite"),
        ((["much"], [1.0], 1.0), "importance is no array of numbers .*; give floats"),
        (([1.0], [1.0], -1.0), "distortion is -1; expected a number of at least zero"),
        (([1.0], [1.0], np.nan), "distortion has 1 of 1 entries that are NaN"),
        (([1.0], [1.0], [1.0, 2.0]), r"distortion has the shape \[2\]; expected one number"),
    ],
)
def test_a_bad_argument_is_named(arguments, text):
    with pytest.raises(UsageError, match=text):
        weighted_waterfilling(*arguments)


def test_a_bad_volume_is_named():
    with pytest.raises(UsageError, match="volumes has the entry -1; expected numbers of at least zero"):
        Rectangles([1.0, -1.0])


@laws
@given(st.lists(volumes_that_hold, min_size=0, max_size=4))
def test_joined_rectangles_are_those_of_all_volumes(parts):
    joined = Rectangles.joined([Rectangles(part) for part in parts])
    assert joined.volumes.tolist() == Rectangles(np.concatenate([*parts, np.zeros(0)])).volumes.tolist()
