"""Training and test loss of a compressed network against the size of its file; and what orderings of units weigh."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import waterfill
from compressed import Once
from decoding import decoded
from measure import say
from waterfill import importance, zoo
from waterfill.theory.generalization import generalization_bound
from waterfill.theory.symmetry import permutation_bits

RATES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
ORIGINAL = "original"
PRETRAINED, OVERFITTED = "60,000 images", "1,000 images, a fifth of the labels random"
FEW, EPOCHS, BATCH, RANDOM_LABELS = 1000, 200, 50, 0.2

UNITS = {
    "LeNet-300-100": ([300, 100], 266_610),
    "LeNet-5": ([20, 50, 500], 431_080),
    "ResNet-20": ([16, 32, 64] * 3 + [16, 16, 32], 269_722),
}
"""Hidden units or channels that can change places, and numbers of parameters.

Channels inside a block are free. Those of the residual stream are where they begin: 16 in the first stage, 16 more in
the second, 32 more in the third.
"""


def risks() -> list[dict[str, Any]]:
    """LeNet-300-100 at several rates: cross-entropy and errors on all its training and all test images."""
    whole = list(zoo.mnist_calibration(samples=None, batch_size=1000))
    few = _with_random_labels(list(zoo.mnist_calibration(samples=FEW, batch_size=BATCH)))
    rows = _at_all_rates(PRETRAINED, zoo.pretrained("lenet300").eval(), whole, list(zoo.mnist_calibration()))
    return rows + _at_all_rates(OVERFITTED, _trained(few), few, few)


def _with_random_labels(batches: list[Any]) -> list[Any]:
    draw = torch.Generator().manual_seed(0)
    found = []
    for x, y in batches:
        wrong = torch.rand(len(y), generator=draw) < RANDOM_LABELS
        found.append((x, torch.where(wrong, torch.randint(0, 10, y.shape, generator=draw), y)))
    return found


def _trained(batches: list[Any]) -> nn.Module:
    """LeNet-300-100, trained until it knows every label."""
    torch.manual_seed(0)
    net = zoo.lenet300()
    steps = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(EPOCHS):
        for place in torch.randperm(len(batches)).tolist():
            x, y = batches[place]
            steps.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            steps.step()
    return net.eval()


def _at_all_rates(name: str, model: nn.Module, train: list[Any], data: list[Any]) -> list[dict[str, Any]]:
    test = list(zoo.mnist_test())
    estimator: Any = Once(importance.kronecker())
    rows = []
    for rate in RATES:
        result = waterfill.compress(model, data, rate=rate, importance=estimator, effort="fast")
        cells = _row(f"{result.rate:.3f}", result.size_bytes, decoded(result.data, zoo.lenet300()), model, train, test)
        rows.append({"trained on": name} | cells)
        say(f"population {rows[-1]}")
    return [*rows, {"trained on": name} | _row(ORIGINAL, None, model, model, train, test)]


def _row(
    name: str, size_bytes: int | None, net: nn.Module, model: nn.Module, train: list[Any], test: list[Any]
) -> dict[str, Any]:
    (on_train, wrong_train), (on_test, wrong_test) = _measured(net, train), _measured(net, test)
    forward, backward = _divergences(model, net, test)
    count = sum(len(y) for _, y in train)
    return {
        "bit/value": name,
        "bytes": size_bytes or "-",
        "training loss": round(on_train, 4),
        "test loss": round(on_test, 4),
        "test - training": round(on_test - on_train, 4),
        "training error %": round(100 * wrong_train, 2),
        "test error %": round(100 * wrong_test, 2),
        "bound of their difference, %": round(100 * generalization_bound(8 * size_bytes, count, 0.5), 1)
        if size_bytes
        else "-",
        "D(original, compressed)": round(forward, 5),
        "D(compressed, original)": round(backward, 5),
    }


@torch.no_grad()
def _measured(net: nn.Module, batches: list[Any]) -> tuple[float, float]:
    """Mean cross-entropy, nats, and share of errors."""
    loss, wrong, count = 0.0, 0, 0
    for x, y in batches:
        logits = net(x).double()
        loss += float(nn.functional.cross_entropy(logits, y, reduction="sum"))
        wrong += int((logits.argmax(1) != y).sum())
        count += len(y)
    return loss / count, wrong / count


@torch.no_grad()
def _divergences(model: nn.Module, net: nn.Module, batches: list[Any]) -> tuple[float, float]:
    """Mean KL divergences, nats: of the original from the other, and the other way round."""
    p = torch.cat([model(x) for x, _ in batches]).double().log_softmax(1)
    q = torch.cat([net(x) for x, _ in batches]).double().log_softmax(1)
    return _divergence(p, q), _divergence(q, p)


def _divergence(log_p: Tensor, log_q: Tensor) -> float:
    return float((log_p.exp() * (log_p - log_q)).sum(1).mean())


def orderings() -> list[dict[str, Any]]:
    """Bits of the orderings of hidden units, and their share of a file."""
    rows = []
    for name, (units, values) in UNITS.items():
        bits = permutation_bits(units)
        shares = {f"% of a file of {rate} bit/value": round(100 * bits / (rate * values), 2) for rate in (0.5, 1, 2)}
        rows.append({"network": name, "bit": round(bits), "bytes": round(bits / 8)} | shares)
    return rows
