"""How fast paths are searched and decoded on a GPU, beside one core; without a GPU, what its programs have to do.

    python benchmarks/devices.py

Without a GPU rows say so. Programs are compiled for compute capability 9.0 by the Triton that is installed, GPU or not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pace
import results
import waterfill
from measure import measured
from results import Section
from waterfill.codec import container
from waterfill.files import WaterfillFile
from waterfill.importance.factored import KroneckerForm
from waterfill.quantize import Feedback, Trellis
from waterfill.quantize.trellis import Problem
from waterfill.records import Coded, Entry, Layout, Quantized, Weight

Row = dict[str, Any]

WITHOUT = "no GPU was there"
SIDE = 4096
TALL = 14336
PAGE = (
    "Matrices of normal weights, 64 states if not said otherwise; CPU seconds of the processor, seconds of the GPU on "
    "the wall, warm, with transfers. Symbols of a search without feedback have to be the same; with feedback sums of "
    "errors round otherwise, and bits and distortion are compared. Tests compare both on small matrices without a GPU, "
    "by Triton's interpreter."
)
COUNTED = (
    "Instructions in the innermost loops, of one warp, as the assembler of Triton makes them for compute capability "
    "9.0: counted, not measured. A weight of 64 states takes one step of one warp; segments that begin before their "
    "first weight take {share} steps a weight in a path of 65,536 weights alone, and one where there are a thousand "
    "paths."
)


def seconds(work: Callable[[], Any], clock: Callable[[], float], times: int = 1) -> float:
    """Least seconds, after a first run."""
    work()
    return pace.best(work, times, clock)


def compared(what: str, size: int, here: Callable[[], Any], there: Callable[[], Any], alike: Callable[..., str]) -> Row:
    """A row of the page: both paces, and how alike the results are."""
    found = {"what": what, "one core, Mweight/s": round(size / seconds(here, time.process_time) / 1e6, 1)}
    if not torch.cuda.is_available():
        return found | {"GPU, Mweight/s": WITHOUT, "results": WITHOUT}
    speed = round(size / seconds(there, time.perf_counter, 3) / 1e6, 1)
    return found | {"GPU, Mweight/s": speed, "results": alike(here(), there())}


def same(one: Any, other: Any) -> str:
    """Whether symbols or values are the same."""
    return "equal" if np.array_equal(np.asarray(one), np.asarray(other)) else "DIFFERENT"


def searches() -> list[Row]:
    """Searches without feedback, then with it."""
    rng, rows = np.random.default_rng(0), []
    for states in (8, 64, 256):
        x = rng.normal(size=(SIDE, SIDE, 1)).astype(np.float32) * 4
        problem = Problem(x, np.ones((1, 1, 1), np.float32), Layout((SIDE, SIDE)), 0.35)
        problem = problem.side_by_side(
            problem.sample().drafted(problem.sample().start(False), 1), states.bit_length() - 1
        )
        fit, log = problem.start(False), states.bit_length() - 1

        def find(each: Problem, fit: Any = fit, log: int = log) -> Any:
            return each.solve(fit, log).levels

        on_device = replace(problem, device="cuda")
        what = f"search of {SIDE} x {SIDE}, {states} states, with fits of tables"
        both = ((lambda p=each, f=find: f(p)) for each in (problem, on_device))
        rows.append(compared(what, x.size, *both, same))
    for out, inputs in ((SIDE, SIDE), (TALL, SIDE)):
        weight = Weight("w", rng.normal(size=(out, inputs)).astype(np.float32), Layout((out, inputs)))
        mixed = rng.normal(size=(2 * inputs, inputs)) @ (np.eye(inputs) + 0.9 * np.eye(inputs, k=1))
        form = KroneckerForm(np.ones(out), (mixed.T @ mixed / len(mixed))[None])
        quantizers = Feedback(), Feedback(device="cuda")
        here, there = (lambda q=q, w=weight, f=form: q.quantize(w, f, 0.02) for q in quantizers)
        rows.append(compared(f"quantizing {out} x {inputs} with feedback, all of it", out * inputs, here, there, near))
    return rows


def near(one: Quantized, other: Quantized) -> str:
    """How far bits and distortion are apart."""
    bits = (other.bits - one.bits) / one.symbols.size
    return f"{bits:+.5f} bit, distortion {100 * (other.distortion / one.distortion - 1):+.3f} %"


def decoding() -> list[Row]:
    """A file of one matrix to its tensor, in single precision and in half of it."""
    matrix = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    item = measured(Weight("w", matrix, Layout(matrix.shape)), Trellis(64), None, 0.0156).item
    assert item is not None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", "bfloat16"):
            path = Path(folder) / f"{dtype}.wf"
            entry = Entry("w", matrix.shape, dtype, Coded(Layout(matrix.shape)))
            path.write_bytes(container.pack((entry,), {"w": item}, {}, "devices").data)

            def there(path: Path = path, dtype: str = dtype) -> Any:
                into = torch.empty(SIDE, SIDE, dtype=getattr(torch, dtype), device="cuda")
                with WaterfillFile(path) as file:
                    found = dict(file.tensors(into={"w": into}))["w"]
                torch.cuda.synchronize()
                return found

            def here(path: Path = path) -> Any:
                return waterfill.decompress(path, threads=1)["w"]

            values = lambda a, b: same(a.float(), b.float().cpu())  # noqa: E731
            rows.append(compared(f"file to tensor, {SIDE} x {SIDE}, {dtype}", matrix.size, here, there, values))
    return rows


COMPILE = """
import sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from waterfill.quantize import device_kernels as search

def compiled(name, kernel, kinds, other, constants, warps):
    signature = {each: kinds.get(each, other) for each in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    Path(sys.argv[1], name + ".cubin").write_bytes(made.asm["cubin"])

whole = dict.fromkeys("far warm segments".split(), "i32")
for log in (3, 6):
    constants = {"STATES": 1 << log, "LOG": log, "SEGMENT": 1024}
    compiled(f"search with {1 << log} states", search.extend_segments, whole, "*i32", constants, 1)
import triton.backends.nvidia as nvidia
print(Path(nvidia.__file__).parent / "bin" / "nvdisasm")
"""


def counted() -> list[Row]:
    """Instructions of the innermost loops."""
    environment: Mapping[str, str] = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as folder:
        known = {"capture_output": True, "text": True, "check": True, "env": environment}
        tool = subprocess.run([sys.executable, "-c", COMPILE, folder], **known).stdout.strip()  # type: ignore[call-overload]
        listings = {
            path.stem: subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True).stdout
            for path in sorted(Path(folder).glob("*.cubin"))
        }
    return [{"program": name, **_of_loop(text)} for name, text in listings.items()]


def _of_loop(listing: str) -> Row:
    """Instructions, shuffles and loads of the innermost loop with the most shuffles."""
    lines = [line for line in listing.splitlines() if re.search(r"/\*[0-9a-f]{4}\*/|^\.L_", line)]
    labels = {line.split(":")[0].strip(): n for n, line in enumerate(lines) if line.startswith(".L_")}
    loops = []
    for end, line in enumerate(lines):
        jump = re.search(r"BRA `\((\.L_\w+)\)", line)
        if jump and labels.get(jump[1], end) < end:
            loops.append(lines[labels[jump[1]] : end + 1])
    inner = [loop for loop in loops if not any(set(map(id, other)) < set(map(id, loop)) for other in loops)]
    best = max(inner, key=lambda loop: sum("SHFL" in line for line in loop))
    steps = max(1, sum("SHFL" in line for line in best) // SHUFFLES)
    count = lambda word: sum(word in line for line in best) / steps  # noqa: E731
    return {"instructions a weight": count("/*"), "shuffles": count("SHFL"), "loads": count("LDG")}


SHUFFLES = 8
"""In one step of a search: costs and histories of two halves, to two places each."""


def main() -> None:
    rows = searches() + decoding()
    there = torch.cuda.get_device_name() if torch.cuda.is_available() else WITHOUT
    text = f"Measured on {results.processor()}; GPU: {there}."
    sections = [Section("Search and decoding", PAGE, rows)]
    sections.append(Section("What a step takes", COUNTED.format(share="2.3"), counted()))
    results.write_page("devices", "On a GPU", text, sections)


if __name__ == "__main__":
    main()
