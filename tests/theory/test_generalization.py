"""Bits of a file and what they can have learnt of the training data."""

import numpy as np
import pytest

from waterfill.errors import UsageError
from waterfill.theory.generalization import generalization_bound


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_the_best_of_some_classifiers_on_coin_flips_is_below_the_bound_and_near(bits):
    samples, trials = 400, 1500
    right = np.random.default_rng(bits).binomial(samples, 0.5, size=(trials, 2**bits)) / samples
    gap = float((right.max(axis=1) - 0.5).mean())  # of the test error, which is 1/2, over the training error
    bound = generalization_bound(bits, samples, 0.5)
    assert 0.45 * bound < gap < bound


def test_it_falls_with_the_square_root_of_rate_over_samples():
    whole = generalization_bound(4000, 100, 1.5)
    assert generalization_bound(1000, 100, 1.5) == pytest.approx(whole / 2)
    assert generalization_bound(4000, 400, 1.5) == pytest.approx(whole / 2)
    assert generalization_bound(0, 1, 1.0) == 0


def test_wrong_arguments_are_named():
    with pytest.raises(UsageError, match="samples is 0"):
        generalization_bound(1, 0, 1.0)
    with pytest.raises(UsageError, match="bits is -1"):
        generalization_bound(-1, 1, 1.0)
