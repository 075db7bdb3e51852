"""Passes that go on from where they were, against passes from the beginning."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from waterfill.compression import layer_stages
from waterfill.compression.layer_stages import BlockRun
from waterfill.compression.resumed_pass import EXPENSIVE


class Block(nn.Module):
    """Attention and two layers behind it; results of products are written over."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o, self.up, self.down = (nn.Linear(8, 8) for _ in range(6))
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        y = self.norm(x)
        x = x + self.o(F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))
        hidden = self.up(self.norm(x)).mul_(2).relu_()
        return self.down(hidden) + x


class Count(TorchFunctionMode):
    """Counts expensive calls that are computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in EXPENSIVE and not any(each.is_meta for each in args if isinstance(each, torch.Tensor))
        return func(*args, **(kwargs or {}))


STAGES = [["q", "k", "v"], ["o"], ["up"], ["down"]]


@pytest.fixture
def run():
    torch.manual_seed(0)
    block = Block().requires_grad_(False)
    inputs = [torch.randn(2, 5, 8) for _ in range(2)]
    masks = {number: torch.ones(10, dtype=torch.bool) for number in range(2)}
    return block, BlockRun(dict(block.named_parameters()), lambda batch: block(inputs[batch]), masks), inputs


def walk(block, run, change=True):
    """Inputs of every stage, calls that they take, and the output, while matrices change."""
    found, counts = {}, []
    for stage in STAGES:
        names = [f"{name}.weight" for name in stage]
        with Count() as count:
            found |= run.resumed_inputs(names, 0)
        counts.append(count.count)
        for name in stage if change else ():
            block.get_parameter(f"{name}.weight").add_(0.1)
        run.changed(names)
    with Count() as count:
        output = run.output(0)
    return found, [*counts, count.count], output


def test_what_matrices_see_is_that_of_passes_from_the_beginning(run):
    block, passes, inputs = run
    expected, fresh = {}, copy.deepcopy(block)
    for stage in STAGES:
        again = BlockRun(dict(fresh.named_parameters()), lambda batch: fresh(inputs[batch]), passes.masks)
        expected |= again.inputs([f"{name}.weight" for name in stage], 0)
        for name in stage:
            fresh.get_parameter(f"{name}.weight").add_(0.1)
    found, _, output = walk(block, passes)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.equal(found[name], x), name
    assert torch.equal(output, fresh(inputs[0]))


def test_no_product_is_computed_twice_with_the_same_matrices(run):
    counts = walk(*run[:2])[1]
    assert counts[0] == 2, "q and k, before it is known that v reads the same"
    assert counts[1] == 4, "q, k, v with their new values, and attention"
    assert counts[2] == 1, "o"
    assert counts[3] == 1, "up"
    assert counts[4] == 2, "up, which was written over, and down"


def test_results_that_do_not_fit_are_computed_again(run, monkeypatch):
    monkeypatch.setattr(layer_stages, "BUDGET_BYTES", 2 * 3 * 4 * 80)  # q, k and v
    _, counts, output = walk(*run[:2])
    assert counts == [2, 4, 2, 3, 4]
    assert torch.equal(output, run[0](run[2][0]))


def test_passes_begin_anew_when_results_are_forgotten(run):
    block, passes, _ = run
    first = passes.resumed_inputs(["down.weight"], 0)["down.weight"]
    block.q.weight += 1.0
    assert torch.equal(passes.resumed_inputs(["down.weight"], 0)["down.weight"], first)
    passes.forget()
    assert not torch.equal(passes.resumed_inputs(["down.weight"], 0)["down.weight"], first)


class Overwriting(nn.Module):
    """The input of the first layer is written over before the second one is used."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = x.clone()
        y = self.first(x)
        x += y
        return self.second(x)


def test_inputs_are_those_at_the_time_of_the_product():
    net, x = Overwriting().requires_grad_(False), torch.randn(3, 8)
    run = BlockRun(dict(net.named_parameters()), lambda _: net(x), {0: torch.ones(3, dtype=torch.bool)})
    for found in (
        run.inputs(["first.weight", "second.weight"], 0),
        run.resumed_inputs(["second.weight", "first.weight"], 0),
    ):
        assert torch.equal(found["first.weight"], x)
        torch.testing.assert_close(found["second.weight"], x + net.first(x))
