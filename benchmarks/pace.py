"""How fast paths through trellises are found and decoded, on one core."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from measure import measured
from waterfill.codec import pieces
from waterfill.quantize import Trellis
from waterfill.quantize.branch_kernels import level_prices
from waterfill.quantize.trellis import code_for
from waterfill.quantize.viterbi_kernels import best_path
from waterfill.reconstruct import reconstruct
from waterfill.records import Layout, Weight

WIDTH = 1024
PACE_BARS = {64: 10}


def decoding(values: int) -> list[dict[str, Any]]:
    """Bytes to levels, and on to values."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(values // WIDTH, WIDTH)).astype(np.float32)
    wide = (matrix * np.exp2(rng.uniform(-2, 2, size=(matrix.shape[0], 1)))).astype(np.float32)
    rows = []
    for name, weights, level in (
        ("one class", matrix, 0.0625),
        ("row scales", wide, 0.0625),
        ("one class", matrix, 0.0039),
    ):
        layout = Layout(weights.shape)
        item = measured(Weight("w", weights, layout), Trellis(64), None, level).item
        model = pieces.model(item.spread, layout, 0, weights.size)
        stream = pieces.encode([item.symbols.reshape(-1)], [model])
        levels = pieces.decode(stream, [model])[0]
        decode = _best(lambda s=stream, m=model: pieces.decode(s, [m]))
        values_of = _best(lambda i=item, k=levels, lay=layout: reconstruct(k, i.rule, lay))
        rows.append(
            {
                "what": f"{name}, {8 * len(stream) / weights.size:.2f} bit",
                "bytes to levels, Mweight/s": round(weights.size / decode / 1e6),
                "levels to values, Mweight/s": round(weights.size / values_of / 1e6),
                "bytes to values, Mweight/s": round(weights.size / (decode + values_of) / 1e6),
            }
        )
    return rows


def viterbi(states: Sequence[int]) -> list[dict[str, Any]]:
    """One pass of the search over a span: costs of branches, best path."""
    rng, size, rows = np.random.default_rng(0), 1 << 14, []
    x, weights = (rng.normal(size=size) * 2).astype(np.float32), np.ones(size, np.float32)
    starts, none, levels = np.zeros(size, np.int32), np.zeros(size, np.bool_), np.empty(size, np.int32)
    lengths = np.tile(np.arange(128, dtype=np.float32), 2)[None]
    bits, shrink = level_prices(lengths, 0.35, False).reshape(-1), np.zeros(4, np.float32)
    for count in states:
        code = code_for(count.bit_length() - 1, weights)

        def once(c: Any = code) -> None:
            best_path(x, weights, starts, bits, False, shrink, none, c, levels)

        once()
        speed = round(size / _best(once, 20) / 1e6, 1)
        rows.append({"states": count, "Mweight/s, one core": speed, "bar": PACE_BARS.get(count, "")})
    return rows


def _best(work: Callable[[], Any], times: int = 7) -> float:
    """Least CPU seconds of the thread."""
    seconds = []
    for _ in range(times):
        start = time.thread_time()
        work()
        seconds.append(time.thread_time() - start)
    return min(seconds)
