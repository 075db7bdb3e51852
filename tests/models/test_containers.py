"""Inputs in containers of any kind keep their types, and are taken apart by sample."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

import waterfill
from waterfill.errors import CalibrationError
from waterfill.models.batches import arguments, map_tensors, num_samples, pick, take, tensors_in

Scaled = namedtuple("Scaled", "x scale")


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    scale: torch.Tensor
    name: str = "record"

    def __post_init__(self):
        if len(self.x) < 4:
            raise ValueError("too few")


def parts():
    return torch.randn(16, 20), torch.rand(16, 1)


MADE = {
    "named tuple": lambda: Scaled(*parts()),
    "nested named tuple": lambda: (Scaled(*parts()),),
    "dataclass": lambda: Record(*parts()),
    "mapping in a tuple": lambda: (OrderedDict(zip(("x", "scale"), parts(), strict=True)),),
    "user dict in a tuple": lambda: (UserDict(zip(("x", "scale"), parts(), strict=True)),),
    "list in a tuple": lambda: (list(parts()),),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(20, 16), nn.Linear(16, 6)

    def forward(self, inputs):
        if isinstance(inputs, list):
            inputs.append(None)
            x, scale, _ = inputs
        elif isinstance(inputs, OrderedDict | UserDict):
            x, scale = inputs["x"], inputs["scale"]
        else:
            x, scale = inputs.x, inputs.scale
        return self.b(torch.relu(self.a(x)) * scale)


@pytest.mark.parametrize("kind", MADE)
def test_containers_are_compressed_with(kind):
    torch.manual_seed(0)
    data = [(MADE[kind](), torch.randint(6, (16,))) for _ in range(4)]
    result = waterfill.compress(Net(), data, rate=6.0, effort="fast")
    assert result.distortion < 0.1


@pytest.mark.parametrize("kind", MADE)
def test_containers_keep_their_types(kind):
    inputs = MADE[kind]()
    some = take(inputs, 2, 5)
    assert type(some) is type(inputs)
    assert num_samples(some) == 3
    for part, whole in zip(tensors_in(some), tensors_in(inputs), strict=True):
        assert torch.equal(part, whole[2:5])
    assert num_samples(pick(inputs, [1, 1, 0, 3])) == 4
    assert all(each.dtype is torch.float64 for each in tensors_in(map_tensors(inputs, torch.Tensor.double)))
    assert all(each.dtype is torch.float32 for each in tensors_in(inputs))


def test_a_named_tuple_is_one_argument_only_where_forward_takes_one():
    class Two(nn.Module):
        def forward(self, x, scale):
            return x * scale

    inputs = Scaled(*parts())
    assert arguments(Two(), inputs) == (tuple(inputs), {})
    assert arguments(Net(), inputs) == ((inputs,), {})


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.head = kind(5, 16), nn.Linear(16, 6)

    def forward(self, packed):
        _, state = self.layer(packed)
        return self.head((state[0] if isinstance(state, tuple) else state)[-1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("lengths", [(4, 3, 3, 2), (2, 4, 3, 3), (1, 1, 1, 1)])
def test_packed_sequences_are_compressed_with(kind, lengths):
    torch.manual_seed(0)
    data = [
        (pack_sequence([torch.randn(n, 5) for n in lengths], enforce_sorted=False), torch.randint(6, (4,)))
        for _ in range(5)
    ]
    model = Recurrent(kind)
    result = waterfill.compress(model, data, rate=8.0, effort="fast")
    assert result.distortion < 0.1
    assert waterfill.evaluate(model, data, model).samples == 20


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_sequences_are_taken_apart(enforce_sorted):
    every = [torch.randn(n, 5) for n in (4, 3, 2)]
    packed = pack_sequence(every, enforce_sorted=enforce_sorted)
    assert num_samples(packed) == 3
    for found, wanted in zip(unpack_sequence(take(packed, 1, 3)), every[1:], strict=True):
        assert torch.equal(found, wanted)
    for found, wanted in zip(unpack_sequence(pick(packed, [2, 0])), (every[2], every[0]), strict=True):
        assert torch.equal(found, wanted)


def test_inputs_without_samples_are_refused():
    with pytest.raises(CalibrationError, match="no axis that counts samples"):
        num_samples({"x": torch.tensor(1.0)})
    with pytest.raises(CalibrationError, match="no axis that counts samples"):
        num_samples("text")
