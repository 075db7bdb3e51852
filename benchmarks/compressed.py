"""What benchmarks of whole files share: an importance estimated once, and ResNet-20 back from its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

import waterfill
from decoding import decoded
from waterfill import zoo
from waterfill.protocols import Estimator, QuadraticForm
from waterfill.results import CompressionResult


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


def tested(model: torch.nn.Module, result: CompressionResult, test: list[Any]) -> dict[str, float]:
    """Quality of the network that comes back from the file."""
    measured = waterfill.evaluate(decoded(result.data, zoo.resnet20()), test, reference=model)
    return {
        "KL (nats)": round(float(measured.kl or 0), 4),
        "top-1 %": round(100 * float(measured.accuracy or 0), 2),
        "agreement %": round(100 * float(measured.agreement or 0), 2),
    }
