"""Targets of matrices against least squares, and that they are filled one after the other."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_nets import Function, param
from torch import Tensor, nn

from waterfill.compression import sampled_change, target_correction
from waterfill.compression.sampled_change import sampled_shift
from waterfill.compression.statistics_correction import correct_statistics
from waterfill.compression.target_correction import (
    RIDGE,
    DampedInputs,
    InputChange,
    Requantization,
    compare_inputs,
    recorded,
    sampled,
)
from waterfill.importance.factored import SHRINKAGE
from waterfill.models import clone
from waterfill.models.state_dict import weight_of
from waterfill.models.watch import ProductWatch
from waterfill.records import Layout

ALL = 1 << 30


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


PRODUCTS = {
    "linear": (F.linear, (4, 3), (900, 3)),
    "on sequences": (F.linear, (4, 3), (60, 15, 3)),
    "turned": (lambda x, w: x @ w, (3, 4), (900, 3)),
    "convolution": (lambda x, w: F.conv2d(x, w, stride=2, padding=1), (3, 2, 3, 3), (60, 2, 7, 6)),
    "grouped": (lambda x, w: F.conv2d(x, w, groups=2), (6, 2, 2, 2), (40, 4, 5, 6)),
    "depthwise": (lambda x, w: F.conv2d(x, w, groups=4, padding="same"), (4, 1, 3, 3), (40, 4, 6, 6)),
    "transposed": (lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1), (3, 2, 3, 3), (60, 3, 4, 5)),
    "transposed grouped": (lambda x, w: F.conv_transpose1d(x, w, groups=2), (4, 3, 2), (80, 4, 9)),
}


def seen(call, w, x):
    """How a product reads its input, and the input as it is seen."""
    found = []
    with ProductWatch({"w": w}, lambda _, view, x: bool(found.append((view, x)))):
        call(x, w)
    return found[0]


def least_squares(call, w, x, other):
    """The tensor whose product with the other input is nearest to that of `w` with its own, by trying each value."""
    columns = []
    for index in range(w.numel()):
        one = torch.zeros(w.numel(), dtype=torch.float64)
        one[index] = 1
        columns.append(call(other.double(), one.reshape(w.shape)).reshape(-1))
    wanted = call(x.double(), w.double()).reshape(-1)
    return np.linalg.lstsq(torch.stack(columns, 1).numpy(), wanted.numpy(), rcond=None)[0].reshape(w.shape)


def target(call, w, x, other):
    view, own = seen(call, w, x)
    return values(compare_inputs(view, recorded(view, own, w, ALL), seen(call, w, other)[1], w), w)


def values(inputs, tensor):
    """The target of a tensor, in its own shape."""
    weight = inputs.target(weight_of("w", tensor.detach(), Layout(tuple(tensor.shape))))
    return weight.layout.from_matrix(weight.matrix).reshape(tensor.shape)


# Targets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", PRODUCTS)
def test_a_target_is_least_squares_of_the_outputs_of_the_original(case):
    call, shape, size = PRODUCTS[case]
    w, x = torch.randn(shape), torch.randn(size)
    other = x + 0.5 * torch.randn(size) + 0.3 * x.roll(1, 1)
    expected, found = least_squares(call, w, x, other), target(call, w, x, other)
    assert (found.shape, found.dtype) == (tuple(shape), np.float32)
    far = np.linalg.norm(expected - w.numpy())
    assert far > 0.1 * np.linalg.norm(w)
    assert np.linalg.norm(found - expected) < 0.02 * far  # damped by 0.3 inputs / positions


def test_inputs_that_stay_leave_the_target_where_it_is():
    call, shape, size = PRODUCTS["grouped"]
    w, x = torch.randn(shape), torch.randn(size)
    assert np.array_equal(target(call, w, x, x.clone()), w)


@pytest.mark.parametrize("dead", [[1], [0, 1, 2]])
def test_columns_of_dead_inputs_stay(dead):
    w, x = torch.randn(4, 3), torch.randn(500, 3)
    other = x + 0.5 * torch.randn(500, 3)
    other[:, dead] = 0
    found = target(F.linear, w, x, other)
    alive = [column for column in range(3) if column not in dead]
    assert np.array_equal(found[:, dead], w.numpy()[:, dead])
    expected = least_squares(F.linear, w, x, other)
    np.testing.assert_allclose(found[:, alive], expected[:, alive], rtol=0.01, atol=0.01)


def test_a_dead_group_stays():
    call, shape, size = PRODUCTS["depthwise"]
    w, x = torch.randn(shape), torch.randn(size)
    other = x + 0.5 * torch.randn(size)
    x[:, 2] = other[:, 2] = 0
    found = target(call, w, x, other)
    assert np.array_equal(found[2], w[2]) and not np.allclose(found[3], w[3], atol=0.01)


@pytest.mark.parametrize(("factor", "trusted"), [(0.55, True), (0.45, False), (-1.0, False), (float("nan"), False)])
def test_a_target_farther_than_the_weights_are_long_is_not_trusted(factor, trusted):
    w, x = torch.randn(4, 3), torch.randn(9000, 3)
    found = target(F.linear, w, x, factor * x)
    if trusted:
        np.testing.assert_allclose(found, w / factor, rtol=1e-3)
    else:
        assert np.array_equal(found, w)


def test_fewer_positions_change_less():
    w, x = torch.randn(4, 32), torch.randn(6, 32)
    other = x + 0.5 * torch.randn(6, 32)
    changes = [np.linalg.norm(target(F.linear, w, x.repeat(n, 1), other.repeat(n, 1)) - w.numpy()) for n in (1, 4, 99)]
    assert changes == sorted(changes)
    nearest = w.numpy() @ (x - other).T.numpy() @ np.linalg.pinv(other.T.numpy())  # the shortest that fits exactly
    assert 0 < changes[0] < 0.8 * np.linalg.norm(nearest)


# Samples --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [1, 7, 70, 200, ALL])
@pytest.mark.parametrize("case", PRODUCTS)
def test_samples_of_two_passes_are_of_the_same_positions(case, positions):
    call, shape, size = PRODUCTS[case]
    view, x = seen(call, torch.randn(shape), torch.randn(size))
    groups, _, inputs = view.sizes
    found = sampled(view, x, positions)
    assert torch.equal(sampled(view, 2 * x, positions), 2 * found)
    assert (found.dtype, found.shape[:2]) == (torch.float32, (groups, inputs))
    everything = view.inputs(x).permute(1, 2, 0, 3).flatten(2)
    assert min(positions, everything.shape[2]) <= found.shape[2] <= max(positions + len(x), positions)
    columns = {tuple(column) for column in everything.flatten(0, 1).T.tolist()}
    drawn = [tuple(column) for column in found.flatten(0, 1).T.tolist()]
    assert set(drawn) <= columns
    if positions == ALL:
        assert sorted(drawn) == sorted(map(tuple, everything.flatten(0, 1).T.tolist()))
    elif case in ("linear", "convolution"):
        assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("case", PRODUCTS)
def test_inputs_at_some_places_are_those_of_all(case):
    call, shape, size = PRODUCTS[case]
    view, x = seen(call, torch.randn(shape), torch.randn(size))
    everything = view.inputs(x)
    assert view.places(x) == everything.shape[-1]
    some = torch.randperm(view.places(x))[:5]
    assert torch.equal(view.inputs(x, some), everything[..., some])


def test_samples_are_of_all_rows_as_many_of_each():
    call, shape, _ = PRODUCTS["convolution"]
    x = torch.arange(30.0).reshape(30, 1, 1, 1).expand(30, 2, 9, 9) + 1
    view, x = seen(lambda x, w: F.conv2d(x, w), torch.randn(shape), x)
    rows, counts = sampled(view, x, 95)[0, 0].unique(return_counts=True)
    assert (rows.tolist(), set(counts.tolist())) == ([float(i) for i in range(1, 31)], {4})
    rows = sampled(view, x, 12)[0, 0]
    assert len(rows.unique()) == len(rows) == 12
    assert call(x, torch.randn(shape)).shape[0] == 30


# In sequence ----------------------------------------------------------------------------------------------------------


class Refill:
    """Gives a tensor values near the ones that it should have, and keeps those."""

    def __init__(self, model):
        self.originals = dict(model.named_parameters(remove_duplicate=False))
        self.targets = {}

    def __call__(self, names, inputs):
        return {name: self.fill(name, values(inputs[name], self.originals[name])) for name in names}

    def fill(self, name, target):
        assert name not in self.targets
        self.targets[name] = target.copy()
        return torch.from_numpy(self.filled(target))

    @staticmethod
    def filled(values):
        return (0.9 * values + 0.05).astype(np.float32)


def worse(model):
    """A copy with noise on its matrices."""
    twin = clone(model)
    with torch.no_grad():
        for each in twin.parameters():
            if each.ndim > 1:
                each += 0.2 * each.std() * torch.randn_like(each)
    return twin


def refilled(model, data, names=None, twin=None):
    refill, twin = Refill(model), worse(model) if twin is None else twin
    names = [name for name, each in model.named_parameters() if each.ndim > 1] if names is None else names
    correct_statistics(model, twin, data, sequence=Requantization(names, refill))
    return twin, refill.targets


def slow_target(w, x, other):
    """Least squares with a pull towards the matrix itself, as further equations."""
    w, x, other = (each.double().numpy() for each in (w, x, other))
    pull = (SHRINKAGE * x.shape[1] / len(x) + RIDGE) * np.square(other).mean()
    rows = np.concatenate([other, np.sqrt(len(x) * pull) * np.eye(x.shape[1])])
    wanted = np.concatenate([(x - other) @ w.T, np.zeros((x.shape[1], len(w)))])
    return w + np.linalg.lstsq(rows, wanted, rcond=None)[0].T


def slow_sequence(model, twin, x):
    """Layer after layer of a Sequential, each time from the start."""
    twin, targets = copy.deepcopy(twin), {}
    for index, layer in enumerate(twin):
        if isinstance(layer, nn.Linear):
            before, now = model[:index](x), twin[:index](x)
            targets[f"{index}.weight"] = slow_target(model[index].weight, before, now)
            layer.weight.copy_(torch.from_numpy(Refill.filled(targets[f"{index}.weight"])))
            layer.bias += (model[index](before) - layer(now)).mean(0)
    return twin, targets


def chain():
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9), nn.ReLU(inplace=True), nn.Linear(9, 4)).eval()


def test_every_matrix_is_filled_on_the_inputs_that_the_filled_ones_before_it_give():
    model, data = chain(), [torch.randn(40, 6), torch.randn(23, 6)]
    start = worse(model)
    with torch.no_grad():
        expected, targets = slow_sequence(model, start, torch.cat(data))
    twin, found = refilled(model, data, twin=clone(start))
    assert list(found) == ["0.weight", "2.weight", "4.weight"]
    assert np.array_equal(found["0.weight"], model[0].weight.detach())
    for name, values in found.items():
        np.testing.assert_allclose(values, targets[name], rtol=1e-4, atol=1e-5)
    for name, each in twin.state_dict().items():
        torch.testing.assert_close(each, expected.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert not np.allclose(found["2.weight"], model[2].weight.detach(), atol=0.01)


def test_only_tensors_that_are_named_are_filled():
    model = chain()
    start = worse(model)
    twin, found = refilled(model, [torch.randn(40, 6)], ["2.weight", "4.weight"], clone(start))
    assert list(found) == ["2.weight", "4.weight"] and torch.equal(twin[0].weight, start[0].weight)


def test_they_are_filled_in_the_order_of_their_use():
    model = Function(
        lambda self, x: self.a(torch.tanh(self.c(x) @ self.b)),
        a=nn.Linear(5, 3),
        b=param(4, 5),
        c=nn.Linear(6, 4),
    )
    _, found = refilled(model, [torch.randn(40, 6)])
    assert list(found) == ["c.weight", "b", "a.weight"]


def test_they_are_filled_once_where_norms_are_corrected_in_two_passes():
    model = Function(
        lambda self, x: self.b(self.norm(self.norm(self.a(x)))),
        a=nn.Linear(6, 6),
        norm=nn.BatchNorm1d(6),
        b=nn.Linear(6, 3),
    )
    _, found = refilled(model, [torch.randn(40, 6)])
    assert list(found) == ["a.weight", "b.weight"]


LEFT_ALONE = {
    "used twice": lambda: Function(
        lambda self, x: self.b(self.a(self.a(x))), a=nn.Linear(6, 6, bias=False), b=nn.Linear(6, 6)
    ),
    "in an lstm": lambda: Function(
        lambda self, x: self.b(self.a(x[None])[0][0]), a=nn.LSTM(6, 6, bias=False), b=nn.Linear(6, 6)
    ),
    "turned": lambda: Function(lambda self, x: self.b(F.linear(x, self.a.t())), a=param(6, 6), b=nn.Linear(6, 6)),
    "used elsewhere": lambda: Function(
        lambda self, x: self.b(x @ self.a) + self.a.sum(), a=param(6, 6), b=nn.Linear(6, 6)
    ),
    "a factor": lambda: Function(lambda self, x: self.b(x * self.a[0]), a=param(6, 6), b=nn.Linear(6, 6)),
    "never used": lambda: Function(lambda self, x: self.b(x), a=nn.Linear(6, 6, bias=False), b=nn.Linear(6, 6)),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_other_tensors_are_left_alone(case):
    model = LEFT_ALONE[case]().eval()
    start = worse(model)
    twin, found = refilled(model, [torch.randn(40, 6)], twin=clone(start))
    assert list(found) == ["b.weight"]
    for name, each in twin.state_dict().items():
        assert name.startswith("b") or torch.equal(each, start.state_dict()[name])


def test_tied_tensors_are_left_alone():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)).eval()
    model[2].weight = model[0].weight
    twin, found = refilled(model, [torch.randint(0, 7, (8, 5))])
    assert list(found) == ["1.weight"] and twin[2].weight is twin[0].weight


def test_the_original_and_the_state_of_torch_are_left_alone():
    model = chain().train()
    model[2].weight.requires_grad_(False)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    refilled(model, [torch.randn(40, 6)], twin=clone(model))
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not model[2].weight.requires_grad and model[0].weight.requires_grad
    assert random is not None and torch.is_grad_enabled()


def test_inputs_that_do_not_fit_are_sampled(monkeypatch):
    seen_by, real = [], target_correction.sampled
    monkeypatch.setattr(target_correction, "BUDGET_BYTES", 4 * 9 * 3 * 20)
    monkeypatch.setattr(target_correction, "sampled", lambda *given: seen_by.append(real(*given)) or seen_by[-1])
    refilled(chain(), [torch.randn(400, 6)])
    assert [each.shape[2] for each in seen_by] == [22] * 6  # of 6 + 9 + 9 inputs
    assert all(isinstance(each, Tensor) for each in seen_by)


def shift(seen, change, damping, matrix, rows=1):
    """How far the target of a matrix is from it."""
    return InputChange(DampedInputs(seen, damping), change, rows).shift(matrix)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_target_is_the_same_solved_for_alone_or_for_many_rows(groups):
    inputs = torch.randn(groups, 5, 40, dtype=torch.float64)
    seen, change = inputs @ inputs.mT / 40, 0.1 * torch.randn(groups, 5, 5, dtype=torch.float64)
    matrix = np.random.default_rng(0).normal(size=(4 * groups, 5)).astype(np.float32)
    damped = seen + torch.diag_embed((0.01 * 5 + 1e-4) * seen.diagonal(dim1=1, dim2=2).mean(1)[:, None].expand(-1, 5))
    expected = (torch.from_numpy(matrix).double().reshape(groups, 4, 5) @ change @ damped.inverse()).reshape(-1, 5)
    for rows in (4, 5, 100):
        np.testing.assert_allclose(shift(seen, change, 0.01, matrix, rows), expected, rtol=1e-5, atol=1e-6)


def test_many_inputs_are_factored_in_single_precision(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 30)) @ rng.standard_normal((30, 30))
    other = x + 0.2 * rng.standard_normal(x.shape)
    seen, change = other.T @ other / 400, (x - other).T @ other / 400
    matrix = rng.standard_normal((7, 30)).astype(np.float32)
    damping = 0.01
    damped = seen + (damping * 30 + RIDGE) * np.diag(seen).mean() * np.eye(30)
    expected = matrix @ np.linalg.solve(damped, change.T).T
    given = torch.from_numpy(seen)[None], torch.from_numpy(change)[None]
    np.testing.assert_allclose(shift(*given, damping, matrix), expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(target_correction, "IN_DOUBLE", 4)
    found = shift(*given, damping, matrix)
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=1e-3)
    assert np.abs(found - expected).max() > 0


def test_a_factor_that_single_precision_does_not_have_is_found_in_double(monkeypatch):
    monkeypatch.setattr(target_correction, "IN_DOUBLE", 1)
    monkeypatch.setattr(target_correction, "RIDGE", 0.0)
    seen = torch.tensor([[[1.0, 1 - 1e-9], [1 - 1e-9, 1.0]]], dtype=torch.float64)
    moves = shift(seen, 1e-12 * seen, 0.0, np.float32([[1, 2]]))
    np.testing.assert_allclose(moves, 1e-12 * np.float32([[1, 2]]), rtol=1e-3)


@pytest.mark.parametrize("case", ["linear", "turned", "convolution", "grouped", "transposed grouped"])
def test_samples_themselves_give_the_target_of_their_products(case, monkeypatch):
    call, shape, size = PRODUCTS[case]
    w, x = torch.randn(shape), torch.randn(size)
    other = x + 0.5 * torch.randn(size) + 0.3 * x.roll(1, 1)
    expected = target(call, w, x, other)
    monkeypatch.setattr(target_correction, "is_flat", lambda *_: True)
    monkeypatch.setattr(sampled_change, "RESIDUAL", 1e-6)
    np.testing.assert_allclose(target(call, w, x, other), expected, atol=2e-4)
    monkeypatch.setattr(sampled_change, "STEPS", 0)
    assert np.abs(target(call, w, x, other) - expected).max() > 2e-4


def test_rows_of_few_values_are_solved_to_a_residual_each():
    generator = torch.Generator().manual_seed(0)
    now = torch.randn(2, 40, 60, generator=generator)
    before = now + torch.tensor([[1e-3], [1.0]])[..., None] * torch.randn(2, 40, 60, generator=generator)
    weights = torch.randn(2, 3, 40, generator=generator)
    found = sampled_shift(weights @ before, now, weights, 1e-3, RIDGE)
    moves = torch.from_numpy(found).reshape(2, 3, 40).double()
    seen = now.double() @ now.double().transpose(1, 2) / 60
    means = seen.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    damped = seen + (1e-3 * 40 + RIDGE) * means * torch.eye(40)
    wanted = weights.double() @ (before - now).double() @ now.double().transpose(1, 2) / 60
    left = (moves @ damped - wanted).norm(dim=2) / wanted.norm(dim=2)
    assert (left <= 1.01 * sampled_change.RESIDUAL).all()
    assert (left > 1e-4).all()


def test_targets_of_samples_that_are_too_far_are_not_trusted():
    now = torch.ones(1, 2, 4)
    weights = torch.tensor([[[1.0, 2.0]]])
    assert sampled_shift(weights @ (9 * now), now, weights, 0.0, RIDGE) is None
    assert not sampled_shift(weights @ now, now * torch.nan, weights, 0.0, RIDGE).any()
    silent = sampled_shift(0 * now[:, :1], 0 * now, weights, 0.0, RIDGE)
    np.testing.assert_array_equal(silent, np.float32([[0, 0]]))


def test_matrices_of_few_rows_and_many_inputs_are_flat():
    assert sampled_change.is_flat(16, 8192)
    assert not sampled_change.is_flat(400, 8192)
    assert not sampled_change.is_flat(1, 1023)
