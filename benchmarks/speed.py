"""Speed: the coder and decoding, the stages of compression beside their floors, and CPU time beside other codecs.

    python benchmarks/speed.py --tree before=OLD --tree now=. --keep FOLDER

What `--keep` has of the same commit is not measured again. Packages are those of `speed_peers.py` and `walks.py`.
"""

from __future__ import annotations

import argparse
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

import hf_models
import minilm
import results
import stages
import waterfill
from results import Section
from stages import Step
from walks import Run, Tree
from waterfill.codec import kernels, rans, tables

CODING = "Coding and decoding"
PEERS_TITLE = "Beside other codecs: all-MiniLM-L6-v2, 22.7 M weights"
PEERS_TEXT = (
    "CPU seconds of the whole call on one thread, with calibration, one run after the other. The error is that of the "
    "embeddings of 500 sentences of WikiText-2 test: of their means at length 1 without data, of all outputs with "
    "data, so lines without and with data are not to be compared by it."
)
PEERS = {
    "nncodec": ("NNCodec 2.1.3, qp -26", "dependent quantization, adaptive contexts, no data"),
    "gptq": ("GPTQ, 3 bit in groups of 32, act-order", "implemented here; 128 sentences; embeddings rounded"),
}
"""Method and what it does, by way of `speed_peers.py`."""

OURS = {
    "minilm-no-data": ("waterfill, rate 3", "no data"),
    "minilm": ("waterfill, rate 3, directory", "128 sentences"),
}
"""The same by case of `walks.py`."""

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
    stream = rans.encode([rans.Run(symbols, classes)])
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


def coding(fresh: bool) -> Section:
    """The coder, decoding and importing; what the page has where it is not to be fresh."""
    known = [] if fresh else results.read("speed").get(CODING, [])
    rows = known or [*coder(5, 36, "Laplace"), *coder(8, 32, "Gaussian"), *coder(8, 48, "Gaussian")]
    rows = known or [*rows, *whole_file(), *imports()]
    text = f"Best of {REPEATS} runs unless said otherwise, on a shared machine with {os.cpu_count()} cores."
    return Section(CODING, text, rows)


def peers(tree: Tree, keep: Path, kept: bool) -> Section:
    """CPU microseconds a weight; measures what is not kept, of ours of this or of any commit."""
    if not (keep / "sources" / "minilm" / "config.json").exists():
        hf_models.sentences(keep / "sources" / "minilm")
    found = [(*of, _measured(_step(way, tree, keep), any_commit=True)) for way, of in PEERS.items()]
    found += [(*of, _measured(Run(case, tree, 0, keep), kept)) for case, of in OURS.items()]
    values = sum(each.numel() for each in minilm.pretrained().parameters())
    return Section(PEERS_TITLE, PEERS_TEXT, [_peer(*each, values) for each in found])


def _step(way: str, tree: Tree, keep: Path) -> Step:
    return Step("speed_peers.py", (way, keep / "sources"), keep / f"peers-{way}.json", tree)


def _measured(run: Step | Run, any_commit: bool) -> dict[str, Any]:
    found = run.measured(any_commit)
    if found is None:
        run.measure()
        found = run.measured()
    assert found is not None
    return found


def _peer(method: str, what: str, row: dict[str, Any], values: int) -> dict[str, Any]:
    return {
        "method": method,
        "what it does": what,
        "CPU s": round(row["call_cpu"], 1),
        "CPU microseconds a weight": round(1e6 * row["call_cpu"] / values, 2),
        "bit/value": round(8 * row["bytes"] / values, 3),
        "relative squared error": float(f"{row['loss']:.3g}"),
    }


def main() -> None:
    options = _options()
    if not options.write:
        stages.measure(options.tree, options.keep)
    sections = [coding(options.fresh), *stages.sections(options.tree, options.keep)]
    if not options.no_peers:
        sections.append(peers(options.tree[-1], options.keep, options.write))
    commits = ", ".join(f"*{tree.name}* is {tree.commit}" for tree in options.tree)
    text = f"{commits}. Measured on {results.processor()}. Whole compressions are [on a page of their own](cases.md)."
    named = [] if options.write else [tree.commit for tree in options.tree]
    results.write_page("speed", "Speed", text, sections, (), named)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Tree.read, action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--fresh", action="store_true", help="measure the coder again")
    parser.add_argument("--write", action="store_true", help="take what is kept of any commit")
    parser.add_argument("--no-peers", action="store_true", help="without other codecs")
    place = Path(tempfile.gettempdir()) / "waterfill-walks"
    parser.add_argument("--keep", type=Path, default=place, help="where raw results stay; that of walks.py")
    return parser.parse_args()


if __name__ == "__main__":
    main()
