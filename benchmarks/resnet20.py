"""ResNet-20 on CIFAR-10: size, KL and top-1 at several rates, with and without importances."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import waterfill
from results import write
from waterfill import importance, zoo
from waterfill.protocols import Estimator, QuadraticForm
from waterfill.results import CompressionResult

RATES = (2.0, 2.5, 3.0, 4.0)


@dataclass(frozen=True)
class Once:
    """An estimator that estimates once and remembers, so that all rates share one estimate."""

    estimator: Estimator
    memory: dict[str, QuadraticForm] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.estimator.name

    def estimate(self, *args: Any, **options: Any) -> dict[str, QuadraticForm]:
        if not self.memory:
            self.memory.update(self.estimator.estimate(*args, **options))
        return self.memory


def row(model: torch.nn.Module, data: Iterable[Any], test: list[Any], estimator: Any, rate: float) -> dict[str, Any]:
    start = time.perf_counter()
    result = waterfill.compress(model, data, rate=rate, importance=estimator)
    seconds = time.perf_counter() - start
    return {
        "importance": result.importance,
        "asked bit/value": rate,
        "bytes": result.size_bytes,
        "bit/value": round(result.rate, 4),
        "overhead %": round(100 * result.overhead_bytes / result.size_bytes, 2),
        "importance power kept": result.importance_power,
        **tested(model, result, test),
        "seconds": round(seconds, 1),
    }


def tested(model: torch.nn.Module, result: CompressionResult, test: list[Any]) -> dict[str, float]:
    """Quality of the network that comes back from the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet20.wf"
        result.save(path)
        copy = waterfill.load(path, into=zoo.resnet20()).eval()
    measured = waterfill.evaluate(copy, test, reference=model)
    return {
        "KL (nats)": round(float(measured.kl or 0), 4),
        "top-1 %": round(100 * float(measured.accuracy or 0), 2),
        "agreement %": round(100 * float(measured.agreement or 0), 2),
    }


def main() -> None:
    model = zoo.pretrained("resnet20")
    data, test = list(zoo.cifar10_calibration()), list(zoo.cifar10_test())
    original = waterfill.evaluate(model, test)
    rows = [
        row(model, data, test, estimator, rate)
        for estimator in (importance.identity(), Once(importance.kl()))
        for rate in RATES
    ]
    text = (
        f"The original has {100 * float(original.accuracy or 0):.2f} % top-1 on the 10,000 test images. 1,024 training "
        "images for calibration; scalar quantizer; rates are bits of the whole file over 271,098 values; KL is "
        "D(original || compressed), mean over the test images. The kl rows keep the better, on the calibration data, "
        "of importances to the power 0.5 and 0 (one step for the whole model). Seconds are those of one run on a "
        "shared 2-core machine, with the importance estimated in the first kl row only."
    )
    write("resnet20", "ResNet-20 on CIFAR-10", text, rows)


if __name__ == "__main__":
    main()
