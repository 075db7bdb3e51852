"""Gradients are checked by moving the tensors: what they do not show is priced by what a move costs."""

import pytest
import torch
from small_nets import Function
from torch import nn
from torch.nn.functional import linear

import waterfill
from waterfill.compression.moved_tensors import MOVED


class Shrunk(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(_ctx, gradient):
        return 0.01 * gradient


class Reversed(Shrunk):
    @staticmethod
    def backward(_ctx, gradient):
        return -gradient


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return (64 * x).round() / 64

    @staticmethod
    def backward(_ctx, _gradient):
        return None


class WithoutBackward(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return x.view_as(x)


def read_as_numpy(self, x):
    return self.head(torch.relu(linear(x, torch.from_numpy(self.body.weight.detach().numpy().copy()), self.body.bias)))


def read_as_numbers(self, x):
    return self.head(torch.relu(linear(x, torch.tensor(self.body.weight.tolist()), self.body.bias)))


def rounded(self, x):
    return self.head(torch.relu(linear(x, Rounded.apply(self.body.weight), self.body.bias)))


def signs(self, x):
    return self.head(torch.relu(linear(x, self.body.weight.sign() / 4, self.body.bias)))


def detached_activation(self, x):
    return self.head(torch.relu(self.body(x)).detach())


def shrunk_gradient(self, x):
    return self.head(Shrunk.apply(torch.relu(self.body(x))))


def detached_rows(self, x):
    weight = torch.cat([self.body.weight[:16].detach(), self.body.weight[16:]])
    return self.head(torch.relu(linear(x, weight, self.body.bias)))


def without_backward(self, x):
    return self.head(WithoutBackward.apply(torch.relu(self.body(x))))


def plain(self, x):
    return self.head(torch.relu(self.body(x)))


def detached_weight(self, x):
    return self.head(torch.relu(linear(x, self.body.weight.detach(), self.body.bias.detach())))


def data_of_weight(self, x):
    return self.head(torch.relu(linear(x, self.body.weight.data, self.body.bias.data)))


def everything_detached(self, x):
    h = torch.relu(linear(x, self.body.weight.data, self.body.bias.data))
    return linear(h, self.head.weight.data, self.head.bias.data)


def reversed_gradient(self, x):
    return self.head(Reversed.apply(torch.relu(self.body(x))))


def hook_inside(self, x):
    h = torch.relu(self.body(x))
    if h.requires_grad:
        h.register_hook(torch.zeros_like)
    return self.head(h)


def net(forward):
    torch.manual_seed(0)
    model = Function(forward, body=nn.Linear(20, 32), head=nn.Linear(32, 6))
    model.head.weight.data *= 6
    return model


def compressed(model, **options):
    torch.manual_seed(1)
    inputs = torch.randn(64, 20)
    with torch.no_grad():
        targets = model(inputs).argmax(1)
    data = [(inputs[i : i + 16], targets[i : i + 16]) for i in range(0, 64, 16)]
    result = waterfill.compress(model, data, rate=5.0, effort="fast", **options)
    return result, {row.name: row for row in result.tensors}


@pytest.mark.parametrize(
    "forward",
    [
        *(read_as_numpy, read_as_numbers, rounded, signs),
        *(detached_activation, shrunk_gradient, detached_rows, without_backward),
    ],
)
def test_a_tensor_whose_effect_gradients_do_not_show_is_priced_by_moving_it(forward):
    result, rows = compressed(net(forward))
    assert rows["body.weight"].reason == MOVED
    assert rows["body.weight"].rate > 1
    assert result.distortion < 0.1


@pytest.mark.parametrize(
    "forward",
    [plain, detached_weight, data_of_weight, everything_detached, reversed_gradient, hook_inside],
)
def test_gradients_that_can_be_had_are_believed(forward):
    result, rows = compressed(net(forward))
    assert not any(row.reason for row in rows.values() if row.name.endswith("weight"))
    assert forward not in (reversed_gradient, hook_inside) or result.data == compressed(net(plain))[0].data


def test_hooks_on_gradients_have_no_part_and_stay():
    model = net(plain)
    model.body.weight.register_hook(torch.zeros_like)
    model.head.register_full_backward_hook(lambda _module, into, _out: tuple(0 * each for each in into))
    assert compressed(model)[0].data == compressed(net(plain))[0].data
    assert len(model.body.weight._backward_hooks) == len(model.head._backward_hooks) == 1


def test_a_model_without_any_gradient_is_compressed_and_says_so():
    def forward(self, x):
        hidden = torch.relu(torch.from_numpy(linear(x, self.body.weight).detach().numpy()))
        return torch.from_numpy(linear(hidden, self.head.weight).detach().numpy())

    result, rows = compressed(net(forward))
    assert rows["body.weight"].reason == rows["head.weight"].reason == MOVED
    assert rows["body.weight"].rate > 1
    assert "priced by moving" in result.notes[0]
    assert result.distortion < 0.1


def test_a_hard_gate_is_priced_by_a_move_that_crosses_it():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.gate, self.head = nn.Linear(20, 32), nn.Linear(20, 32), nn.Linear(32, 6)

        def forward(self, x):
            return self.head(self.body(x) * (self.gate(x) > 0))

    torch.manual_seed(0)
    _, rows = compressed(Gated())
    assert rows["gate.weight"].reason == MOVED
    assert rows["gate.weight"].rate > 1
    assert not rows["body.weight"].reason


@pytest.mark.parametrize("output", ["values", "logits"])
def test_half_precision_norms_and_recurrent_layers_raise_no_alarm(output):
    class Ordinary(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.GRU(20, 8, batch_first=True)
            self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 6)

        def forward(self, x):
            return self.head(self.norm(self.layer(x)[0][:, -1]))

    torch.manual_seed(0)
    model = Ordinary().eval().bfloat16()
    data = [torch.randn(8, 4, 20).bfloat16() for _ in range(4)]
    result = waterfill.compress(model, data, rate=8.0, effort="fast", output=output)
    assert not any(MOVED in row.reason for row in result.tensors)
