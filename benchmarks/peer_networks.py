"""The networks on which codecs are compared: their data, and the settings to try."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from waterfill import zoo

WATERFILL, TUNED, FREE = "waterfill", "waterfill, tuned", "waterfill, no data"
NNCODEC, DEEP, NEAREST = "NNCodec", "Deep Compression", "int + zstd"
OURS = (WATERFILL, TUNED, FREE)
CODECS = (WATERFILL, TUNED, FREE, NNCODEC, DEEP, NEAREST)
ORIGINAL = "original"
KL, TOP1 = "KL (nats)", "top-1 %"


@dataclass(frozen=True)
class Network:
    """A network, its data and the settings to try.

    Attributes:
        key: its name in the zoo and on the command line.
        title: heading, and key in the JSON file.
        calibration: batches for `waterfill.compress`.
        test: batches on which everybody is measured.
        tested: which those are.
        rates: of waterfill with data, bit/value.
        tuned_rates: with data and `tune`; those of `rates` where there are none.
        free_rates: without data.
        qps: of NNCodec, each with all `lambdas`.
        lambdas: of NNCodec, its `lambda_scale`.
        opt_qps: of NNCodec with `opt_qp`, and `lambda_scale` 1.
        deep: thresholds in standard deviations, and numbers of clusters.
        bits: of rounding to nearest.
        loss: name and unit, in nats, of the cross-entropy.
    """

    key: str
    title: str
    calibration: Callable[[], Any]
    test: Callable[[], Any]
    tested: str
    rates: tuple[float, ...] = (2.0, 2.25, 2.5, 3.0, 3.5)
    tuned_rates: tuple[float, ...] = ()
    free_rates: tuple[float, ...] = (2.5, 3.0, 3.5, 4.0, 5.0)
    qps: tuple[float, ...] = (-20, -21, -22, -24, -26)
    lambdas: tuple[float, ...] = (1.0, 0.0)
    opt_qps: tuple[float, ...] = ()
    deep: tuple[tuple[float, int], ...] = ((0.25, 8), (0.0, 8), (0.25, 16), (0.0, 16), (0.25, 32), (0.0, 32))
    bits: tuple[int, ...] = (3, 4, 5, 6, 7)
    loss: tuple[str, float] = ("cross-entropy (nats)", 1.0)

    def original(self) -> nn.Module:
        return zoo.pretrained(self.key)

    def empty(self) -> nn.Module:
        return zoo.PRETRAINED[self.key].factory()

    def at_rates(self, rates: Sequence[float]) -> Network:
        """With these rates of waterfill instead."""
        return replace(self, rates=tuple(rates), tuned_rates=tuple(rates), free_rates=tuple(rates))


_LENET: dict[str, Any] = {
    "calibration": zoo.mnist_calibration,
    "test": zoo.mnist_test,
    "tested": "10,000 test images",
    "free_rates": (0.5, 0.7, 0.85, 1.0, 1.2, 1.5),
    "qps": tuple(range(-25, -11)),
    "lambdas": (1.0, 0.5, 0.25, 0.0),
    "deep": tuple((threshold, clusters) for threshold in (2.5, 2.0, 1.5, 1.0, 0.5) for clusters in (4, 8, 16)),
    "bits": (2, 3, 4, 5, 6),
}
_CIFAR: dict[str, Any] = {
    "calibration": zoo.cifar10_calibration,
    "test": partial(zoo.cifar10_test, batch_size=50),
    "tested": "10,000 test images",
    "rates": (1.3, 1.45, 1.6, 1.75, 1.9, 2.3, 2.5, 2.7),
    "qps": tuple(range(-30, -17)),
}
_LANGUAGE: dict[str, Any] = {
    "qps": tuple(range(-25, -11)),
    "deep": ((0.25, 8), (0.0, 8), (0.0, 16), (0.0, 32), (0.0, 64)),
    "bits": (3, 4, 5, 6, 7),
}
_PAPER: dict[str, Any] = {
    "tested": "10,000 test images",
    "rates": (0.6, 0.65, 0.7, 0.75, 0.85, 0.95, 1.15, 1.3),
    "free_rates": (1.5, 2.0, 2.5, 3.0, 3.5),
    "qps": tuple(range(-33, -19)),
    "lambdas": (1.0, 0.5, 0.0),
}

NETWORKS = (
    Network("resnet20", "ResNet-20", **_CIFAR),
    Network("lenet300", "LeNet-300-100", rates=(0.3, 0.35, 0.4, 0.46, 0.52, 0.6), **_LENET),
    Network("lenet5", "LeNet-5", rates=(0.22, 0.26, 0.3, 0.34, 0.38, 0.42), **_LENET),
    Network(
        "mobilenet_v1",
        "MobileNet v1 0.25",
        zoo.imagenet_calibration,
        partial(zoo.imagenet_test, samples=744),
        "744 images of the ImageNet sample that are not among those for calibration",
        rates=(3.3, 3.5, 3.7, 3.9, 4.2, 4.5, 4.8),
        free_rates=(4.0, 5.0, 6.0, 7.0),
        qps=(*range(-42, -27), -46, -44),
        opt_qps=(-40, -42, -44, -46, -48),
        deep=((0.0, 16), (0.0, 32), (0.0, 64), (0.0, 128)),
        bits=(4, 5, 6, 7, 8),
    ),
    Network(
        "charlstm",
        "Character LSTM",
        zoo.charlstm_calibration,
        zoo.charlstm_test,
        "the last 200,000 characters of Tiny Shakespeare",
        loss=("bits per character", math.log(2)),
        rates=(1.5, 1.65, 1.8, 2.0, 2.2, 2.5),
        free_rates=(2.5, 3.0, 3.5, 4.0, 4.5),
        opt_qps=(-18, -19, -20, -21, -22, -24),
        **_LANGUAGE,
    ),
    Network(
        "stories260k",
        "stories260K",
        zoo.stories_calibration,
        partial(zoo.stories_test, samples=144),
        "the 144 windows of 512 tokens that are not among those for calibration",
        loss=("nats per token", 1.0),
        rates=(3.1, 3.3, 3.5, 3.8, 4.2, 4.5, 4.8),
        free_rates=(3.5, 4.0, 4.5, 5.0, 5.5, 6.0),
        opt_qps=(-26, -28, -30, -32, -34, -36),
        **{**_LANGUAGE, "qps": tuple(range(-35, -21))},
    ),
    Network("resnet32", "ResNet-32", **{**_CIFAR, "qps": tuple(range(-27, -19))}),
    Network(
        "paper_conv_w32",
        "The paper's convolutional network, a quarter as wide",
        zoo.paper_cifar10_calibration,
        partial(zoo.paper_cifar10_test, batch_size=50),
        **_PAPER,
    ),
    Network(
        "paper_conv_w32_cifar100",
        "The paper's convolutional network for CIFAR-100, a quarter as wide",
        zoo.paper_cifar100_calibration,
        partial(zoo.paper_cifar100_test, batch_size=50),
        **_PAPER,
    ),
)
