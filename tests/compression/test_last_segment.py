"""The last matrices of a directory spend what is left, by an encoder whose bits are known."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from waterfill.compression.encoder import Job
from waterfill.compression.last_segment import LastSegmentEncoder
from waterfill.compression.rate_control import SegmentForecast, SpendBudget
from waterfill.compression.rate_model import VarianceHistogram
from waterfill.records import Layout, Weight

RNG = np.random.default_rng(0)
MATRICES = {
    name: RNG.normal(0, spread, (rows, 40)).astype(np.float32)
    for name, spread, rows in [("a", 1, 40), ("b", 4, 60), ("c", 2, 30)]
}
FORECASTS = {name: VarianceHistogram.of(np.full(each.size, each.var())) for name, each in MATRICES.items()}


@dataclass(frozen=True)
class Bits:
    """Something quantized, of which only its size is known."""

    bits: float


@dataclass
class KnownBits:
    """Matrices take more than is foreseen, each kind by another factor; vectors take nothing."""

    more: dict
    levels: list = field(default_factory=list)

    def quantize(self, jobs, level):
        found = {}
        for name, job in jobs.items():
            if not job.weight.is_vector:
                self.levels.append((name, level))
            whole = FORECASTS.get(name.partition("[")[0])
            share = 0.0 if whole is None else job.weight.matrix.size / whole.number
            found[name] = Bits(0.0 if whole is None else share * self.more[name[0]] * whole.forecast(level))
        return found


def job(name, matrix):
    return Job(Weight(name, matrix, Layout(matrix.shape)), None, None, None)


def bias(name):
    return Job(Weight(name, np.ones((1, 5), np.float32), Layout((5,))), None, None, None)


def walked(more, stages, limit=2000):
    """All levels, and how many bits of those that may be spent are left."""
    budget = SpendBudget(limit, 8.0 * limit, {"s": SegmentForecast(FORECASTS)})
    encoder = KnownBits(more)
    last = LastSegmentEncoder(encoder, budget, FORECASTS)
    taken = 0.0
    for stage in stages:
        found = last.quantize(stage, budget.level("s"))
        assert list(found) == list(stage)
        taken += sum(each.bits for each in found.values())
    assert taken == pytest.approx(last.taken)
    return encoder.levels, budget.left(taken) / (8 * limit)


STAGES = [{name: job(name, each), "bias": bias("bias")} for name, each in MATRICES.items()]


def test_what_is_foreseen_rightly_is_quantized_once():
    levels, left = walked(dict.fromkeys("abc", 1.0), STAGES)
    assert [name for name, _ in levels] == list("abc")
    assert np.ptp([np.log2(level) for _, level in levels]) < 0.02
    assert 0 <= left <= 0.005


def test_only_the_last_matrix_is_quantized_again():
    levels, left = walked({"a": 1.1, "b": 1.0, "c": 1.3}, STAGES)
    names = [name for name, _ in levels]
    assert names[:2] == ["a", "b"]
    assert set(names[2:]) == {"c"} and 2 <= len(names[2:]) <= 4
    assert 0 <= left <= 0.005


def test_of_matrices_that_go_together_the_largest_is_last():
    levels, left = walked({"a": 1.2, "b": 1.0, "c": 0.8}, [{k: v for each in STAGES for k, v in each.items()}])
    assert sorted(name for name, _ in levels[:2]) == ["a", "c"]
    assert {name for name, _ in levels[2:]} == {"b"}
    assert 0 <= left <= 0.005


def test_rows_of_a_table_are_parts_of_what_was_foreseen():
    table = MATRICES["b"]
    parts = [{name: job(name, table[rows])} for name, rows in {"b[0:30]": slice(30), "b[30:60]": slice(30, 60)}.items()]
    levels, left = walked(dict.fromkeys("abc", 1.1), [STAGES[0], STAGES[2], *parts])
    assert [name for name, _ in levels][:3] == ["a", "c", "b[0:30]"]
    assert {name for name, _ in levels[3:]} == {"b[30:60]"}
    assert 0 <= left <= 0.005


def test_where_nothing_is_left_the_level_goes_up_and_the_budget_is_not_met():
    levels, left = walked({"a": 1.0, "b": 9.0, "c": 1.0}, STAGES)
    assert left < 0
    assert levels[-1][1] > 100 * levels[0][1]
