"""Nothing our coder makes of a Gaussian linear model lies below the bound, in code length or in a file."""

from math import log, sqrt

import numpy as np
import pytest

from waterfill.codec import container
from waterfill.codec.scales import side_bits
from waterfill.files import WaterfillFile
from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import Scalar
from waterfill.records import Coded, Entry, Layout, Weight
from waterfill.theory import linear_rate_distortion
from waterfill.theory.waterfilling import Rectangles

OUT, IN = 128, 256
IMPORTANCE = np.geomspace(0.1, 10.0, IN)
"""Powers of the inputs, over two decades."""

CERTAIN = 3 / (sqrt(2 * OUT * IN) * log(2))
"""Three standard errors of the mean of `-log2 p` of so many Gaussian weights, bits per weight.

The bound is for the average over the source, and a layer is one draw of it: in `-log2 p(w) = const + z^2 / (2 ln 2)`
the square of a standard Gaussian z has the variance 2."""

CLOSE = 0.35
"""What the symbols may lose above 1.5 bit: a quarter of a bit by uniform steps, the rest by tables and their scales."""

DEVIATIONS = {
    "independent": np.ones((OUT, 1)),
    "row-scaled": np.geomspace(1 / 8, 8, OUT)[:, None],
}
"""Standard deviations of the weights in each row, the true ones."""


def bound(deviations, distortion):
    """Bits per weight of the source at a distortion of the whole layer."""
    return Rectangles(deviations**2 * IMPORTANCE).rate_at_distortion(distortion) / (OUT * IN)


def coded(deviations, level, quantizer, seed):
    """Code length, size in the file and its part for scales, in bits per weight, and the distortion of a reader."""
    matrix = (deviations * np.random.default_rng(seed).standard_normal((OUT, IN))).astype(np.float32)
    weight = Weight("weight", matrix, Layout((OUT, IN)))
    form = DiagonalForm(np.broadcast_to(IMPORTANCE, (OUT, IN)).astype(np.float32))
    quantized = quantizer.quantize(weight, form, level * np.exp(np.log(deviations**2 * IMPORTANCE).mean()))
    entry = Entry("weight", (OUT, IN), "float32", Coded(weight.layout))
    packed = container.pack((entry,), {"weight": quantized}, {}, "test")
    w_hat = WaterfillFile(packed.data)["weight"].numpy().astype(np.float64)
    distortion = float((np.square(w_hat - matrix) * IMPORTANCE).sum())
    assert quantized.distortion == pytest.approx(distortion, rel=1e-5)
    rule, spread = quantized.rule, quantized.spread
    side = side_bits(rule.scales) + side_bits(spread.scales, rule.scales)
    bits = np.array([quantized.bits, 8 * packed.tensor_bytes["weight"], side])
    return *(bits / (OUT * IN)), distortion


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("octaves", [-1, 0, 1, 2, 3, 5, 7, 10])
@pytest.mark.parametrize("deviations", DEVIATIONS.values(), ids=DEVIATIONS)
def test_a_layer_costs_at_least_the_bound_and_not_much_more(deviations, octaves, seed):
    length, size, scales, distortion = coded(deviations, 2.0**-octaves, Scalar(), seed)
    least = bound(deviations, distortion)
    assert 0.05 < least < 5.1
    assert length >= least - CERTAIN
    assert size >= least - CERTAIN
    if least > 1.5:
        assert size - scales < least + CLOSE


@pytest.mark.parametrize("lmbda", [0.0, 0.02, 0.3])
def test_no_price_of_a_bit_leads_below(lmbda):
    for octaves in (0, 2, 6):
        for deviations in DEVIATIONS.values():
            length, size, _, distortion = coded(deviations, 2.0**-octaves, Scalar(lmbda), 3)
            assert min(length, size) >= bound(deviations, distortion) - CERTAIN


@pytest.mark.parametrize("octaves", [0, 4, 10])
def test_rows_of_one_scale_cost_as_often_the_rate_of_one_row(octaves):
    distortion = 2.0**-octaves * 0.5 * OUT * IMPORTANCE.sum()
    row = linear_rate_distortion(np.ones(IN), IMPORTANCE, distortion / OUT)
    assert bound(DEVIATIONS["independent"], distortion) == pytest.approx(row / IN, rel=1e-9)


def test_the_standard_error_is_that_of_layers():
    squares = [np.square(np.random.default_rng(seed).standard_normal((OUT, IN))).mean() for seed in range(200)]
    assert np.std(squares) / (2 * log(2)) == pytest.approx(CERTAIN / 3, rel=0.15)
