"""Batches in other groups."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from waterfill.compression import regrouped
from waterfill.compression.regrouped import RegroupedBatches
from waterfill.models.batches import split


@pytest.fixture(autouse=True)
def _few_together(monkeypatch):
    monkeypatch.setattr(regrouped, "TOGETHER", 10)


def sizes(batches, most=1000):
    found = RegroupedBatches(batches, most)
    assert len(found) == len(list(found))
    return [len(split(batch)[0]) for batch in found]


def test_small_batches_of_a_kind_are_joined():
    assert sizes([torch.randn(4, 3) for _ in range(6)]) == [8, 8, 8]
    assert sizes([torch.randn(size, 3) for size in (2, 12, 3, 3, 3, 2)]) == [2, 12, 9, 2]
    assert sizes([torch.randn(4, size) for size in (3, 3, 5, 5, 3)]) == [8, 8, 4]


def test_samples_and_targets_stay_in_order():
    batches = [(torch.randn(3, 2), torch.arange(3) + 10 * number) for number in range(3)]
    inputs, target = RegroupedBatches(batches, 100)[0]
    assert inputs.equal(torch.cat([each[0] for each in batches]))
    assert target.tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert next(iter(RegroupedBatches(batches[:1], 100))) is batches[0]


def test_every_batch_gives_its_part_of_what_is_wanted():
    batches = [(torch.randn(8, 2), torch.arange(8)) for _ in range(4)]
    found = list(RegroupedBatches(batches, 16))
    assert [target.tolist() for _, target in found] == [[0, 1, 2, 3] * 2] * 2
    assert sizes([torch.randn(8, 2) for _ in range(4)], most=1) == [1]
    assert sizes([torch.randn(2, 2) for _ in range(8)], most=4) == [4]


def test_outputs_go_with_their_samples():
    batches = [torch.randn(8, 2) for _ in range(3)]
    found = RegroupedBatches(batches, 6, [batch.sum(1) for batch in batches])
    (batch,), (reference,) = found, found.references
    assert split(batch)[0].equal(torch.cat([each[:2] for each in batches]))
    assert reference.equal(split(batch)[0].sum(1))
    whole = RegroupedBatches(batches[:2], 6, [torch.zeros(3), torch.zeros(3)])
    assert [len(batch) for batch in whole] == [8, 8]
    assert [len(each) for each in whole.references] == [3, 3]


def test_batches_whose_targets_are_not_one_for_each_sample_stay_alone():
    batches = [(torch.randn(4, 2), torch.tensor(1.0)) for _ in range(2)]
    found = list(RegroupedBatches(batches, 4))
    assert [each is batch for each, batch in zip(found, batches, strict=True)] == [True, True]


def test_inputs_of_several_tensors_are_joined():
    batches = [({"ids": torch.full((2, 3), number), "scale": torch.tensor(2.0)}, None) for number in range(2)]
    batches[1][0]["scale"] = batches[0][0]["scale"]
    (inputs, target), *others = RegroupedBatches(batches, 100)
    assert not others and target is None
    assert inputs["ids"][:, 0].tolist() == [0, 0, 1, 1]


def test_packed_sequences_stay_apart():
    packed = [pack_sequence([torch.randn(1, 5) for _ in range(4)]) for _ in range(3)]
    found = list(RegroupedBatches([(each, torch.zeros(4)) for each in packed], 100))
    assert len(found) == 3 and all(one[0] is other for one, other in zip(found, packed, strict=True))
