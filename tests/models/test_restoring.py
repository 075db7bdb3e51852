"""What a forward pass changes is put back after every pass."""

import copy

import pytest
import torch
from torch import nn

import waterfill
from waterfill.models.batches import call, evaluation


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("m", torch.zeros(5))
        self.register_buffer("passing", torch.zeros(5), persistent=False)
        self.h, self.count, self.log = None, 0, {"all": []}
        self.kept = torch.zeros(5)

    def forward(self, x):
        return self.b(self.change(torch.tanh(self.a(x))))


class InPlace(Net):
    def change(self, h):
        h = h + self.m
        self.m.mul_(0.9).add_(h.mean(0).detach())
        return h


class UsedAfterwards(Net):
    def change(self, h):
        self.m.mul_(0.9).add_(h.mean(0).detach())
        return h * self.m


class Bound(Net):
    def change(self, h):
        h = h + self.m
        self.m = 0.9 * self.m + h.mean(0).detach()
        return h


class Unversioned(Net):
    def change(self, h):
        h = h + self.passing
        self.passing.data += 1
        return h


class Attributes(Net):
    def change(self, h):
        h = (h if self.h is None else h + self.h) * (1 + self.count + len(self.log["all"])) + self.kept
        self.h, self.count = h.mean(0), self.count + 1
        self.log["all"].append(h)
        self.kept += 1
        self.training = True
        return h


class Clamped(Net):
    def change(self, h):
        self.b.weight.data.clamp_(-0.01, 0.01)
        return h


NETS = [InPlace, UsedAfterwards, Bound, Unversioned, Attributes, Clamped]


def state_of(model):
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = {name: copy.deepcopy(vars(model)[name]) for name in ("h", "count", "log", "kept", "training")}
    return {name: value.detach().clone() for name, value in every.items()}, plain


def assert_as_it_was(model, before):
    tensors, plain = state_of(model)
    for name, value in before[0].items():
        assert torch.equal(tensors[name], value), name
    assert str(plain) == str(before[1])


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_every_pass_begins_with_what_was_handed_in(net):
    torch.manual_seed(0)
    model, x = net(), torch.randn(6, 4)
    before, objects = state_of(model), dict(model.named_buffers())
    with evaluation(model), torch.no_grad():
        first = call(model, x)
        assert torch.equal(call(model, x), first)
    assert_as_it_was(model, before)
    assert all(each is objects[name] for name, each in model.named_buffers())


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_gradients_go_through_what_a_pass_has_changed(net):
    torch.manual_seed(0)
    model, x = net(), torch.randn(6, 4, requires_grad=True)
    (wanted,) = torch.autograd.grad(copy.deepcopy(model).eval()(x).sum(), x)
    before = state_of(model)
    with evaluation(model), torch.enable_grad():
        (found,) = torch.autograd.grad(call(model, x).sum(), x)
    torch.testing.assert_close(found, wanted)
    assert_as_it_was(model, before)


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_evaluating_and_compressing_leave_a_model_as_it_was(net):
    torch.manual_seed(0)
    model = net()
    before = state_of(model)
    data = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(4)]
    assert waterfill.evaluate(model, data, reference=model).kl == 0
    result = waterfill.compress(model, data, size_bytes=330, effort="fast")
    assert_as_it_was(model, before)
    assert result.distortion < 1e-2


def test_errors_leave_a_model_as_it_was():
    class Failing(InPlace):
        def forward(self, x):
            super().forward(x)
            raise ValueError("no")

    model = Failing()
    before = state_of(model)
    with pytest.raises(waterfill.errors.CalibrationError):
        waterfill.evaluate(model, [(torch.randn(8, 4), torch.randint(3, (8,)))])
    assert_as_it_was(model, before)


def test_what_the_caller_writes_stays_where_it_says_so():
    model = Net()
    with evaluation(model, writing=True), torch.no_grad():
        model.a.bias.fill_(2)
        model.m.fill_(2)
    assert (model.a.bias == 2).all()
    assert (model.m == 0).all()
