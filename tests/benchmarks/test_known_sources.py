"""Rate-distortion functions of the known sources of the page of limits."""

from itertools import takewhile

import numpy as np
import pytest

import known_sources

DISTORTIONS = (1e-4, 0.01, 0.25)


@pytest.fixture(scope="module")
def sources():
    """Weights and functions by name, but for the last ones, whose tables take a second."""
    return {name: each for name, *each in takewhile(lambda each: each[0] != "90 % zeros", known_sources._sources())}


def test_no_source_takes_more_than_a_gaussian_of_its_power(sources):
    for weights, rate in sources.values():
        gaussian = np.log2(np.mean(weights**2) / DISTORTIONS) / 2
        assert np.all([rate(each) for each in DISTORTIONS] <= gaussian + 0.02)  # weights are one draw


def test_functions_are_those_that_are_known(sources):
    functions = {name: rate for name, (_, rate) in sources.items()}
    assert functions["Gaussian"](0.25) == pytest.approx(1.0)
    length = known_sources.INPUTS
    innovations = (1 - 1 / length) * np.log2(1 - 0.81) / 2  # of all but the first, bits
    rate = functions["autoregression of .9 along rows"](1e-4)
    assert rate == pytest.approx(np.log2(1e4) / 2 + innovations, rel=1e-9)
    assert functions["Laplacian"](1e-4) == pytest.approx(
        np.log2(2 * np.e) - np.log2(2 * np.pi * np.e / 1e4) / 2, abs=5e-3
    )
    assert functions["ternary"](1e-4) == pytest.approx(1.5, abs=5e-3)
    assert functions["bimodal"](0.01) == pytest.approx(1.0, abs=0.01)
