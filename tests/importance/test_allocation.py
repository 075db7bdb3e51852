"""How many signals samples are sent, and that prices from few signals are those of all of them within their error."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from waterfill.importance import KroneckerForm, factors, kronecker
from waterfill.importance.allocation import STANDARD_ERROR, allocate
from waterfill.importance.row_sums import RowSums
from waterfill.importance.squares import row_squares, square_sum
from waterfill.models.uses import Convolution, Dense, Use
from waterfill.records import Layout

state = sys.modules[kronecker.__module__]


def heavy_tailed(samples=300, seed=0):
    """Powers as trained classifiers have them: of a few samples large, of most nearly nothing."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, 1, generator=generator, dtype=torch.float64) ** 30


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_samples_of_the_largest_powers_are_sent_all_signals():
    powers = heavy_tailed()
    found = allocate(powers, 1.0, generator())
    assert 0 < len(found.all_signals) < 60
    least = powers[found.all_signals].min()
    assert not set(found.all_signals) & set(found.one_signal.tolist())
    others = [sample for sample in range(300) if sample not in found.all_signals]
    assert (powers[others] <= least).all()
    assert (found.weights >= 1).all()


def test_samples_that_are_left_out_by_chance_are_counted_by_others():
    powers = heavy_tailed()
    sums = [
        float((found.weights * powers[found.one_signal, 0]).sum() + powers[found.all_signals].sum())
        for found in (allocate(powers, 1.0, generator(seed)) for seed in range(200))
    ]
    assert np.mean(sums) == pytest.approx(float(powers.sum()), rel=4 * np.std(sums) / 200**0.5 / np.mean(sums))
    assert 0 < np.std(sums) / np.mean(sums) < STANDARD_ERROR


@pytest.mark.parametrize("powers", [torch.ones(40, 1), torch.zeros(40, 1), torch.ones(1, 1)])
def test_few_samples_that_are_alike_are_sent_all_signals(powers):
    assert allocate(powers.double(), 1.0, generator()) is None


def test_many_samples_that_are_alike_are_sent_one():
    few, part = (allocate(torch.ones(count, 1).double(), count / 4000, generator()) for count in (4000, 100))
    assert few.all_signals == part.all_signals == []
    assert few.weights.max() < 3


def test_positions_with_signals_of_their_own_make_a_sum_surer():
    assert allocate(torch.ones(60, 1).double(), 1.0, generator()) is None
    found = allocate(torch.ones(60, 10_000).double(), 1.0, generator())
    assert found.all_signals == [] and found.one_signal.tolist() == list(range(60)) and (found.weights == 1).all()


def uncertain_net():
    """Logits that are large, so that few of the samples have an open prediction."""
    torch.manual_seed(0)
    last = nn.Linear(24, 5)
    nn.init.normal_(last.weight, std=10.0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.Sigmoid(), nn.Flatten(), last)


def uncertain_data(batches=3, samples=400):
    return [torch.randn(samples, 2, 4, 4, generator=generator(number)) for number in range(batches)]


def rows_of(forms):
    return {
        name: form.rows * form.columns[0].trace() for name, form in forms.items() if isinstance(form, KroneckerForm)
    }


def of_all_signals(model, data, output, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(state, "allocate", lambda *_: None)
        return kronecker().estimate(model, data, output)


@pytest.mark.parametrize("output", ["logits", "values"])
def test_prices_of_rows_are_those_of_all_signals_within_their_error(output, monkeypatch):
    model, data = uncertain_net(), uncertain_data()
    whole = of_all_signals(model, data, output, monkeypatch)
    found = [kronecker(seed=seed).estimate(model, data, output) for seed in range(4)]
    assert rows_of(whole).keys() == {"0.weight", "3.weight"}
    for name, wanted in rows_of(whole).items():
        priced = wanted > 0.01 * wanted.max()  # of others one sample may be all there is
        errors = [rows_of(forms)[name][priced] / wanted[priced] - 1 for forms in found]
        told = [forms[name].standard_error for forms in found]
        assert 0 < min(told) < 2 * STANDARD_ERROR
        assert np.sqrt(np.mean(np.square(errors))) < 1.5 * np.mean(told)
        np.testing.assert_array_equal(found[0][name].columns, found[1][name].columns)


def test_an_estimate_does_not_depend_on_the_order_of_the_batches():
    model, data = uncertain_net(), uncertain_data()
    one, other = (kronecker().estimate(model, batches, "logits") for batches in (data, data[::-1]))
    for name, rows in rows_of(one).items():
        np.testing.assert_allclose(rows_of(other)[name], rows, rtol=1e-9)
        assert one[name].standard_error > 0


def test_draws_that_are_given_are_drawn_for_every_sample():
    model, data = uncertain_net(), uncertain_data(1)
    few, many = (kronecker(draws=draws).estimate(model, data, "logits")["3.weight"] for draws in (2, 32))
    assert many.standard_error < few.standard_error / 2


def test_the_error_of_a_sum_is_the_spread_of_what_samples_gave():
    found = torch.tensor([[[1.0, 5.0], [3.0, 5.0]]], dtype=torch.float64)
    sums = RowSums.of(found, drawn=True)
    np.testing.assert_allclose(sums.relative_errors(), [2 / 4, 0])
    both = sums.merge(RowSums.of(found, drawn=False))
    np.testing.assert_allclose(both.relative_errors(), [2 / 8, 0])
    assert not RowSums.of(found, drawn=False).relative_errors().any()
    np.testing.assert_allclose(RowSums.of(found[:, :1], drawn=True).relative_errors(), [1, 1])
    assert RowSums.of(found, drawn=True, left_out=2).relative_errors()[1] > 0


def convolution_use(size, groups=1):
    view = Convolution(Layout((6, 4 // groups, 2, 2)), groups, (1, 1), ((0, 0), (0, 0)), (1, 1))
    x = torch.randn(5, 4, size, size, generator=generator(1), dtype=torch.float64)
    gradients = [torch.randn(5, 6, size - 1, size - 1, generator=generator(n), dtype=torch.float64) for n in (2, 3)]
    return Use(0, view, x, 1, 5), gradients


def dense_use(each):
    x = torch.randn(5 * each, 7, generator=generator(1), dtype=torch.float64)
    gradients = [torch.randn(5 * each, 3, generator=generator(n), dtype=torch.float64) for n in (2, 3)]
    return Use(0, Dense(Layout((3, 7))), x, 1, 5 * each), gradients


CASES = {
    "few places": convolution_use(2),
    "many places": convolution_use(6),
    "groups": convolution_use(4, groups=2),
    "one place": dense_use(1),
    "places of a sequence": dense_use(4),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chosen", [None, [0, 3, 4], []])
def test_rows_of_squares_are_squares_summed_over_inputs(case, chosen, monkeypatch):
    use, gradients = CASES[case]
    some = None if chosen is None else torch.tensor(chosen, dtype=torch.long)
    wanted = square_sum([use], [gradients], 5, "major", some).flatten(1).sum(1)
    for size in (1, 2**24):
        monkeypatch.setattr("waterfill.importance.squares.CHUNK_BYTES", size)
        if chosen != []:
            found = row_squares([use], [gradients], 5, "major", some)
            assert found.shape == (2, 5 if chosen is None else len(chosen), len(wanted))
            torch.testing.assert_close(found.sum((0, 1)), wanted)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chosen", [None, [0, 3, 4]])
def test_rows_of_several_calls_are_squares_of_their_sum(case, chosen, monkeypatch):
    use, signals = CASES[case]
    calls, gradients = [use, replace(use, x=use.x.flip(0)), use], [signals, [2 * each for each in signals], signals]
    some = None if chosen is None else torch.tensor(chosen)
    wanted = square_sum(calls, gradients, 5, "major", some).flatten(1).sum(1)
    for short in (True, False):
        monkeypatch.setattr("waterfill.importance.squares._is_short", lambda *_, short=short: short)
        torch.testing.assert_close(row_squares(calls, gradients, 5, "major", some).sum((0, 1)), wanted)


def test_a_factor_over_some_positions_is_that_over_all_in_the_mean(monkeypatch):
    model, data = uncertain_net(), uncertain_data(2)
    whole = kronecker().estimate(model, data, "logits")["0.weight"]
    monkeypatch.setattr(factors, "ENOUGH_POSITIONS", 40)
    some = [kronecker(seed=seed).estimate(model, data, "logits")["0.weight"] for seed in range(20)]
    assert whole.positions == 800 * 4
    assert all(40 * 18 <= each.positions < 60 * 18 for each in some)
    mean = np.mean([each.columns for each in some], axis=0)
    np.testing.assert_allclose(mean, whole.columns, atol=0.02 * np.abs(whole.columns).max())
    assert (some[0].columns == some[0].columns.swapaxes(1, 2)).all()


def test_products_of_many_features_are_those_of_one_product(monkeypatch):
    monkeypatch.setattr(factors, "BLOCK", 3)
    t = torch.randn(4, 2, 8, 5, generator=generator(), dtype=torch.float64)
    found = factors._gram(t)
    torch.testing.assert_close(found, torch.einsum("rgip,rgjp->gij", t, t))
    assert (found == found.transpose(1, 2)).all()
