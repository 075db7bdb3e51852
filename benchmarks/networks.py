"""The limit of real networks beside the files that were made of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import waterfill
from compressed import Once
from results import Section
from waterfill import importance, zoo
from waterfill.results import CompressionResult

RATES = {"resnet20": (2.0, 3.0, 4.0), "lenet300": (0.5, 1.0, 2.0)}
SHOWN = {"resnet20": 3.0, "lenet300": 1.0}
"""The rate whose tensors are shown."""

NAMES = {"resnet20": "ResNet-20", "lenet300": "LeNet-300-100"}


@cache
def results() -> dict[tuple[str, float], CompressionResult]:
    return {(net, rate): found for net, rates in RATES.items() for rate, found in compressed_at(net, rates).items()}


def compressed_at(net: str, rates: Sequence[float]) -> dict[float, CompressionResult]:
    """A network at several rates, with one estimate of its importance."""
    model = zoo.pretrained(net)
    data = list(zoo.cifar10_calibration() if net == "resnet20" else zoo.mnist_calibration())
    estimator: Any = Once(importance.kronecker())
    return {rate: waterfill.compress(model, data, rate=rate, importance=estimator) for rate in rates}


def row(net: str, result: CompressionResult) -> dict[str, Any]:
    return {
        "network": NAMES[net],
        "bytes": result.size_bytes,
        "bit/value": round(result.rate, 3),
        "limit": round(result.limit, 3),
        "its error": round(result.limit_error, 4),
        "gap": round(result.gap, 3),
        "gap, %": None if result.gap_percent is None else round(result.gap_percent, 1),
        "of it overhead": round(8 * result.overhead_bytes / result.floating_values, 3),
        "measured by": result.limit_measure,
        "KL on the calibration data": result.distortion,
    }


def files() -> Section:
    rows = [row(net, result) for (net, _), result in results().items()]
    text = (
        "Whole files of `compress(model, data, rate=...)`, 1,024 training images, against the limit at the distortion "
        "that each file reached: all tensors under one water level, by the importance that was kept. *Its error* is "
        "the standard error of the fitted entropies; the overhead is what belongs to no tensor. In bit per value."
    )
    return Section("Whole networks: files and their limits", text, rows)


def layers() -> Section:
    rows = [
        {
            "network": NAMES[net],
            "tensor": row.name,
            "shape": "x".join(map(str, row.shape)),
            "bit/value": round(row.rate, 3),
            "limit": round(row.limit, 3),
            "its error": round(row.limit_error or 0.0, 3),
            "gap": round(row.rate - row.limit, 3),
            "gap, %": None if row.gap_percent is None else round(row.gap_percent, 1),
            "source model": row.source_model,
        }
        for net, rate in SHOWN.items()
        for row in results()[net, rate].tensors
        if row.limit is not None and len(row.shape) > 1
    ]
    shown = " and ".join(f"{NAMES[net]} at {rate:g} bit/value" for net, rate in SHOWN.items())
    text = (
        f"The matrices of {shown}, each at its own distortion. Small tensors pay for the description of their scales, "
        "which the limit has for nothing."
    )
    return Section("Whole networks: layer by layer", text, rows)
