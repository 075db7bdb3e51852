"""Whole networks through `compress` as everybody calls it: size, quality, time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import compressed
import minilm
import waterfill
from decoding import decoded
from measure import say
from waterfill import importance, zoo
from waterfill.quantize import Scalar
from waterfill.results import CompressionResult

DEFAULT, SCALAR = "default", "scalar, kl"
MINUTES_BAR = 10
MINILM_RATE = 3.0


@dataclass
class Stopwatch:
    """Progress that sums wall seconds by stage; what comes before a call counts for its stage."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    last: float = field(default_factory=time.perf_counter)
    start: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def __call__(self, stage: str, done: int, total: int) -> None:  # noqa: ARG002 (the protocol)
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now

    def columns(self) -> dict[str, float]:
        """Seconds: importance (with taking stock), search for symbols, all else (packing, statistics, measuring)."""
        wall, known = time.perf_counter() - self.start, {s: self.seconds[s] for s in ("importance", "quantize")}
        return {
            "wall s": round(wall, 1),
            "CPU s": round(time.process_time() - self.cpu, 1),
            "importance s": round(known["importance"], 1),
            "search s": round(known["quantize"], 1),
            "other s": round(wall - sum(known.values()), 1),
        }


def resnet(rates: Sequence[float], samples: int, images: int) -> list[dict[str, Any]]:
    """ResNet-20 as `compress` does it unasked, and with uniform steps and the diagonal importance."""
    model = zoo.pretrained("resnet20")
    data, test = list(zoo.cifar10_calibration(samples=samples)), list(zoo.cifar10_test(samples=images))
    ways: dict[str, dict[str, Any]] = {
        DEFAULT: {},
        SCALAR: {"quantizers": (Scalar(),), "importance": importance.kl()},
    }
    rows = []
    for way, options in ways.items():
        for rate in rates:
            watch = Stopwatch()
            result = waterfill.compress(model, data, rate=rate, progress=watch, **options)
            times = watch.columns()
            rows.append(
                {
                    "quantizer": way,
                    "importance": result.importance,
                    "asked bit/value": rate,
                    "bytes": result.size_bytes,
                    "bit/value": round(result.rate, 4),
                    **compressed.tested(model, result, test),
                    **times,
                }
            )
            say(f"resnet20 {rows[-1]}")
    return rows


def transformer(sentences: Sequence[int], tested: int) -> list[dict[str, Any]]:
    """MiniLM whole, from its file alone and with sentences to calibrate on."""
    model = minilm.pretrained()
    minilm.check(model)
    files = minilm.folder()
    assert files is not None
    test = minilm.batches(tested, part="test")
    rows = []
    for count in (0, *sentences):
        watch = Stopwatch()
        if count:
            data = minilm.batches(count)
            result = waterfill.compress(model, data, rate=MINILM_RATE, output="values", progress=watch)
        else:
            result = waterfill.compress(files / "model.safetensors", rate=MINILM_RATE, progress=watch)
        columns = watch.columns()
        rows.append(
            {
                "calibration": f"{count} sentences" if count else "none",
                "importance": result.importance,
                "bytes": result.size_bytes,
                "bit/value": round(result.rate, 3),
                "cosine to the original": round(_cosine(model, result, test), 4),
                **columns,
                "bar, wall s": 60 * MINUTES_BAR,
            }
        )
        say(f"whole {rows[-1]}")
    return rows


def _cosine(model: minilm.MiniLm, result: CompressionResult, test: Sequence[torch.Tensor]) -> float:
    """Mean cosine of the embeddings of a decoded file to the original ones."""
    copy = decoded(result.data, minilm.pretrained())
    with torch.no_grad():
        return float(np.mean([c for batch in test for c in (model(batch) * copy(batch)).sum(1).tolist()]))
