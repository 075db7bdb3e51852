"""Every trained network reproduces the accuracy that is known for it; needs the real data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from waterfill import zoo

pytestmark = pytest.mark.usefixtures("real_data")


@dataclass(frozen=True)
class Scores:
    """Accuracies in percent and cross-entropy in nats."""

    top1: float
    top5: float
    cross_entropy: float


@torch.no_grad()
def measure(name: str, batches: zoo.Batches) -> Scores:
    model = zoo.pretrained(name)
    count, top1, top5, total = 0, 0, 0, 0.0
    for inputs, targets in batches:
        logits, labels = model(inputs).flatten(0, -2), targets.flatten()
        hits = logits.topk(5).indices == labels.unsqueeze(1)
        count += len(labels)
        top1 += int(hits[:, 0].sum())
        top5 += int(hits.sum())
        total += float(F.cross_entropy(logits, labels, reduction="sum"))
    return Scores(100 * top1 / count, 100 * top5 / count, total / count)


@pytest.mark.parametrize(
    ("name", "loader", "accuracy"),
    [
        ("lenet300", zoo.mnist_test, 97.72),
        ("lenet300_dns", zoo.mnist_test, 98.01),
        ("lenet5", zoo.mnist_test, 99.09),
        ("lenet5_dns", zoo.mnist_test, 99.09),
    ],
)
def test_whole_test_set(name: str, loader: Callable[[], zoo.Batches], accuracy: float) -> None:
    assert measure(name, loader()).top1 == pytest.approx(accuracy, abs=0.011)


@pytest.mark.parametrize(
    ("name", "loader", "samples", "top1", "cross_entropy"),
    [
        ("resnet20", zoo.cifar10_test, 2000, 91.55, 0.3630),  # 91.73 % on all
        ("resnet32", zoo.cifar10_test, 1000, 92.50, 0.3460),  # 92.63 % on all
        ("paper_conv_w32", zoo.paper_cifar10_test, 2000, 88.90, 0.3183),  # 88.75 % and 0.3292 on all
        ("paper_conv_w32_cifar100", zoo.paper_cifar100_test, 2000, 66.15, 1.2641),  # 64.51 % and 1.2641 on all
    ],
)
def test_part_of_a_test_set(
    name: str, loader: Callable[..., zoo.Batches], samples: int, top1: float, cross_entropy: float
) -> None:
    """What was measured on these samples; one of them may be a tie."""
    scores = measure(name, loader(samples=samples))
    assert scores.top1 == pytest.approx(top1, abs=101 / samples)
    assert scores.cross_entropy == pytest.approx(cross_entropy, abs=2e-4)


@pytest.mark.parametrize(
    ("name", "loader", "samples", "top1", "top5", "cross_entropy"),
    [
        ("mobilenet_v1", zoo.imagenet_test, 250, 57.2, 80.4, 1.8269),  # 59.1 % and 82.0 % on all
        ("squeezenet", zoo.imagenet_squeezenet_test, 75, 60.0, 80.0, 1.7138),  # 62.1 % and 84.5 % on all
    ],
)
def test_part_of_imagenet(
    name: str, loader: Callable[..., zoo.Batches], samples: int, top1: float, top5: float, cross_entropy: float
) -> None:
    """What was measured on these samples; one of them may be a tie."""
    scores = measure(name, loader(samples=samples, batch_size=25))
    assert scores.top1 == pytest.approx(top1, abs=101 / samples)
    assert scores.top5 == pytest.approx(top5, abs=101 / samples)
    assert scores.cross_entropy == pytest.approx(cross_entropy, abs=2e-4)


@pytest.mark.parametrize(
    ("name", "loader", "bits"),
    [("charlstm", zoo.charlstm_test, 1.898), ("charlstm_bronte", zoo.charlstm_bronte_test, 1.951)],
)
def test_bits_per_character(name: str, loader: Callable[[], zoo.Batches], bits: float) -> None:
    assert measure(name, loader()).cross_entropy / math.log(2) == pytest.approx(bits, abs=6e-4)


def test_nats_per_token() -> None:
    assert measure("stories260k", zoo.stories_test()).cross_entropy == pytest.approx(1.524, abs=6e-4)


def test_calibration_samples_are_training_samples() -> None:
    """The networks know their training images nearly by heart."""
    assert measure("resnet20", zoo.cifar10_calibration()).top1 > 97
    assert measure("lenet5", zoo.mnist_calibration()).top1 > 99
    assert measure("charlstm", zoo.charlstm_calibration()).cross_entropy / math.log(2) < 2.05


@pytest.mark.parametrize(
    ("loader", "samples", "input_shape"),
    [
        (zoo.charlstm_bronte_calibration, 128, (256,)),
        (zoo.charlstm_calibration, 128, (256,)),
        (zoo.cifar10_calibration, 1024, (3, 32, 32)),
        (zoo.imagenet_calibration, 256, (3, 224, 224)),
        (zoo.imagenet_squeezenet_calibration, 256, (3, 224, 224)),
        (zoo.mnist_calibration, 1024, (1, 28, 28)),
        (zoo.paper_cifar100_calibration, 1024, (3, 32, 32)),
        (zoo.paper_cifar10_calibration, 1024, (3, 32, 32)),
        (zoo.paper_mnist_calibration, 1024, (1, 28, 28)),
        (zoo.paper_mnist_test, 10_000, (1, 28, 28)),
        (zoo.stories_calibration, 48, (511,)),
    ],
)
def test_default_sizes(loader: Callable[[], zoo.Batches], samples: int, input_shape: tuple[int, ...]) -> None:
    batches = loader()
    inputs, _ = next(iter(batches))
    assert inputs.shape[1:] == input_shape
    assert len(inputs) == batches.batch_size
    assert len(batches.samples.labels) == samples
