"""Exact sums that are the same bits for every split of the batches over processes, and in every order."""

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from waterfill.errors import CalibrationError, UsageError
from waterfill.importance import exact_sum
from waterfill.importance.exact_sum import ExactSum
from waterfill.processes import Processes


@dataclass
class Board:
    """Where processes that are threads meet."""

    count: int
    values: dict = field(default_factory=dict)

    def __post_init__(self):
        self.barrier = threading.Barrier(self.count, timeout=20)

    def exchange(self, rank, value):
        self.values[rank] = value
        self.barrier.wait()
        found = [self.values[each] for each in range(self.count)]
        self.barrier.wait()
        return found


@dataclass(frozen=True)
class Thread(Processes):
    """A process that is a thread."""

    board: Board = None

    def broadcast(self, value):
        return self.board.exchange(self.rank, value)[0]

    def all_gather(self, value):
        return self.board.exchange(self.rank, value)

    def all_reduce(self, tensors):
        every = self.board.exchange(self.rank, dict(tensors))
        names = sorted({name for each in every for name in each})
        return {name: sum(each[name] for each in every if name in each) for name in names}


def added(shares):
    """The totals of every process, each with its own batches."""
    board, found, wrong = Board(len(shares)), [None] * len(shares), []

    def work(rank):
        try:
            sums = ExactSum(Thread(rank, len(shares), board))
            for batch in shares[rank]:
                sums.add(batch)
            found[rank] = sums.totals()
        except (CalibrationError, threading.BrokenBarrierError) as error:  # to be seen in the main thread
            wrong.append(error)
            board.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]
    return found


def some_batches(count=8):
    """Statistics as batches give them: of all sizes, some missing, in single and in double precision."""
    random = np.random.default_rng(0)
    batches = []
    for number in range(count):
        scale = 10.0 ** random.uniform(-3, 3)
        batch = {
            "gram:a": torch.from_numpy(scale * random.standard_normal((3, 4))).float(),
            "squares:a": torch.from_numpy(scale * random.random(5)),
            "count:": torch.tensor([random.integers(1, 9)]).float(),
        }
        if number % 3 == 2:  # an expert that the first batch does not reach
            batch["gram:b"] = torch.from_numpy(0.01 * scale * random.standard_normal((3, 4))).float()
            batch["late:b"] = torch.from_numpy(random.random(2))
        batches.append(batch)
    return batches


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == torch.float64
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_any_split_and_order_gives_the_same_bits(processes):
    batches = some_batches()
    expected = added([batches])[0]
    random = np.random.default_rng(processes)
    for _ in range(3):
        rest = [batches[index] for index in random.permutation(np.arange(1, len(batches)))]
        shares = [[batches[0]], *([rest.pop()] for _ in range(processes - 1))]
        for batch in rest:
            shares[random.integers(processes)].append(batch)
        for found in added(shares):
            same(found, expected)


def test_they_are_as_exact_as_the_unit_of_the_first_batch():
    batches = some_batches()
    found = added([batches])[0]
    for name, total in found.items():
        expected = sum(batch[name].double() for batch in batches if name in batch)
        first = batches[0].get(name, batches[0].get(name.partition(":")[0] + ":a"))
        largest = 8.0 if first is None else float(first.abs().max())
        assert (total - expected).abs().max() <= len(batches) * largest * 2.0**-40, name


def test_a_value_is_counted_to_the_nearest_unit():
    values = torch.from_numpy(np.random.default_rng(0).random(100))
    unit = 2.0 ** (np.frexp(float(values.max()))[1] - 40)
    sums = ExactSum(Processes())
    sums.add({"gram:a": values})
    assert (sums.totals()["gram:a"] - values).abs().max() <= unit / 2


def test_whole_numbers_are_exact():
    sums = ExactSum(Processes())
    for number in (3.0, 5.0, 2.0**20):
        sums.add({"count:": torch.tensor([number])})
    assert sums.totals()["count:"].tolist() == [8.0 + 2**20]


def test_what_is_added_is_not_changed():
    values = {"gram:a": torch.tensor([1.5, 2.0], dtype=torch.float64)}
    sums = ExactSum(Processes())
    for _ in range(2):
        sums.add(values)
    assert values["gram:a"].tolist() == [1.5, 2.0]
    assert sums.totals()["gram:a"].tolist() == [3.0, 4.0]
    assert not sums.totals(), "they are let go"


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_what_is_not_finite_or_far_too_large_is_refused(wrong, first):
    sums = ExactSum(Processes())
    if first or wrong == 1e300:
        sums.add({"gram:layer.weight": torch.ones(3)})
    with pytest.raises(CalibrationError, match=r"statistics of 'layer\.weight' are not finite, or a million times"):
        sums.add({"gram:layer.weight": torch.tensor([1.0, wrong, 1.0], dtype=torch.float64)})


def test_a_million_times_the_first_batch_is_still_added():
    sums = ExactSum(Processes())
    sums.add({"gram:a": torch.ones(2)})
    sums.add({"gram:a": torch.full((2,), 1e6)})
    assert sums.totals()["gram:a"].tolist() == [1e6 + 1] * 2


def test_a_sum_that_has_no_room_is_refused():
    sums = ExactSum(Processes())
    sums.add({"gram:a": torch.ones(1)})
    with pytest.raises(CalibrationError, match="'a'"):
        for _ in range(9):
            sums.add({"gram:a": torch.full((1,), -1e6)})


def test_zeros_in_the_first_batch_say_nothing_of_the_others():
    sums = ExactSum(Processes())
    sums.add({"gram:a": torch.ones(2), "gram:b": torch.zeros(2)})
    sums.add({"gram:a": torch.ones(2), "gram:b": torch.full((2,), 3.0)})
    assert sums.totals()["gram:b"].tolist() == [3.0, 3.0]


def test_rounding_in_the_first_batch_says_nothing_of_the_others():
    sums = ExactSum(Processes())
    sums.add({"plain:a": torch.ones(2), "plain:b": torch.tensor([1e-15, 1e-14])})
    sums.add({"plain:a": torch.ones(2), "plain:b": torch.full((2,), 3.0)})
    assert sums.totals()["plain:b"].tolist() == pytest.approx([3.0, 3.0], rel=1e-12)
    small = ExactSum(Processes())
    small.add({"plain:a": torch.ones(1), "plain:b": torch.full((1,), 1e-9)})
    assert small.totals()["plain:b"].tolist() == pytest.approx([1e-9], rel=1e-6)


def test_a_name_that_the_first_batch_lacks_is_counted_like_its_kind():
    sums = ExactSum(Processes())
    sums.add({"gram:a": torch.full((2,), 1000.0), "gram:b": torch.ones(2), "count:": torch.ones(1)})
    sums.add({"gram:c": torch.full((2,), 900.5), "squares:c": torch.full((1,), 2.0)})
    totals = sums.totals()
    assert totals["gram:c"].tolist() == [900.5, 900.5]
    assert totals["squares:c"].tolist() == [2.0]


def test_empty_tensors_are_sums_too():
    sums = ExactSum(Processes())
    for _ in range(2):
        sums.add({"squares:a": torch.zeros(0, 3), "count:": torch.ones(1)})
    assert sums.totals()["squares:a"].shape == (0, 3)


def test_every_process_needs_a_batch():
    assert Processes(1, 3).share([0, 1, 2, 3, 4]) == [1, 4]
    with pytest.raises(UsageError, match="There are 2 batches for 3 processes; expected at least one each"):
        Processes(0, 3).share([0, 1])


def test_large_sums_are_in_single_precision_however_small(monkeypatch):
    monkeypatch.setattr(exact_sum, "LARGE", 3)
    values = torch.from_numpy(np.random.default_rng(0).random(8)).float() * 2.0**-100
    sums = ExactSum(Processes())
    for _ in range(2):
        sums.add({"gram:a": values, "plain:a": values[:2]})
    totals = sums.totals()
    assert totals["gram:a"].dtype == torch.float32
    assert totals["plain:a"].dtype == torch.float64
    assert torch.equal(totals["gram:a"], 2 * values)


def test_values_of_any_type_and_layout_are_added():
    values = torch.arange(6.0).reshape(2, 3)
    for some in (values.T, values.half(), values.to(torch.int64), values.double()):
        sums = ExactSum(Processes())
        sums.add({"gram:a": some})
        assert torch.equal(sums.totals()["gram:a"], some.double())
