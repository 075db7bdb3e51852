import warnings
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from waterfill.errors import CalibrationError
from waterfill.models.batches import (
    call,
    describe,
    evaluation,
    num_samples,
    pick,
    split,
    take,
)

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("batch", "inputs", "target"),
    [
        (X, X, None),
        ((X, Y), X, Y),
        ([X, Y], X, Y),
        ((X, None), X, None),
        ((X,), (X,), None),
        ((X, X, X), (X, X, X), None),
        ({"x": X}, {"x": X}, None),
        (((X, X), Y), (X, X), Y),
        (({"x": X}, Y), {"x": X}, Y),
    ],
)
def test_a_pair_is_input_and_target_and_nothing_else_is(batch, inputs, target):
    found = split(batch)
    assert found[0] is inputs or found[0] == inputs
    assert found[1] is target


def test_targets_may_be_arrays_and_lists():
    assert torch.equal(split((X, np.array([0, 1, 2, 0])))[1], Y)
    assert torch.equal(split((X, [0, 1, 2, 0]))[1], Y)
    with pytest.raises(CalibrationError, match=r"target of a batch is a dict.*\(\(first, second\), None\)"):
        split((X, {"y": Y}))


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.ones((4, 3)), torch.float32),
        (np.ones((4, 3), "float16"), torch.float16),
        (np.ones((4, 3), ">f4"), torch.float32),
        (np.ones((4, 3), "int32")[::-1], torch.int32),
        (np.broadcast_to(np.float32(1), (4, 3)), torch.float32),
    ],
)
def test_arrays_are_tensors(array, dtype):
    for batch in (array, (array, Y), {"x": array}, ((array, X), None)):
        inputs, _ = split(batch)
        first = inputs["x"] if isinstance(inputs, dict) else inputs[0] if isinstance(inputs, tuple) else inputs
        assert first.dtype == dtype
        assert torch.equal(first, torch.ones(4, 3, dtype=dtype))
    assert split((X, array))[1].shape == (4, 3)


class WritesOver(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.linear = how, nn.Linear(3, 2)

    def forward(self, x):
        self.how(x)
        return self.linear(x["x"].pop() if isinstance(x, dict) else x)


@pytest.mark.parametrize(
    ("how", "batch"),
    [
        (lambda x: torch.relu_(x), X),
        (lambda x: x.mul_(2), (X,)),
        (lambda x: x.__setitem__(0, 7.0), {"x": X}),
        (lambda x: x["x"][0].zero_(), ({"x": [X]},)),
    ],
)
def test_a_model_may_write_over_its_inputs(how, batch):
    before = X.clone()
    call(WritesOver(how), batch)
    assert torch.equal(X, before)
    assert not isinstance(batch, tuple) or not isinstance(batch[0], dict) or len(batch[0]["x"]) == 1


def test_samples_are_counted_on_the_first_tensor():
    assert num_samples(X) == num_samples((X, Y)) == num_samples({"a": [X], "b": 1}) == 4
    for bad in (torch.tensor(1.0), "text", (), {"a": None}):
        with pytest.raises(CalibrationError, match=r"no axis that counts samples; expected tensors \[samples"):
            num_samples(bad)


def test_samples_are_taken_from_every_tensor_that_has_them():
    inputs = {"x": X, "mask": torch.ones(2, 2), "pair": (Y, 3)}
    part = take(inputs, 1, 3)
    assert torch.equal(part["x"], X[1:3])
    assert part["mask"].shape == (2, 2)
    assert torch.equal(part["pair"][0], Y[1:3])
    assert part["pair"][1] == 3
    assert torch.equal(pick(X, [0, 1, 0]), X[[0, 1, 0]])


def model(answer):
    class Answers(nn.Module):
        def forward(self, x, y=None):
            return answer(x if y is None else x + y)

    return Answers()


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: x,
        lambda x: (x, None),
        lambda x: [None, x, 2 * x],
        lambda x: {"logits": x, "loss": x.sum()},
        lambda x: {"text": "", "y": x, "z": 2 * x},
        lambda x: OrderedDict(loss=x.sum(), logits=x),
        lambda x: SimpleNamespace(logits=x, loss=x.sum()),
    ],
)
def test_outputs_of_every_kind(answer):
    assert torch.equal(call(model(answer), X), X)


def test_inputs_of_every_kind():
    echo = model(lambda x: x)
    for inputs in (2 * X, (X, X), [X, X], {"x": X, "y": X}):
        assert torch.equal(call(echo, inputs), 2 * X)


class OneDict(nn.Module):
    def forward(self, batch):
        return batch["x"]


class OneDictAndMore(nn.Module):
    def forward(self, batch, scale=1):
        return scale * batch["x"]


class WholeOrByName(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize("net", [OneDict, OneDictAndMore, WholeOrByName])
def test_a_dict_is_one_argument_where_no_entry_is(net):
    assert torch.equal(call(net(), {"x": X}), X)


def test_a_batch_that_does_not_fit_is_named():
    with pytest.raises(CalibrationError) as error:
        call(nn.Linear(5, 2), X, index=7)
    assert "Batch 7 does not fit the model: its inputs float32[4, 3] raised RuntimeError: " in str(error.value)
    assert "mat1 and mat2 shapes" in str(error.value)
    assert "Expected what the model's forward takes; give batches of that shape and dtype" in str(error.value)
    assert isinstance(error.value.__cause__, RuntimeError)
    with pytest.raises(CalibrationError, match=r"A batch .*\(x=int64\[4\], z=str\) raised TypeError"):
        call(nn.Linear(3, 2), {"x": Y, "z": "no"})


def test_describe_shows_shapes_and_types():
    assert describe((X, {"m": Y > 0}, None)) == "(float32[4, 3], (m=bool[4]), NoneType)"


def test_evaluation_puts_everything_back():
    net = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    net[1].eval()
    net[1][0].train()
    net[0].weight.requires_grad_(False)
    net[0].bias.grad = torch.ones(2)
    modes = [module.training for module in net.modules()]
    with pytest.raises(KeyError), evaluation(net) as same:
        assert same is net
        assert not any(module.training for module in net.modules())
        for parameter in net.parameters():
            parameter.requires_grad_(True)
        net(X).sum().backward()
        raise KeyError
    assert [module.training for module in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert [p.grad is None for p in net.parameters()] == [True, False, True, True]
    assert torch.equal(net[0].bias.grad, torch.ones(2))


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(nn.Linear(3, 2), X)
