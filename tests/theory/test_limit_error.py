"""The standard error of a fitted entropy: deviations from the true one have mean 0 and deviation 1 in its unit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from waterfill.theory.scaled_source import fit_scaled_source

TRUE = math.log2(2 * math.pi * math.e) / 2


@pytest.mark.parametrize("scaled", [False, True], ids=["one scale", "scales of rows"])
@pytest.mark.parametrize("shape", [(8, 8), (8, 64), (16, 16), (64, 64)], ids=str)
def test_deviations_are_as_large_as_the_error_says(shape, scaled):
    rng = np.random.default_rng(0)
    deviations = []
    for _ in range(150):
        logs = rng.normal(size=shape[0]) / math.log(2) * scaled
        weights = rng.normal(size=shape) * np.exp2(logs)[:, None]
        found = fit_scaled_source(weights[:, :, None], strict=True)
        entropy = found.unbiased().mean_entropy
        deviations.append((entropy - TRUE - logs.mean()) / found.standard_error)
    assert abs(np.mean(deviations)) < 0.2 + 2 / math.sqrt(150)
    assert np.std(deviations) == pytest.approx(1, abs=0.2 + 2 / math.sqrt(300))


def test_few_values_over_scales_of_their_own_have_no_shape():
    rng = np.random.default_rng(1)
    shapes = [
        fit_scaled_source(rng.normal(size=(16, 16, 1)) * np.exp2(np.arange(16.0))[:, None, None], strict=strict).shape
        for strict in (True, False)
        for _ in range(20)
    ]
    assert set(shapes[:20]) == {2.0} and len(set(shapes[20:])) > 1
