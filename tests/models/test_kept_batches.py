"""Data of every kind, read once and the same in every pass."""

import tempfile
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from streams import Once, Samples
from waterfill.errors import CalibrationError, WaterfillError
from waterfill.models.copies import copied, is_plain
from waterfill.models.kept_batches import (
    KeptBatches,
    as_batches,
    known_length,
    of_first_process,
    one_pass,
    without_empty,
)
from waterfill.models.spilling import budget_bytes
from waterfill.processes import ALONE, Processes

X, Y = torch.randn(12, 3), torch.arange(12)
Pair = namedtuple("Pair", "x y")


def samples(length=None):
    return Samples(zip(X, Y, strict=True), length)


class Augmenting(Sequence):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        if not 0 <= index < 3:
            raise IndexError
        rows = slice(4 * index, 4 * index + 4)
        return X[rows] + torch.randn(4, 3), Y[rows]


class ByNumber:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]  # never raises IndexError


def one_buffer():
    x, y = torch.empty(4, 3), np.empty(4, int)
    for start in range(0, 12, 4):
        x.copy_(X[start : start + 4])
        y[:] = Y[start : start + 4]
        yield x, y


SOURCES = {
    "shuffled": lambda: DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
    "workers": lambda: DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, num_workers=2),
    "generator": lambda: ((X[i : i + 4], Y[i : i + 4]) for i in range(0, 12, 4)),
    "stream": lambda: Once([(X[i : i + 4], Y[i : i + 4]) for i in range(0, 12, 4)]),
    "iterable data set": lambda: DataLoader(samples(), batch_size=4),
    "of a true length": lambda: DataLoader(samples(12), batch_size=4),
    "of a length too short": lambda: DataLoader(samples(5), batch_size=4),
    "of a length too long": lambda: DataLoader(samples(99), batch_size=4),
    "augmenting": Augmenting,
    "by number": ByNumber,
    "map": lambda: map(lambda row: (X[row], Y[row]), [slice(0, 4), slice(4, 8), slice(8, 12)]),  # noqa: C417
    "one buffer": one_buffer,
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_pass_sees_the_same_batches(name):
    batches = as_batches(SOURCES[name]())
    first, second = list(batches), list(batches)
    assert len(batches) == len(first) == len(second) == 3
    for (x, y), (other, label) in zip(first, second, strict=True):
        assert torch.equal(x, other)
        assert torch.equal(torch.as_tensor(y), torch.as_tensor(label))
    labels = torch.cat([torch.as_tensor(y) for _, y in first])
    assert torch.equal(labels.sort().values, Y)
    if name != "augmenting":
        assert torch.equal(torch.cat([x for x, _ in first]), X[labels])
    assert torch.equal(batches[-1][0], first[-1][0])


@pytest.mark.parametrize("name", SOURCES)
def test_one_pass_loses_nothing(name):
    opened = one_pass(SOURCES[name]())
    assert len(opened.first) == 2
    assert sum(len(y) for _, y in opened) == 12


def test_lists_stay_as_they_are():
    for data in ([X, X], (X, X, X), [(X, None)], [{"x": X, "n": 3}], [Pair(X, Y)], [(X.numpy(), [0, 1])]):
        assert as_batches(data) is data


class Lazy(Mapping):
    """Another view of a sample whenever it is asked for."""

    def __getitem__(self, key):
        return {"x": torch.randn(2, 3)}[key]

    def __iter__(self):
        return iter(["x"])

    def __len__(self):
        return 1


class LazyPair(Sequence):
    def __getitem__(self, index):
        return (torch.randn(2, 3), torch.zeros(2).long())[index]

    def __len__(self):
        return 2


class LazyDict(dict):
    def __getitem__(self, key):
        return torch.randn(2, 3)


@pytest.mark.parametrize("item", [Lazy(), LazyPair(), LazyDict(x=1), (LazyDict(x=1), Y[:2])])
def test_items_that_change_by_themselves_are_looked_at_once(item):
    assert not is_plain(item)
    batches = as_batches([item, item])
    for one, other in zip(batches, batches, strict=True):
        assert type(one) in (dict, tuple)
        values = [(each["x"] if isinstance(each, dict) else each[0]) for each in (one, other)]
        values = [(each["x"] if isinstance(each, dict) else each) for each in values]
        assert torch.equal(*values)


def test_containers_keep_their_kind():
    held = UserDict({"ids": X})
    for batch in (Pair(X, Y), OrderedDict(x=X), held, [X, (X, {"y": None})]):
        other = copied(batch)
        assert type(other) is type(batch)
    assert copied(held)["ids"] is not X
    assert type(copied([X, (X, {"y": None})])[1]) is tuple
    lock = Once([])
    assert copied({"a": lock, "b": "text"})["b"] == "text"


def test_a_look_is_a_copy():
    batches = as_batches(SOURCES["generator"]())
    for x, _ in batches:
        x.zero_()
    batches[0][0].zero_()
    assert torch.equal(torch.cat([x for x, _ in batches]), X)
    assert [len(each) for each in batches[1:]] == [2, 2]


def test_what_was_read_has_the_attributes_of_the_loader():
    loader = SOURCES["shuffled"]()
    batches = as_batches(loader)
    assert len(batches.dataset) == 12
    assert batches.batch_size == 4
    with pytest.raises(AttributeError):
        _ = batches.nothing
    assert [len(x) for x, _ in copied(batches)] == [4, 4, 4]


def test_tensors_of_inference_mode_are_ordinary_ones_afterwards():
    with torch.inference_mode():
        made = [torch.ones(2, 3)]
        batches = as_batches(iter(made))
        kept = next(iter(batches))
    assert not kept.is_inference()


def test_what_memory_has_no_room_for_is_on_disk_and_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    big = [
        (torch.randn(256, 128), torch.arange(256)),
        {"x": torch.randn(99, 400).bfloat16(), "pair": [torch.zeros(300, 300, dtype=torch.bool), "text"]},
        (torch.randn(64, 64, 16).transpose(0, 1), None),
        (torch.randn(256, 128, dtype=torch.complex64).conj(), None),
    ]
    for budget in (0, 200_000, 1 << 30):
        batches = KeptBatches.read(iter(big), budget=budget)
        assert list(tmp_path.iterdir()) == []
        for _ in range(2):
            for (x, y), (other, label) in zip([*big[:1], *big[2:]], [batches[0], *batches[2:]], strict=True):
                assert torch.equal(x, other)
                assert (y is label is None) or torch.equal(y, label)
                other.zero_()
            assert torch.equal(batches[1]["x"], big[1]["x"])
            assert batches[1]["pair"][1] == "text"


def test_a_file_on_disk_never_has_a_name_for_long(tmp_path, monkeypatch):
    def mapped(*args, **options):
        assert list(tmp_path.iterdir()) == []  # so that a process that is killed leaves nothing
        return from_file(*args, **options)

    from_file = torch.from_file
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(torch, "from_file", mapped)
    open_before = len(list(Path("/dev/fd").iterdir()))
    batches = KeptBatches.read((torch.randn(256, 128) for _ in range(5)), budget=0)
    assert len(batches) == 5 and len(list(Path("/dev/fd").iterdir())) == open_before


def test_no_room_anywhere_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(WaterfillError, match=r"do not fit into memory, nor into .*none.*set TMPDIR"):
        KeptBatches.read(iter([torch.randn(256, 128)]), budget=0)


def test_the_budget_is_a_share_of_what_is_available(monkeypatch):
    assert 0 < budget_bytes() < 1 << 50
    monkeypatch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(OSError))
    assert budget_bytes() == 1 << 30


def fails(after):
    yield from [X] * after
    raise KeyError("lost")


class Fails(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise OSError("no such image")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (fails(0), "data failed at batch 0: KeyError: 'lost'"),
        (fails(2), "data failed at batch 2: KeyError: 'lost'"),
        (DataLoader(Fails(), batch_size=2), "data failed at batch 0: OSError: no such image"),
    ],
)
def test_data_that_fail_are_named(data, message):
    with pytest.raises(CalibrationError, match=message) as error:
        as_batches(data)
    assert error.value.__cause__ is not None


def test_progress_of_reading_is_told():
    told = []
    as_batches(SOURCES["shuffled"](), lambda *step: told.append(step))
    as_batches(SOURCES["of a length too short"](), lambda *step: told.append(step))
    as_batches([X], lambda *step: told.append(step))
    assert told == [("read", 1, 3), ("read", 2, 3), ("read", 3, 3), ("read", 1, 1), ("read", 2, 2), ("read", 3, 3)]


def test_lengths_that_are_not_known_are_not_asked_for():
    assert known_length([X]) == 1
    assert known_length(iter([X])) == known_length(DataLoader(samples(5), batch_size=2)) == known_length(samples()) == 0


def test_empty_batches_are_left_out():
    data = [X[:0], X, (X[:0], Y[:0]), {"x": X}]
    assert [type(each) for each in without_empty(data)] == [torch.Tensor, dict]
    assert len(without_empty(as_batches(iter(data)))) == 2
    for other in ([X], [X[:0]]):
        assert without_empty(other) is other


def test_all_processes_have_the_batches_of_the_first():
    class Pretended(Processes):
        def broadcast(self, value):
            return [X + 1 for _ in value]

        def all_gather(self, value):
            return [value, value]

    two, kept = Pretended(1, 2), as_batches(iter([X]))
    assert torch.equal(of_first_process(kept, two)[0], X + 1)
    assert of_first_process(kept, ALONE) is kept
    assert of_first_process([X], two)[0] is X


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, r"a single tensor float32\[12, 3\].*\[batch\]"),
        ({"x": X}, "a single dict"),
        ("data.npz", "a str"),
        ((X, Y), "a single pair"),
        (3, "a int and cannot be iterated over"),
        (TensorDataset(X, Y), "DataLoader"),
        ([], "has no batches; expected at least one"),
        (iter([]), "has no batches"),
        ((x for x in ()), "has no batches"),
    ],
)
def test_what_is_no_data_is_refused(data, message):
    for read in (as_batches, one_pass):
        with pytest.raises(CalibrationError, match=message):
            read(data)


def test_a_tuple_of_batches_is_data():
    pair = (X, X)
    assert as_batches(pair) is pair
    assert as_batches(((X, Y), (X, Y)))
