"""The filter, and the sum over columns that errors cost, against dense algebra."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.errors import UsageError
from waterfill.importance.factored import KroneckerForm
from waterfill.linear_algebra import solved_rows
from waterfill.quantize import prefilter as filters
from waterfill.quantize.feedback import Loop
from waterfill.quantize.prefilter import DAMPING, OCTAVES, Filters, inverse_powers
from waterfill.quantize.scalar import in_steps
from waterfill.reconstruct import step_sizes
from waterfill.records import CHANNELS, Cosines, Layout, Weight


def product(out, inputs, groups=1, decades=0.0, seed=0):
    """A form with cross terms and positive definite A."""
    rng = np.random.default_rng([out, inputs, groups, seed])
    roots = rng.normal(size=(groups, inputs, 2 * inputs)) * rng.uniform(0.2, 3, size=(groups, inputs, 1))
    return KroneckerForm(10 ** rng.uniform(-decades, decades, out), roots @ roots.swapaxes(1, 2) / inputs)


def weights(out, inputs, seed=0):
    return np.random.default_rng([out, inputs, seed]).laplace(size=(out, inputs)).astype(np.float32)


def filters_of(matrix, form, layout=None):
    """Of coefficients: only of these powers of columns are told apart."""
    return Filters(Weight("w", matrix, layout or Layout(matrix.shape), Cosines(CHANNELS, 2)), form)


def noise_of(matrix):
    """What is added to the diagonal of A, over its mean."""
    return inverse_powers(Weight("w", matrix, Layout(matrix.shape)))


def filtered(target, matrix):
    """The filtered weights W~ that aims stand for: `aims_j U_jj = (W~ U)_j - sum_{i<j} W_i U_ij`."""
    rows = np.empty(matrix.shape)
    for row, weights_of_row in enumerate(matrix.astype(float)):
        u = target.factors[target.classes[row]].T.astype(float)
        rows[row] = np.linalg.solve(u.T, target.aims[row] * np.diagonal(u) + weights_of_row @ np.triu(u, 1))
    return rows


def damped(form, row):
    """The damped A of a row."""
    groups = form.damped(DAMPING).columns
    return groups[row * len(groups) // len(form.rows)]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("noise", [1e-6, 0.1, 30.0])
def test_a_filtered_row_is_the_least_squares_solution(groups, noise):
    form, matrix = product(6, 8, groups), weights(6, 8)
    form = KroneckerForm(np.full(6, 0.7), form.columns)
    target = filters_of(matrix, form).target(noise)
    wanted = noise / 0.7 / np.square(matrix, dtype=float).mean()
    extra = 2 ** (round(32 * np.log2(wanted)) / 32)
    for row in range(6):
        root = np.linalg.cholesky(damped(form, row)).T
        stacked = np.vstack([root, np.diag(np.sqrt(extra * noise_of(matrix)))])
        wanted = np.concatenate([root @ matrix[row], np.zeros(8)])
        expected = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
        np.testing.assert_allclose(filtered(target, matrix)[row], expected, rtol=1e-4, atol=1e-6)


@given(st.integers(1, 6), st.integers(1, 9), st.sampled_from([1, 2, 3]), st.floats(0, 2), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_what_levels_cost_is_a_sum_over_columns(rows, inputs, groups, noise, seed):
    """`sum_j U_jj^2 (target_j - W^_j)^2 = (W~ - W^) A' (W~ - W^)^T` for any W^, W~ by dense algebra."""
    form, matrix = product(rows * groups, inputs, groups, decades=2.0, seed=seed), weights(rows * groups, inputs, seed)
    target = filters_of(matrix, form).target(noise)
    w_hat = matrix + np.random.default_rng(seed).normal(size=matrix.shape)
    for row in range(rows * groups):
        u, error = target.factors[target.classes[row]].T.astype(float), matrix[row] - w_hat[row]
        assert np.array_equal(u, np.triu(u))
        aims = [target.aims[row, j] + sum(error[i] * u[i, j] / u[j, j] for i in range(j)) for j in range(inputs)]
        cost = sum(u[j, j] ** 2 * (aims[j] - w_hat[row, j]) ** 2 for j in range(inputs))
        left = np.linalg.solve(u @ u.T, damped(form, row) @ matrix[row]) - w_hat[row]
        whole = np.sum(np.square(np.diag(u) * aims))  # aims are float32: a small difference of large ones is less exact
        assert cost == pytest.approx(left @ u @ u.T @ left, rel=1e-5, abs=1e-6 * np.sqrt(cost * whole))
        added = u @ u.T - damped(form, row)
        unit = np.trace(added) / noise_of(matrix).sum()
        np.testing.assert_allclose(added, unit * np.diag(noise_of(matrix)), atol=1e-6 * (1 + abs(u).max() ** 2))
        wanted = noise / form.rows[row] / np.square(matrix, dtype=float).mean()
        near, octaves = 1e-6 * (1 + abs(u).max() ** 2), OCTAVES + 1 / filters.GRID
        assert 2**-octaves * wanted - near <= unit <= 2**octaves * wanted + near or wanted > 1e4
        np.testing.assert_allclose(target.importance[row], form.rows[row] * np.diagonal(u) ** 2, rtol=1e-5)


def test_noise_goes_by_the_powers_of_channels_and_taps():
    """Rows count alike; weights of equal magnitude have no chance in them."""
    channels, taps = np.array([1.0, 2.0]), np.array([1.0, 3.0, 5.0])
    layout, signs = Layout((64, 2, 3)), np.random.default_rng(0).choice([-1, 1], (64, 6))
    matrix = (signs * np.outer(10.0 ** np.arange(-16, 16, 0.5), np.outer(channels, taps))).astype(np.float32)
    found = inverse_powers(Weight("w", matrix, layout))
    powers = np.outer(channels**2, taps**2).reshape(-1)
    np.testing.assert_allclose(np.log(found), np.log(powers.mean() / powers), atol=0.1)


def test_weights_in_their_own_basis_have_the_same_noise_in_all_columns():
    form, matrix = product(6, 8), weights(6, 8) * np.arange(1, 9, dtype=np.float32)
    target = Filters(Weight("w", matrix, Layout((6, 8))), form).target(0.1)
    for row in range(6):
        u = target.factors[target.classes[row]].T.astype(float)
        added = np.diagonal(u @ u.T - damped(form, row))
        np.testing.assert_allclose(added, added[0], rtol=1e-3)


@pytest.mark.parametrize("out", [8, 64, 512])
def test_weights_of_one_variance_have_noise_of_one(out):
    matrix = np.random.default_rng(out).laplace(size=(out, 128)).astype(np.float32)
    found = noise_of(matrix)
    plain = np.square(matrix).mean(0)
    assert np.log(found).std() < 0.4 * np.log(plain).std()


LAYOUTS = [(Layout((6, 10)), 1), (Layout((6, 3, 2, 2)), 2), (Layout((4, 6, 3), True, 2), 2), (Layout((1, 7)), 1)]


@pytest.mark.parametrize(("layout", "groups"), LAYOUTS, ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_loop_in_steps_aims_where_the_filter_does(layout, groups, scaled):
    out, channels, taps = layout.axes
    form, matrix = product(out, channels * taps, groups, decades=1.0), weights(out, channels * taps)
    target = filters_of(matrix, form, layout).target(0.1)
    importance = target.importance
    if scaled:  # so uneven that steps have scales of their own
        importance = importance * np.outer(4.0 ** np.arange(out), 4.0 ** np.arange(channels * taps)).astype(np.float32)
    rule, aims, relative = in_steps(Weight("w", target.aims, layout), importance, 1e-4)
    loop = Loop.of(Weight("w", matrix, layout), target, rule, aims, relative, 0.3)
    feed = loop._feed()
    steps = np.broadcast_to(step_sizes(rule, layout, 0, layout.numel), layout.numel).reshape(matrix.shape)
    np.testing.assert_allclose(loop.x * steps, matrix, rtol=1e-5)
    np.testing.assert_allclose(loop.aims * steps, target.aims, rtol=1e-5)
    assert not scaled or out == 1 or rule.channels is not None
    for row in range(out):
        u, k = target.factors[target.classes[row]].T, target.classes[row]
        for column in range(channels * taps):
            for earlier in range(column):
                wanted = u[earlier, column] / u[column, column] * steps[row, earlier] / steps[row, column]
                found = feed.gains[k, column] * feed.factors[k, column, earlier] * feed.steps[earlier]
                assert found == pytest.approx(wanted, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("decades", [0.0, 1.0, 12.0])
@pytest.mark.parametrize("groups", [1, 2, 30])
def test_rows_of_a_class_are_of_one_group_and_nearly_one_noise(decades, groups, monkeypatch):
    form, matrix = product(60, 5, groups, decades), weights(60, 5)
    for work, most in ((filters.MOST_WORK, filters.MOST_FILTERS), (1.0, 1)):
        monkeypatch.setattr(filters, "MOST_WORK", work)
        target = filters_of(matrix, form).target(0.1)
        count = len(target.factors)
        assert sorted(set(target.classes)) == list(range(count))
        assert groups <= count <= max(groups, most)
        for k in range(count):
            mine = np.flatnonzero(target.classes == k)
            assert len(set(mine * groups // 60)) == 1
            if decades <= 1 and most > 1 and groups == 1:
                assert np.ptp(np.log2(form.rows[mine])) <= OCTAVES + 1e-9


def test_rows_that_do_not_count_are_filtered_like_the_least_important():
    matrix, form = weights(4, 6), product(4, 6)
    form.rows[:] = 1.0, 0.0, 1e-9, 0.0
    target = filters_of(matrix, form).target(0.01)
    assert np.isfinite(target.aims).all()
    assert target.classes[1] == target.classes[2] == target.classes[3] != target.classes[0]
    assert not target.importance[1].any()


@pytest.mark.parametrize("noise", [0.0, 1e-80, 1.0, 1e80, np.inf])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_any_noise_has_a_filter(noise, scale):
    matrix = (weights(4, 6) * scale).astype(np.float32)
    target = filters_of(matrix, product(4, 6)).target(noise)
    assert np.isfinite(target.aims).all()
    assert np.isfinite(target.importance).all()
    assert (np.abs(target.aims).max() <= 1e-5 * scale) == (noise / scale**2 > 1e7)
    if noise == 0:
        np.testing.assert_allclose(target.aims, matrix, rtol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -1.0])
def test_a_factor_that_is_none_is_refused(broken):
    form = product(4, 6)
    form.columns[0, 2, 2] = broken * form.columns[0, 2, 2]
    with pytest.raises(UsageError, match="6 columns of a form is not finite, or has eigenvalues below 0; expected"):
        filters_of(weights(4, 6), form).target(0.01)


def test_matrices_that_share_columns_share_filters(monkeypatch):
    made = []
    monkeypatch.setattr(filters, "MANY", 8)
    monkeypatch.setattr(filters, "SMALL", 1)
    monkeypatch.setattr(filters, "_factor", lambda *args, make=filters._factor: made.append(args) or make(*args))
    form = product(12, 10)
    form = KroneckerForm(np.ones(12), form.columns)
    matrix = np.tile(weights(6, 10), (2, 1))
    halves = [filters_of(matrix[some], form.rows_of(some)) for some in (slice(0, 6), slice(6, 12))]
    targets = [half.target(0.1) for half in halves]
    assert len(made) == 1 and np.shares_memory(targets[0].factors, targets[1].factors)
    whole = filters_of(matrix, form).target(0.1)
    np.testing.assert_array_equal(np.concatenate([each.aims for each in targets]), whole.aims)


def test_filters_that_are_shared_are_let_go(monkeypatch):
    monkeypatch.setattr(filters, "MANY", 8)
    form = product(6, 10)
    monkeypatch.setattr(filters, "KEPT_BYTES", 6 * 400)
    matrix = weights(6, 10)
    targets = [filters_of(matrix, form).target(2.0**octave) for octave in range(-9, 0)]
    again = [filters_of(matrix, form).target(2.0**octave) for octave in range(-9, 0)]
    assert sum(each.nbytes for key, each in form.of_columns.items() if isinstance(key, tuple)) <= 8 * 300
    for one, other in zip(targets, again, strict=True):
        assert np.array_equal(one.factors, other.factors) and np.array_equal(one.aims, other.aims)


@pytest.mark.parametrize("large", [False, True])
def test_a_factor_in_single_precision_solves_as_one_in_double(large, monkeypatch):
    monkeypatch.setattr(filters, "SMALL", 1 if large else 100)
    form = product(2, 12)
    inverse = np.linalg.inv(damped(form, 0) + 0.3 * np.eye(12))
    factor = filters._factor(form.columns[0], form.damped_diagonals(DAMPING)[0] + 0.3, None)
    assert factor.dtype == (np.float32 if large else np.float64)
    found = solved_rows(factor, weights(2, 12))
    expected = weights(2, 12) @ inverse @ weights(2, 12).T
    np.testing.assert_allclose(found @ found.T, expected, rtol=1e-3 if large else 1e-6, atol=1e-5)


def test_filters_of_flat_matrices_are_shared(monkeypatch):
    monkeypatch.setattr(filters, "SMALL", 1)
    form, matrix = product(2, 12), weights(2, 12)
    first, second = (filters_of(matrix, form).target(0.1) for _ in range(2))
    assert not np.shares_memory(first.factors, second.factors)
    monkeypatch.setattr(filters, "MANY_OF_FLAT", 12)
    monkeypatch.setattr(filters, "COLUMNS_PER_ROW", 6)
    first, second = (filters_of(matrix, form).target(noise) for noise in (0.1, 0.103))
    assert np.shares_memory(first.factors, second.factors)
