"""Pruning by importance: which weights stay, how finely, and what the file takes."""

from dataclasses import dataclass

import numpy as np
import pytest

import conformance
from conformance import packed, random_form, random_weight, w_hat, weight
from waterfill.errors import UsageError
from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import Prune, Threshold
from waterfill.records import Layout

LAYOUT = Layout((24, 10))


@dataclass(frozen=True, eq=False)
class QuarticForm(DiagonalForm):
    fourth: np.ndarray

    def quartic(self):
        return self.fourth


def slowly_kept(costs, count):
    """Positions of the largest costs, the first ones of equal."""
    order = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    return set(order[:count])


@pytest.mark.parametrize("keep", [0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("form", [None, random_form(LAYOUT)], ids=["no form", "form"])
def test_the_weights_that_cost_most_are_kept(keep, form):
    some = random_weight(LAYOUT)
    quantized = Prune(keep).quantize(some, form, 1.0)
    conformance.check_record(quantized, some, form)
    conformance.check_file(quantized, LAYOUT)
    costs = np.square(some.matrix.astype(np.float64)) * (1 if form is None else form.values)
    kept = slowly_kept(costs.reshape(-1).tolist(), round(keep * LAYOUT.numel))
    found = set(np.flatnonzero(quantized.symbols))
    assert found <= kept
    if form is None and keep < 1:
        assert found == kept


def test_fourth_powers_count_where_a_form_has_them():
    some, form = random_weight(LAYOUT), random_form(LAYOUT)
    quartic = QuarticForm(form.values, 10 * random_form(LAYOUT, 5).values)
    squares = np.square(some.matrix.astype(np.float64))
    costs = form.values * squares + quartic.fourth * squares**2
    found = set(np.flatnonzero(Prune(0.2).quantize(some, quartic, 1.0).symbols))
    assert found <= slowly_kept(costs.reshape(-1).tolist(), 48)
    assert found != set(np.flatnonzero(Prune(0.2).quantize(some, form, 1.0).symbols))


def test_the_first_of_equal_weights_are_kept():
    values = w_hat(Prune(0.25).quantize(weight(Layout((4, 4)), 1.0), None, 1.0), Layout((4, 4)))
    assert np.flatnonzero(values).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("keep", [0.02, 0.1, 0.3, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_rounding_what_is_kept_costs_little_against_pruning(keep, seed):
    layout = Layout((60, 50))
    some = random_weight(layout, seed)
    for form in (
        None,
        random_form(layout, seed),
        QuarticForm(random_form(layout, 7).values, random_form(layout).values),
    ):
        quantized = Prune(keep).quantize(some, form, 1.0)
        importance = np.ones_like(some.matrix) if form is None else form.values
        squares = np.square(some.matrix, dtype=np.float64)
        costs = importance * squares + (squares**2 * form.fourth if isinstance(form, QuarticForm) else 0)
        kept = sorted(slowly_kept(costs.reshape(-1).tolist(), round(keep * layout.numel)))
        errors = np.square(some.matrix - w_hat(quantized, layout), dtype=np.float64)
        rounding = importance * errors + (errors**2 * form.fourth if isinstance(form, QuarticForm) else 0)
        left, least = costs.reshape(-1)[kept].sum(), costs.reshape(-1)[kept].min()
        asked = max(0.01 * min(least * len(kept), costs.sum() - left), 2.0**-16 * left)
        assert 0.7 * asked <= rounding.reshape(-1)[kept].sum() <= 1.3 * asked


def test_a_weight_that_costs_nothing_to_lose_is_never_kept():
    some, form = random_weight(LAYOUT), random_form(LAYOUT)
    form.values[:, ::3] = 0
    quantized = Prune(0.9).quantize(some, form, 1.0)
    assert not quantized.symbols[:, ::3].any()
    assert quantized.bits < 14 * LAYOUT.numel
    assert not Prune(1.0).quantize(some, DiagonalForm(np.zeros_like(some.matrix)), 1.0).symbols.any()


def test_a_rounding_costs_a_hundredth_of_the_threshold_of_the_model():
    layout = Layout((60, 50))
    some, form = random_weight(layout), random_form(layout)
    for level in (1e-3, 0.1, 1.0):
        kept = np.square(some.matrix, dtype=np.float64) * form.values >= level
        errors = form.values * np.square(some.matrix - w_hat(Threshold().quantize(some, form, level), layout))
        assert errors[kept].mean() == pytest.approx(0.01 * level, rel=0.3)


@pytest.mark.parametrize("form", [None, random_form(Layout((50, 40)))], ids=["no form", "form"])
def test_files_fall_and_errors_rise_as_less_is_kept(form):
    layout = Layout((50, 40))
    made = [Prune(keep).quantize(random_weight(layout), form, 1.0) for keep in (1.0, 0.5, 0.2, 0.1, 0.05, 0.01)]
    sizes, losses = [len(packed(each, layout).data) for each in made], [each.distortion for each in made]
    assert sizes == sorted(sizes, reverse=True)
    assert losses == sorted(losses)
    assert sizes[3] < 0.3 * sizes[0]


def test_the_water_level_does_not_move_a_fraction_and_is_the_threshold_of_the_model():
    some, form = random_weight(LAYOUT), random_form(LAYOUT)
    assert len({packed(Prune(0.3).quantize(some, form, level), LAYOUT).data for level in (1e-9, 1.0, 1e9)}) == 1
    costs = np.square(some.matrix, dtype=np.float64) * form.values
    for level in (1e-4, 0.1, 1.0):
        quantized = Threshold().quantize(some, form, level)
        conformance.check_record(quantized, some, form)
        assert not quantized.symbols[costs < level].any()
        assert quantized.symbols[costs >= 4 * level].all()
    assert not Threshold().quantize(some, form, 1e9).symbols.any()


def test_importances_below_zero_are_pruned():
    some = random_weight(LAYOUT)
    form = DiagonalForm(np.where(np.arange(10) < 5, np.float32(-1), np.float32(1)) * np.ones((24, 1), np.float32))
    for keep in (0.5, 0.9):
        symbols = Prune(keep).quantize(some, form, 1.0).symbols
        assert np.count_nonzero(symbols[:, 5:]) >= 0.95 * 120
        assert not symbols[:, :5].any()


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan")])
def test_fractions_out_of_range_are_refused(keep):
    with pytest.raises(UsageError, match=r"keep=.* expected a fraction above 0, at most 1"):
        Prune(keep)
