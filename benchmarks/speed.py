"""Speed: the entropy coder on one core, decoding a whole file, importing the package."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import waterfill
from results import write
from waterfill.codec import kernels, rans, tables

REPEATS = 7
SYMBOLS = 1 << 22


def best_of(function: Callable[[], Any]) -> float:
    function()  # compiles
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def coder(family: int, scale: int, name: str) -> list[dict[str, Any]]:
    cls = tables.bank_class(family, scale)
    pmf = tables.frequencies()[cls] / tables.TOTAL
    symbols = np.random.default_rng(0).choice(256, SYMBOLS, p=pmf).astype(np.uint8)
    classes = np.full(SYMBOLS, cls, np.uint16)
    info, inverse = tables.encoder_info(), tables.inverses()
    words = np.empty(SYMBOLS + 8, np.uint16)
    stream = rans.encode([(symbols, classes)])
    ideal = -float(np.log2(pmf[symbols]).mean())  # of these symbols under the table that codes them

    def encode() -> None:
        kernels.encode_run(symbols, classes, info, inverse, np.full(8, 1 << 16, np.uint64), words, words.size)

    def decode() -> None:
        rans.Decoder(stream).run(classes)

    label = f"rANS, {name}, {ideal:.2f} bit/symbol"
    return [
        {
            "what": f"{label}: encode",
            "measured": round(SYMBOLS / best_of(encode) / 1e6, 1),
            "unit": "Msymbol/s, one core",
        },
        {
            "what": f"{label}: decode",
            "measured": round(SYMBOLS / best_of(decode) / 1e6, 1),
            "unit": "Msymbol/s, one core",
        },
        {
            "what": f"{label}: size above the ideal code length",
            "measured": round(100 * (8 * (len(stream) - rans.HEADER_BYTES) / SYMBOLS / ideal - 1), 4),
            "unit": "%",
        },
    ]


def whole_file() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    shapes = [(4096, 1024)] * 4 + [(1024, 4096)] * 2
    weights = {f"w{i}": rng.laplace(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}
    count = sum(w.size for w in weights.values())
    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder) / "w.safetensors", Path(folder) / "w.wf"
        save_file(weights, source)
        start = time.perf_counter()
        waterfill.compress(source, rate=3.0).save(path)
        seconds = time.perf_counter() - start
        decode = best_of(lambda: waterfill.decompress(path))
    return [
        {"what": f"decompress {count / 1e6:.1f}M values at 3 bit", "measured": round(decode, 3), "unit": "s"},
        {"what": "the same, per second", "measured": round(count / decode / 1e6, 1), "unit": "Mvalue/s, all cores"},
        {"what": "compress them to 3 bit, kernels warm or not", "measured": round(seconds, 1), "unit": "s"},
    ]


def imports() -> list[dict[str, Any]]:
    code = "import time, torch; t = time.perf_counter(); import waterfill; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(7)]
    seconds = statistics.median(float(run.stdout) for run in runs)
    return [{"what": "import waterfill, after torch", "measured": round(seconds, 3), "unit": "s, median of 7"}]


def main() -> None:
    rows = coder(5, 36, "Laplace") + coder(8, 32, "Gaussian") + coder(8, 48, "Gaussian") + whole_file() + imports()
    text = (
        f"Best of {REPEATS} runs unless said otherwise, on a shared machine with {os.cpu_count()} cores "
        "(other work was running)."
    )
    write("speed", "Speed", text, rows)


if __name__ == "__main__":
    main()
