"""Fits of weights that few would call weights: no warning of NumPy, and the same source at every scale."""

import numpy as np
import pytest

from waterfill.bases.turning import coefficients
from waterfill.records import CHANNELS, Cosines, Layout
from waterfill.theory.scaled_source import fit_scaled_source
from waterfill.theory.sources import fit_gaussian, fit_generalized_gaussian, fit_laplace

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.normal(size=(8, 8, 3))
SPOT = np.arange(64).reshape(8, 8, 1) == 5
WEIGHTS = {
    "normal": NORMAL,
    "two values": np.sign(NORMAL),
    "an outlier": np.where(SPOT, 1e20, RANDOM.normal(size=(8, 8, 1))),
    "nearly equal": 1 + 1e-15 * NORMAL,
    "rows of equal weights": np.repeat(RANDOM.normal(size=(8, 1, 1)), 8, 1),
    "rows of other scales": NORMAL * np.logspace(-100, 100, 8)[:, None, None],
    "rows and columns of other scales": NORMAL
    * np.logspace(-40, 40, 8)[:, None]
    * np.logspace(-40, 40, 8)[:, None, None],
    "heavy tails": NORMAL**15,
    "zeros": NORMAL * (np.arange(8) > 3)[:, None, None],
    "two": np.array([[[1.0], [2.0]]]),
}
FITS = (fit_gaussian, fit_laplace, fit_generalized_gaussian)


def test_a_tensor_whose_weights_that_are_looked_at_are_equal():
    weights = np.full((1, 1 << 18, 1), 0.25)
    weights[0, 1::4] = 0.375
    weights[0, 3::4] = 0.125  # every second is looked at, and equal to the mean
    assert np.isfinite(fit_scaled_source(weights).standard_error)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("scale", [1.0, 2.0**-120, 2.0**100])
def test_fits_go_with_the_scale_and_without_a_warning(weights, scale):
    for fit in FITS:
        plain, scaled = fit(weights), fit(weights * scale)
        assert np.allclose(scaled.entropy - plain.entropy, np.log2(scale), atol=1e-6)
        assert np.isfinite(scaled.variance).all() and np.isfinite(scaled.entropy_power).all()
    found = fit_scaled_source(weights * scale)
    assert np.isfinite(found.standard_error) and not np.isnan(found.entropy_powers(weights * scale)).any()


def test_cosines_of_a_ramp_are_fitted_without_a_warning():
    ramp = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    cosines = coefficients(ramp, Cosines(CHANNELS, 64), Layout(ramp.shape))
    found = fit_scaled_source(cosines[:, :, None].astype(np.float64), strict=True)
    assert np.isfinite(found.mean_entropy)
