"""How fast paths through trellises are found and decoded, on one core."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import waterfill
from measure import measured
from waterfill.codec import container, pieces
from waterfill.quantize import Trellis
from waterfill.quantize.branch_kernels import level_prices
from waterfill.quantize.trellis import code_for
from waterfill.quantize.viterbi_kernels import best_path
from waterfill.records import Coded, Entry, Layout, Quantized, Weight

WIDTH = 1024
PACE_BARS = {64: 10}


def decoding(values: int) -> list[dict[str, Any]]:
    """Bytes to levels, and a file to its tensor, with lanes and without."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(values // WIDTH, WIDTH)).astype(np.float32)
    wide = (matrix * np.exp2(rng.uniform(-2, 2, size=(matrix.shape[0], 1)))).astype(np.float32)
    rows = []
    for name, weights, level in (
        ("one class", matrix, 0.5),
        ("one class", matrix, 0.125),
        ("one class", matrix, 0.0156),
        ("row scales", wide, 0.0156),
    ):
        item = measured(Weight("w", weights, Layout(weights.shape)), Trellis(64), None, level).item
        rows += [_decoded(name, each) for each in (item, _without_lanes(item)) if each is not None]
    return rows


def _without_lanes(item: Quantized) -> Quantized | None:
    """The same levels one after the other; None where they have no lanes, or these are no spans of a plain path."""
    path = item.spread.trellis
    if path is None or path.lanes is None:
        return None
    span = path.lanes.lines * item.symbols.shape[1]
    if span & (span - 1):
        return None
    plain = replace(path, lanes=None, log_span=span.bit_length() - 1)
    return replace(item, spread=replace(item.spread, trellis=plain))


def _decoded(name: str, item: Quantized) -> dict[str, Any]:
    """How fast a quantized matrix is decoded, alone and from a file."""
    layout = Layout(item.symbols.shape)
    path = item.spread.trellis
    model = pieces.model(item.spread, layout, 0, layout.numel)
    stream = pieces.encode([item.symbols.reshape(-1)], [model])
    entries = (Entry("w", layout.shape, "float32", Coded(layout)),)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "w.wf"
        file.write_bytes(container.pack(entries, {"w": item}, {}, "speed").data)
        whole = best(lambda: waterfill.decompress(file, threads=1), clock=time.process_time)
    decode = best(lambda: pieces.decode(stream, [model]))
    return {
        "what": f"{name}, {8 * len(stream) / layout.numel:.2f} bit",
        "lanes": "none" if path is None or path.lanes is None else path.lanes.count,
        "bytes to levels, Mweight/s": round(layout.numel / decode / 1e6),
        "file to tensor, Mweight/s": round(layout.numel / whole / 1e6),
    }


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
        speed = round(size / best(once, 20) / 1e6, 1)
        rows.append({"states": count, "Mweight/s, one core": speed, "bar": PACE_BARS.get(count, "")})
    return rows


def best(work: Callable[[], Any], times: int = 7, clock: Callable[[], float] = time.thread_time) -> float:
    """Least CPU seconds, by default of the thread."""
    seconds = []
    for _ in range(times):
        start = clock()
        work()
        seconds.append(clock() - start)
    return min(seconds)
