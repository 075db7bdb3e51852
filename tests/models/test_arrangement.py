"""How tuples of several tensors are read."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from waterfill.models.arrangement import (
    ArrangedBatches,
    Arrangement,
    MaskedText,
    arranged,
    arranged_pass,
    arrangement,
    as_given,
    is_masked,
    masked_text,
)
from waterfill.models.batches import split
from waterfill.models.kept_batches import as_batches, one_pass

X, Z, Y = torch.randn(8, 5), torch.randn(8, 7), torch.randint(3, (8,))
Three = namedtuple("Three", "image question answer")


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Linear(7, 3)


class Two(Joined):
    def forward(self, x, z):
        return self.a(x) + self.b(z)


class Several(Joined):
    def forward(self, *parts):
        x, z = parts
        return self.a(x) + self.b(z)


class NeedsBoth(Joined):
    def forward(self, x, z=None, scale=1.0):
        return self.a(x) + scale * self.b(z)


class Optional(Joined):
    def forward(self, x, z=None):
        return self.a(x) if z is None else self.a(x) + self.b(z)


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Embedding(3, 3)

    def forward(self, x, label):
        return self.a(x) + self.b(label)


@pytest.mark.parametrize(
    ("model", "batch", "expected"),
    [
        (Two(), (X, Z), Arrangement(2, 2)),
        (Two(), [X, Z], Arrangement(2, 2)),
        (Two(), (X.numpy(), Z.numpy()), Arrangement(2, 2)),
        (Two(), (X, Z, Y), Arrangement(2, 3)),
        (Two(), Three(X, Z, Y), Arrangement(2, 3)),
        (Two(), (X, Z, Z), Arrangement(2, 3)),
        (Several(), (X, Z), Arrangement(2, 2)),
        (Several(), (X, Z, Y), Arrangement(2, 3)),
        (NeedsBoth(), (X, Z), Arrangement(2, 2)),
        (Optional(), (X, Z), Arrangement(2, 2)),
        (Conditional(), (X, Y), Arrangement(2, 2)),
        (nn.Bilinear(5, 7, 3), (X, Z), Arrangement(2, 2)),
        (nn.CosineSimilarity(), (X, X), Arrangement(2, 2)),
    ],
)
def test_several_inputs_are_understood(model, batch, expected):
    notes = []
    assert arrangement(model, batch, notes.append) == expected
    assert len(notes) == 1
    assert f"read as 2 inputs {'and a target' if expected.parts == 3 else 'without a target'}" in notes[0]
    inputs, target = split(expected(batch))
    assert len(inputs) == 2
    assert (target is None) == (expected.parts == 2)


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (nn.Linear(5, 3), (X, Y)),
        (nn.Linear(5, 3), (X, Z)),
        (nn.Linear(5, 3), X),
        (nn.Linear(5, 3), (X,)),
        (nn.Linear(5, 3), (X, None)),
        (nn.Linear(5, 3), (X, Y, Y)),
        (nn.LSTM(5, 3), (X, Y)),
        (Two(), ((X, Z), Y)),
        (Two(), ((X, Z), None)),
        (Two(), {"x": X, "z": Z}),
        (Two(), (X, X)),
        (Several(), ((X, Z), Y)),
        (Optional(), (X, Y)),
        (Optional(), (X, torch.eye(3)[Y])),
        (Optional(), (X, torch.tensor(1))),
        (NeedsBoth(), (X, Z, torch.tensor(2.0))),
    ],
)
def test_what_is_read_right_stays(model, batch):
    notes = []
    assert arrangement(model, batch, notes.append) is None
    assert notes == []
    data = [batch]
    assert arranged(model, data) is data


def test_a_pair_that_can_be_both_is_noted():
    class Square(nn.Module):
        def forward(self, x, other=None):
            return x if other is None else x * other

    notes = []
    assert arrangement(Square(), (X, X), notes.append) is None
    assert "read as (input, target), though the model takes both as inputs" in notes[0]


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(Two()).train()
    arrangement(model[0], (X, Z))
    assert model[0].training
    assert all(each.grad is None for each in model.parameters())


def test_arranged_batches_can_be_read_again_and_come_back_as_given():
    for data in ([(X, Z, Y), (X, Z, Y), (X, Z)], as_batches(iter([(X, Z, Y)]))):
        found = arranged(Two(), data)
        assert isinstance(found, ArrangedBatches)
        assert as_given(found) is data
        assert len(found) == len(data)
        for _ in range(2):
            (first, second), target = next(iter(found))
            assert torch.equal(first, X)
            assert torch.equal(second, Z)
            assert torch.equal(target, Y)
        assert len(found[0]) == 2
    assert as_given([X])[0] is X


def test_a_pass_is_arranged_too():
    found = arranged_pass(Two(), one_pass(iter([(X, Z, np.arange(8))] * 3)))
    assert [len(batch[0]) for batch in found] == [2, 2, 2]
    plain = one_pass([X])
    assert arranged_pass(nn.Linear(5, 3), plain) is plain


IDS = torch.arange(12).reshape(3, 4)
ENDS = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(12, 5)

    def forward(self, ids, padding_mask=None):
        return self.words(ids) * (1 if padding_mask is None else padding_mask[..., None])


@pytest.mark.parametrize("mask", [ENDS, ENDS.flip(1), ENDS.bool(), torch.ones(3, 4)])
def test_tokens_and_their_mask_are_understood(mask):
    assert is_masked((IDS, mask))
    notes = []
    assert arrangement(Reader(), (IDS, mask), notes.append) == MaskedText("ids", "padding_mask")
    assert set(masked_text([[IDS, mask]], notes.append)[0]) == {"input_ids", "attention_mask"}
    assert notes[0].startswith("Pairs are read as (ids, padding_mask)")
    assert notes[1].startswith("Pairs are read as (input_ids, attention_mask)")


@pytest.mark.parametrize(
    "batch",
    [
        (IDS, IDS.roll(-1, 1)),
        (IDS, torch.tensor([[1, 0, 1, 0]] * 3)),
        (IDS, torch.zeros(3, 4).long()),
        (IDS, ENDS[:, :3]),
        (IDS.float(), ENDS),
        (ENDS, ENDS),
        (IDS, None),
        IDS,
        {"input_ids": IDS},
    ],
)
def test_other_pairs_are_no_masked_text(batch):
    assert not is_masked(batch)
    data = [batch]
    assert masked_text(data, print) is data
