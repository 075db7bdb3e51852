"""Orderings of hidden units: the same function, and how many bits they are."""

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import nn

from waterfill.errors import UsageError
from waterfill.theory.symmetry import permutation_bits
from waterfill.zoo import resnet


def test_it_is_the_logarithm_of_the_number_of_orderings():
    assert permutation_bits([5]) == pytest.approx(math.log2(120))
    assert permutation_bits([3, 4]) == pytest.approx(math.log2(6 * 24))
    assert permutation_bits([]) == permutation_bits([0, 1]) == 0


def test_no_code_of_the_function_alone_saves_more():
    rows, n = range(6), 4  # rows of weights, drawn independently and uniformly
    orderings = Counter(tuple(sorted(each)) for each in itertools.product(rows, repeat=n))
    functions = -sum(k / 6**n * math.log2(k / 6**n) for k in orderings.values())
    assert n * math.log2(6) - permutation_bits([n]) < functions < n * math.log2(6)


def test_hidden_units_of_a_perceptron_can_change_places():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double(), torch.randn(10, 5).double()
    before, order = net(x), torch.randperm(7)
    for values in (net[0].weight, net[0].bias):
        values.data = values.data[order]
    net[2].weight.data = net[2].weight.data[:, order]
    assert torch.allclose(net(x), before, atol=1e-12)


def test_channels_of_a_residual_stream_can_change_places_where_they_begin():
    torch.manual_seed(0)
    net, x = resnet.resnet20().double().eval(), torch.randn(2, 3, 32, 32).double()
    orders = {16: torch.randperm(16), 32: torch.arange(32), 64: torch.arange(64)}
    new = torch.cat([torch.arange(8), torch.arange(24, 32)])
    orders[32][new] = new[torch.randperm(16)]  # channels that begin in the second stage, among themselves
    orders[32][8:24] = 8 + orders[16]  # where the shortcut puts those of the first
    new = torch.cat([torch.arange(16), torch.arange(48, 64)])
    orders[64][new] = new[torch.randperm(32)]
    orders[64][16:48] = 16 + orders[32]
    before = net(x)
    for name, module in net.named_modules():
        turned(name, module, orders)
    assert torch.allclose(net(x), before, atol=1e-10)


def turned(name, module, orders):
    """Reorder what a module gets from the stream, and what it hands to the stream."""
    if isinstance(module, nn.Linear):
        module.weight.data = module.weight.data[:, orders[64]]
    elif isinstance(module, nn.Conv2d):
        to_stream = name == "conv1" or name.endswith("conv2")
        if to_stream:
            module.weight.data = module.weight.data[orders[module.out_channels]]
        elif name.endswith("conv1"):
            module.weight.data = module.weight.data[:, orders[module.in_channels]]
    elif isinstance(module, nn.BatchNorm2d) and (name == "bn1" or name.endswith("bn2")):
        for values in (module.weight, module.bias, module.running_mean, module.running_var):
            values.data = values.data[orders[module.num_features]]


def test_a_wrong_number_is_named():
    with pytest.raises(UsageError, match="units is -1"):
        permutation_bits([-1])
