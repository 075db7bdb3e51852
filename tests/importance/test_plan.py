"""Which way gradients are taken, and that it is noticed where the fast way does not hold."""

import pytest
import slow_importance
import torch
from small_nets import IMAGES, OUT, SLOWER, Function, close, image_net, values
from torch import nn

from waterfill.importance import regression
from waterfill.importance.plan import Plan, extend
from waterfill.importance.state import differentiable
from waterfill.models.capture import variables


def methods(model, x, plan=None):
    with differentiable(model):
        return extend(plan or Plan(), model, variables(model), x).methods


def agrees(model, *batches):
    found = values(regression().estimate(model, batches, "values"), model)
    close(found, slow_importance.regression(model, torch.cat(batches)))


@pytest.mark.parametrize("case", sorted(IMAGES.keys() - SLOWER))
def test_common_layers_are_captured(case):
    make, size = IMAGES[case]
    model, x = image_net(make(), *size)
    assert set(methods(model, x).values()) <= {"major", "minor"}


def test_other_tensors_are_vectorised():
    make, size = IMAGES["attention"]
    model, x = image_net(make(), *size)
    found = methods(model, x)
    assert {found[name] for name in ("0.a.in_proj_weight", "0.a.in_proj_bias")} == {"vmap"}
    assert found["0.a.out_proj.weight"] in ("vmap", "minor", "major")
    assert found["1.2.weight"] == "major"


def time_first_net(length):
    torch.manual_seed(0)
    model = Function(lambda self, x: self.b(self.a(x.transpose(0, 1))[length // 2].tanh()), a=nn.Linear(3, 4), b=None)
    model.b = nn.Linear(4, OUT)
    return model.double()


@pytest.mark.parametrize("length", [2, 3, 4, 5])
@pytest.mark.parametrize("samples", [2, 3, 4])
def test_the_order_of_rows_is_told_from_gradients_of_one_time_step(length, samples):
    model = time_first_net(length)
    x = torch.randn(samples, length, 3, dtype=torch.float64)
    assert methods(model, x)["a.weight"] == "minor"
    agrees(model, x)


def test_a_plan_made_on_a_single_sample_is_made_again():
    model = time_first_net(3)
    agrees(model, torch.randn(1, 3, 3, dtype=torch.float64), torch.randn(4, 3, 3, dtype=torch.float64))


def test_rows_in_no_order_are_vectorised():
    torch.manual_seed(0)

    def forward(self, x):
        h = self.a(torch.cat([x, x.flip(0)])).tanh()
        return self.b(h[: len(x)] * h[len(x) :].flip(0))

    model = Function(forward, a=nn.Linear(3, 4), b=nn.Linear(4, OUT)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    assert methods(model, x)["a.weight"] == "vmap"
    agrees(model, x)


def test_forwards_that_look_at_values_are_taken_one_by_one():
    torch.manual_seed(0)

    def forward(self, x):
        return torch.stack([self.b((self.w * one if one.sum() > 0 else self.w.exp() * one).tanh()) for one in x])

    model = Function(forward, w=nn.Parameter(torch.randn(3)), b=nn.Linear(3, OUT)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    assert methods(model, x)["w"] == "loop"
    agrees(model, x)


class Experts(nn.Module):
    """Each sample goes through the expert that its first value names."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(3, OUT) for _ in range(3))

    def forward(self, x):
        y = x.new_zeros(len(x), OUT)
        for number, expert in enumerate(self.experts):
            mine = x[:, 0] == number
            if mine.any():
                y = y.index_put((mine,), expert(x[mine]))
        return y


def test_experts_that_the_first_samples_do_not_reach():
    torch.manual_seed(0)
    model = Experts().double()
    x = torch.randn(8, 3, dtype=torch.float64)
    x[:, 0] = torch.tensor([0, 0, 0, 1, 0, 2, 2, 0])
    assert "experts.1.weight" not in methods(model, x)
    agrees(model, x[:4], x[4:])


class Cube(torch.autograd.Function):
    """A function that cannot be watched."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w**3

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w**3, (g * x * 3 * w**2).sum(0)


def test_functions_that_cannot_be_watched_are_taken_one_by_one():
    torch.manual_seed(0)
    model = Function(lambda self, x: self.b(Cube.apply(x, self.w)), w=nn.Parameter(torch.randn(3)), b=nn.Linear(3, OUT))
    model = model.double()
    x = torch.randn(4, 3, dtype=torch.float64)
    assert methods(model, x)["w"] == "loop"
    agrees(model, x)


def test_a_tensor_that_is_also_used_where_it_cannot_be_watched():
    torch.manual_seed(0)
    model = Function(lambda self, x: self.b(Cube.apply(x * self.w, self.w)), w=nn.Parameter(torch.randn(3)), b=None)
    model.b = nn.Linear(3, OUT)
    agrees(model.double(), torch.randn(4, 3, dtype=torch.float64))


def test_a_tensor_without_any_use_costs_nothing():
    model = Function(lambda self, x: self.a(x), a=nn.Linear(3, OUT), idle=nn.Linear(2, 2))
    forms = regression().estimate(model, [torch.randn(4, 3)], "values")
    assert not forms["idle.weight"].values.any()
    assert forms["a.weight"].values.all()


def test_shapes_taken_from_a_tensor_are_no_use_of_it():
    model = Function(
        lambda self, x: self.a(x.to(self.a.weight) + self.a.weight.new_zeros(3) + torch.zeros_like(self.a.weight)[0]),
        a=nn.Linear(3, OUT),
    )
    assert methods(model, torch.randn(4, 3)) == {"a.weight": "major", "a.bias": "major"}
