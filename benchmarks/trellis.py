"""The trellis quantizer against rate-distortion functions, in bytes of files that were decoded, and its speed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from results import Section, write_page
from waterfill.codec import container, pieces
from waterfill.files import WaterfillFile
from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import Scalar, Trellis
from waterfill.records import Coded, Entry, Layout, Quantized, Weight
from waterfill.theory.blahut_arimoto import generalized_gaussian_density, rate_at_distortion

WIDTH = 1024
LAPLACE = generalized_gaussian_density(1.0)
Floats = NDArray[np.float32]


def measured(matrix: Floats, quantizer: Scalar | Trellis, form: DiagonalForm | None, level: float) -> tuple[Any, ...]:
    """Bits per value of the whole file, the decoded errors, the record, and CPU seconds of the search."""
    weight = Weight("w", matrix, Layout(matrix.shape))
    start = time.process_time()
    item = quantizer.quantize(weight, form, level)
    seconds = time.process_time() - start
    entries = (Entry("w", matrix.shape, "float32", Coded(weight.layout)),)
    data = container.pack(entries, {"w": item}, {}, "").data
    error = WaterfillFile(data)["w"].numpy().astype(np.float64) - matrix
    return 8 * len(data) / matrix.size, error, item, seconds


def independent(count: int, states: list[int]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    shape = count // WIDTH, WIDTH
    sources: dict[str, tuple[Floats, Callable[[float], float], tuple[float, ...]]] = {
        "Gaussian": (rng.normal(size=shape).astype(np.float32), lambda d: -0.5 * np.log2(d), (0.265, 0.0625, 0.0039)),
        "Laplace": (
            (rng.laplace(size=shape) / np.sqrt(2)).astype(np.float32),
            lambda d: rate_at_distortion(LAPLACE, d).rate,
            (0.46, 0.235, 0.06, 0.0035),
        ),
    }
    rows = []
    for name, (matrix, rate_of, levels) in sources.items():
        power = np.square(matrix, dtype=np.float64).mean()
        for level in levels:
            for quantizer in (Scalar(), *map(Trellis, states)):
                rate, error, item, seconds = measured(matrix, quantizer, None, level)
                bound = rate_of(float(np.square(error).mean() / power))
                paths = item.spread.trellis
                rows.append(
                    {
                        "source": name,
                        "states": quantizer.states if isinstance(quantizer, Trellis) else 1,
                        "bit/value": round(rate, 3),
                        "gap": round(rate - bound, 4),
                        "zero in both": bool(paths and paths.zero),
                        "search, Mvalue/s CPU": round(matrix.size / seconds / 1e6, 2),
                    }
                )
    return rows


def known_importance(count: int, states: int) -> list[dict[str, Any]]:
    """Importance that factors over rows and columns and spans some decades; both sides of the bound know it."""
    rows = []
    for decades in (2, 3, 4):
        for level in (0.1, 0.01):
            rng = np.random.default_rng(decades)
            shape = count // WIDTH, WIDTH
            factors = [10 ** rng.uniform(-decades / 4, decades / 4, n) for n in shape]
            importance = np.outer(*factors).astype(np.float32)
            matrix = rng.normal(size=shape).astype(np.float32)
            rate, error, _, _ = measured(matrix, Trellis(states), DiagonalForm(importance), level)
            distortion = float((importance * np.square(error)).mean())
            bound = water_filling(importance.astype(np.float64).reshape(-1), distortion)
            rows.append({"decades": decades, "bit/value": round(rate, 3), "gap": round(rate - bound, 4)})
    return rows


def water_filling(variances: NDArray[np.float64], distortion: float) -> float:
    """Rate of independent Gaussians of these variances at a mean distortion."""
    low, high = 0.0, float(variances.max())
    for _ in range(100):
        level = (low + high) / 2
        low, high = (level, high) if np.minimum(variances, level).mean() < distortion else (low, level)
    return float(0.5 * np.log2(np.maximum(variances / level, 1)).mean())


def decoding(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(count // WIDTH, WIDTH)).astype(np.float32)
    wide = (matrix * np.exp2(rng.uniform(-2, 2, size=(matrix.shape[0], 1)))).astype(np.float32)
    rows = []
    for name, values, level in (
        ("one class", matrix, 0.0625),
        ("row scales", wide, 0.0625),
        ("one class", matrix, 0.0039),
    ):
        item: Quantized = measured(values, Trellis(64), None, level)[2]
        model = pieces.model(item.spread, Layout(values.shape), 0, values.size)
        stream = pieces.encode([item.symbols.reshape(-1)], [model])
        best = min(_seconds(lambda s=stream, m=model: pieces.decode(s, [m])) for _ in range(7))
        rate = 8 * len(stream) / values.size
        rows.append({"what": f"{name}, {rate:.2f} bit", "Mvalue/s, one core": round(values.size / best / 1e6)})
    return rows


def viterbi(states: list[int]) -> list[dict[str, Any]]:
    from waterfill.codec.trellis import parities
    from waterfill.quantize import trellis_kernels as kernels

    rng, size, rows = np.random.default_rng(0), 1 << 14, []
    x, one, row = (rng.normal(size=size) * 2).astype(np.float32), np.ones(1, np.float32), np.zeros(1, np.int32)
    lengths = np.tile(np.arange(128, dtype=np.float32), 2)[None]
    costs, indices = np.empty((size, 4), np.float32), np.empty((size, 4), np.int32)
    levels = np.empty(size, np.int32)
    for count in states:
        flips, picks = (part.astype(np.bool_) for part in parities(count.bit_length() - 1))
        decisions = np.zeros((size, count // 2), np.uint8)

        def once(f: Any = flips, p: Any = picks, d: Any = decisions) -> None:
            kernels.branch_costs(x, one, row, lengths, np.zeros(4), 0.35, False, costs, indices)
            kernels.best_path(costs, indices, f, p, False, d, levels)

        once()
        rows.append(
            {"states": count, "Mvalue/s, one core": round(size / min(_seconds(once) for _ in range(20)) / 1e6, 1)}
        )
    return rows


def _seconds(work: Callable[[], Any]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=1 << 20)
    parser.add_argument("--states", type=int, nargs="+", default=[8, 64, 256])
    options = parser.parse_args()
    Trellis(8).quantize(Weight("w", np.ones((2, 2), np.float32), Layout((2, 2))), None, 0.1)  # compiles
    write_page(
        "trellis",
        "Trellis-coded quantization",
        "Files of the format, written, read and decoded; speeds on one core of a shared machine.",
        [
            Section(
                "Independent weights",
                f"{options.values:,} values; bits of the whole file, decoded; the gap is to the rate-distortion "
                "function (Laplace: Blahut-Arimoto) at the error reached.",
                independent(options.values, options.states),
            ),
            Section(
                "Known importance",
                "Gaussian weights, importance that factors over rows and columns, uniform in its logarithm, given to "
                "both sides; 256 states; scales are in the file.",
                known_importance(options.values, 256),
            ),
            Section("Search", "One pass over 16,384 values, CPU time.", viterbi(options.states)),
            Section("Decoding", "Paths through 64 states, CPU time.", decoding(options.values)),
        ],
    )


if __name__ == "__main__":
    main()
