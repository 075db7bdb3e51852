"""Tensors that nothing reaches are priced like the least important of their kind, never at zero."""

import pytest
import torch
from torch import nn

import waterfill
from waterfill.compression.least_prices import UNREACHED, priced_like_the_least, unreached
from waterfill.importance.forms import DiagonalForm
from waterfill.records import Layout, Weight


def weight(name, *shape):
    layout = Layout(shape)
    return Weight(name, layout.to_matrix(torch.randn(shape).numpy()), layout)


def priced(each, price):
    return DiagonalForm(torch.full(each.matrix.shape, float(price)).numpy(), factor=0.5, unit="nats of KL")


def test_a_matrix_costs_what_the_least_of_its_shape_costs_or_the_least_of_all():
    names = {"a": (4, 3), "b": (4, 3), "c": (5, 3), "d": (4, 3), "e": (2, 2), "f": (7,)}
    weights = {name: weight(name, *shape) for name, shape in names.items()}
    prices = {"a": 3, "b": 2, "c": 1, "d": 0, "e": 0, "f": 0}
    forms = {name: priced(weights[name], price) for name, price in prices.items()}
    lost = unreached(weights, forms)
    assert lost == ["d", "e", "f"]
    found, reasons = priced_like_the_least(weights, forms, lost)
    assert found["d"].diagonal().mean() == 2
    assert found["e"].diagonal().mean() == 1
    assert "f" not in found
    assert (found["d"].factor, found["d"].unit) == (0.5, "nats of KL")
    assert set(reasons) == {"d", "e", "f"}
    assert found["a"] is forms["a"]


class Heads(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.body, self.read, self.other = nn.Linear(20, 64), nn.Linear(64, 6), nn.Linear(64, 12)
        self.order = order

    def forward(self, x):
        h = torch.relu(self.body(x))
        return self.order(self.read(h), self.other(h))


@pytest.mark.parametrize(
    "order",
    [lambda a, b: (a, b), lambda a, b: {"logits": a, "boxes": b}, lambda a, b: [a, (b, b)], lambda a, _: a],
    ids=["tuple", "dict", "nested", "unused"],
)
def test_a_head_that_is_not_read_keeps_its_bits_and_its_row_says_why(order):
    torch.manual_seed(0)
    data = [(torch.randn(32, 20), torch.randint(6, (32,))) for _ in range(4)]
    result = waterfill.compress(Heads(order), data, rate=4.0, effort="fast")
    rows = {row.name: row for row in result.tensors}
    assert rows["other.weight"].rate > 1
    assert UNREACHED in rows["other.weight"].reason
    assert UNREACHED in rows["other.bias"].reason
    assert not rows["read.weight"].reason
