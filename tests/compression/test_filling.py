"""Matrices that are quantized group after group spend the bits that there are."""

import numpy as np
import pytest

from waterfill.compression.encoder import Encoder
from waterfill.compression.filling import FillingEncoder
from waterfill.compression.rate_model import VarianceHistogram
from waterfill.quantize import Trellis
from waterfill.records import Layout, Weight

SHAPES = {"a": (64, 64), "b": (128, 96), "c": (32, 64), "d": (40, 8), "bias": (64,)}
SPAN = (2.0**-40, 2.0**20)


def weights(seed):
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in SHAPES.items():
        values = rng.standard_normal(shape).astype(np.float32) * np.float32(2.0 ** rng.integers(-3, 4))
        found[name] = Weight(name, values.reshape(shape[0], -1), Layout(shape))
    return found


def filling(found, bits, times=1.0):
    """Forecasts that are too large or too small by a factor."""
    matrices = [weight for weight in found.values() if not weight.is_vector]
    squares = {weight.name: np.square(weight.matrix, dtype=np.float64) for weight in matrices}
    foreseen = {name: VarianceHistogram.of(each).repeated(times) for name, each in squares.items()}
    return FillingEncoder(Encoder(Trellis(8)), bits, foreseen, SPAN)


@pytest.mark.parametrize("times", [0.8, 0.9, 1.0, 1.2])
@pytest.mark.parametrize("rate", [2.0, 4.0])
def test_bits_are_spent_however_wrong_forecasts_are(rate, times):
    found = weights(0)
    bits = rate * sum(weight.matrix.size for weight in found.values())
    encoder = filling(found, bits, times)
    jobs = {name: encoder.job(weight, None) for name, weight in found.items()}
    done = encoder.quantize(jobs, 2.0**-6)
    assert list(done) == list(jobs)
    assert sum(item.bits for item in done.values()) == pytest.approx(bits, rel=0.03)
    assert encoder.bits == pytest.approx(bits - sum(item.bits for item in done.values()))


def test_the_largest_matrices_come_first_and_each_group_is_half_of_what_is_left():
    encoder = filling(weights(1), 1.0)
    jobs = {name: encoder.job(weight, None) for name, weight in weights(1).items() if name != "bias"}
    assert [sorted(group) for group in encoder._groups(jobs)] == [["b"], ["a"], ["c"], ["d"]]


def test_levels_stay_in_their_span():
    found = weights(2)
    encoder = filling(found, 1.0)
    done = encoder.quantize({name: encoder.job(weight, None) for name, weight in found.items()}, 1.0)
    assert not any(done[name].symbols.any() for name in "abcd")
