"""The forecast of bits, and how few drafts the search takes with it."""

import numpy as np
import pytest
import torch
from torch import nn

import waterfill
from waterfill.compression.forecast import Forecast
from waterfill.quantize import Feedback
from waterfill.theory.waterfilling import Rectangles


def test_bits_are_those_of_its_rectangles():
    volumes = 2.0 ** np.random.default_rng(0).normal(size=(3, 500), scale=4)
    forecast = Forecast.of((Rectangles(part) for part in volumes), -30, 20)
    for level in (-25.3, -10.0, 0.1, 12.0):
        bits = 0.5 * np.log2(1 + volumes / 2.0**level).sum()
        assert forecast.log_bits(level) == pytest.approx(np.log2(bits), abs=0.02)
        assert forecast.level(forecast.log_bits(level)) == pytest.approx(level, abs=0.01)
    assert (np.diff(forecast.logs) < 0).all()


def test_sizes_beyond_all_levels_are_those_of_the_last_ones():
    forecast = Forecast.of([Rectangles(np.ones(10))], -4, 3)
    assert (forecast.level(100.0), forecast.level(-100.0)) == (-4.0, 3.0)
    assert Forecast.of([], -4, 3).level(5.0) in (-4.0, 3.0)


@pytest.mark.parametrize("rate", [1.5, 4.0])
def test_a_size_takes_few_drafts(rate):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10)).eval()
    batches = [(torch.randn(64, 24), torch.randint(0, 10, (64,))) for _ in range(2)]

    class Counting:
        crossed = True
        levels: list[float] = []  # noqa: RUF012

        def quantize(self, weight, form, water_level):
            self.levels.append(water_level)
            return Feedback(4).quantize(weight, form, water_level)

    Counting.levels.clear()
    result = waterfill.compress(net, batches, rate=rate, effort="fast", quantizers=[Counting()])
    assert 0.99 * rate <= result.rate <= rate
    assert result.importance.startswith("kronecker")
    assert len(set(Counting.levels)) <= 20  # so small a file is another size whenever it is finished
