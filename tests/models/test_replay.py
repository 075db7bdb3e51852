"""A pass from the first use of what changed on gives what a full pass gives, and computes less."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from small_nets import Function, param, scrambled
from torch import nn
from torch.overrides import TorchFunctionMode

from waterfill.models import replay
from waterfill.models.batches import call
from waterfill.models.replay import Replay

WIDTH = 4


class Counted(TorchFunctionMode):
    """Counts the function calls that are really made, inside of whatever mode is around them."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        del types
        self.count += 1
        return func(*args, **(kwargs or {}))


def linear():
    return nn.Linear(WIDTH, WIDTH)


def residual(self, x):
    y = self.a(x)
    y += self.b(y)
    y += self.c(y).tanh()
    return self.d(y)


def written_over(self, x):
    y = self.a(x)
    half = y[:, :2]
    z = self.b(y)
    half.mul_(2)
    y[:, 3] = z[:, 0]
    torch.add(z, 1, out=z)
    return self.d(y) + z


def written_over_in_turn(self, x):
    first = self.a(x)
    second = self.b(first)
    first += 1
    third = self.c(second)
    second += 1
    fourth = self.d(third)
    return torch.add(fourth, second, out=third) + first


def looped(self, x):
    y = self.a(x)
    for layer in (self.b, self.a, self.c, self.b):
        y = F.relu(layer(y), inplace=True)
    return y


def functional(self, x):
    y = F.linear(x, weight=self.v, bias=self.u) @ self.w
    y = torch.addmm(self.u, y, self.w)
    parts = list(y.chunk(2, -1))
    parts.reverse()
    rows = x.new_zeros(len(x)).long().tolist()
    rows.pop()
    return torch.cat(parts, -1) * self.u + len(rows)


def without_gradients(self, x):
    with torch.no_grad():
        y = self.a(x)
        y += self.b(y)
    return self.c(y)


def in_inference_mode(self, x):
    with torch.inference_mode():
        y = self.a(x)
        y += self.b(y)
        F.relu_(y)
        z = self.c(y)
        y.copy_(z.tanh())
        return self.d(y) + z


def layers(forward):
    return Function(forward, a=linear(), b=linear(), c=linear(), d=linear())


NETS = {
    "one after the other": lambda: nn.Sequential(linear(), nn.Tanh(), linear(), nn.Tanh(), linear()),
    "relu in place": lambda: nn.Sequential(linear(), nn.ReLU(inplace=True), linear(), nn.ReLU(inplace=True), linear()),
    "norm": lambda: nn.Sequential(linear(), scrambled(nn.BatchNorm1d(WIDTH)), nn.ReLU(inplace=True), linear()),
    "input written over": lambda: nn.Sequential(nn.ReLU(inplace=True), linear(), nn.Tanh(), linear()),
    "residual in place": lambda: layers(residual),
    "views written over": lambda: layers(written_over),
    "written over in turn": lambda: layers(written_over_in_turn),
    "shared": lambda: layers(looped),
    "lstm": lambda: Function(
        lambda self, x: self.b(self.lstm(self.a(x)[None])[0][0]),
        a=linear(),
        lstm=nn.LSTM(WIDTH, WIDTH, 2, bidirectional=True),
        b=nn.Linear(2 * WIDTH, WIDTH),
    ),
    "functional": lambda: Function(functional, u=param(WIDTH), v=param(WIDTH, WIDTH), w=param(WIDTH, WIDTH)),
    "transformer": lambda: nn.Sequential(linear(), nn.Unflatten(1, (1, 4)), nn.TransformerEncoderLayer(4, 2, 8)),
    "no gradients inside": lambda: layers(without_gradients),
    "inference mode inside": lambda: layers(in_inference_mode),
}


@contextmanager
def other(tensors, names):
    """Other values in some tensors."""
    before = {name: tensors[name].clone() for name in names}
    for name in names:
        tensors[name].copy_(1.5 * before[name] + 0.25)
    yield
    for name in names:
        tensors[name].copy_(before[name])


def full(model, x):
    with Counted() as counted:  # as in a replay: some modules compute otherwise when nobody watches them
        output = call(model, x)
    return output.clone(), counted.count


def compare(model, x, changes):
    """Check replays against full passes; returns how many calls each made, as names: (replay, full)."""
    tensors, counts = model.state_dict(keep_vars=True), {}
    with torch.no_grad():
        plain, _ = full(model, x)
        replayed = Replay(model, x, tensors)
        assert torch.equal(replayed.output, plain)
        for names in changes:
            with other(tensors, names):
                with Counted() as counted:
                    found = replayed.run(names)
                found = found.clone()
                expected, calls = full(model, x)
            assert torch.equal(found, expected), names
            counts[tuple(names)] = counted.count, calls
        assert torch.equal(replayed.run([]), plain)
    return counts


@pytest.fixture(params=NETS)
def model(request):
    torch.manual_seed(0)
    return NETS[request.param]().eval()


def changes_of(model):
    names = [name for name, each in model.state_dict().items() if each.is_floating_point()]
    return [*([name] for name in names), *([names[i], names[-i]] for i in range(1, len(names), 2)), names]


def test_the_output_is_that_of_a_full_pass_bit_for_bit(model):
    x = torch.randn(6, WIDTH)
    for names, (replayed, calls) in compare(model, x, changes_of(model)).items():
        assert replayed <= calls, names


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7])
def test_results_that_do_not_fit_are_computed_again(model, fraction, monkeypatch):
    x = torch.randn(6, WIDTH)
    with torch.no_grad():
        everything = Replay(model, x, {})._recorder._bytes
    monkeypatch.setattr(replay, "BUDGET_BYTES", fraction * everything)
    counts = compare(model, x, changes_of(model))
    with torch.no_grad():
        replayed = Replay(model, x, model.state_dict(keep_vars=True))
    assert len(replayed._recorder.results) < replayed.calls
    assert replayed.start([]) <= len(replayed._recorder.results)
    assert counts


def test_only_what_comes_after_the_first_use_is_computed():
    torch.manual_seed(0)
    model = NETS["one after the other"]().eval()
    counts = compare(
        model, torch.randn(6, WIDTH), [["0.weight"], ["0.bias"], ["2.weight"], ["4.weight"], ["4.bias", "2.bias"]]
    )
    computed = {names: replayed for names, (replayed, _) in counts.items()}
    assert computed == {("0.weight",): 7, ("0.bias",): 5, ("2.weight",): 3, ("4.weight",): 1, ("4.bias", "2.bias"): 3}
    assert {calls for _, calls in counts.values()} == {7}  # first the input is sent to where the first weight is


def test_a_result_that_is_written_over_is_computed_again():
    torch.manual_seed(0)
    model = NETS["residual in place"]().eval()
    with torch.no_grad():
        replayed = Replay(model, torch.randn(6, WIDTH), model.state_dict(keep_vars=True))
    assert replayed.start(["d.weight"]) == replayed.calls - 1
    assert replayed.start(["c.weight"]) == replayed.start(["a.bias"]) == 2


def test_a_tensor_that_was_not_seen_may_be_used_anywhere():
    torch.manual_seed(0)
    model = NETS["one after the other"]().append(linear()).eval()
    model.forward = lambda x: nn.Sequential.forward(model[:5], x)
    counts = compare(model, torch.randn(6, WIDTH), [["5.weight"], ["5.weight", "4.weight"]])
    assert set(counts.values()) == {(7, 7)}
    with torch.no_grad():
        assert Replay(model, torch.randn(6, WIDTH), model.state_dict(keep_vars=True)).start([]) == 7


def test_tensors_that_share_memory_are_seen_where_either_is_used():
    torch.manual_seed(0)
    model = nn.Sequential(linear(), nn.Tanh(), linear(), nn.Tanh(), linear())
    model[2].weight = model[0].weight
    model[4].weight = nn.Parameter(model[0].weight.detach().t())
    compare(model.eval(), torch.randn(6, WIDTH), [["0.weight"], ["2.weight"], ["4.weight"], ["4.weight", "2.bias"]])


def test_inputs_of_several_tensors_and_outputs_in_a_dict():
    torch.manual_seed(0)
    model = Function(lambda self, a, b: {"logits": self.a(a) + self.b(b).tanh_()}, a=linear(), b=linear()).eval()
    inputs = {"a": torch.randn(6, WIDTH), "b": torch.randn(6, WIDTH)}
    counts = compare(model, inputs, [["a.bias"], ["b.bias"]])
    assert counts["b.bias",][0] < counts["a.bias",][0]
