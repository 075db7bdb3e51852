"""Measure one quantizer on one weight: bits of a file that was packed and decoded, against reverse water-filling."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np

from waterfill.codec import container
from waterfill.files import WaterfillFile
from waterfill.importance.factored import KroneckerForm
from waterfill.protocols import QuadraticForm, Quantizer
from waterfill.records import Coded, Entry, Quantized, Weight
from waterfill.theory.waterfilling import Rectangles

NEAR = 0.02
"""A file is near enough to the rate that is asked for within so many bits per weight."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A file of one weight.

    Attributes:
        rate: bits of the whole file per weight.
        share: the part of it that is the tensor's own: symbols, scales and tables.
        distortion: what the decoded errors cost, in total.
        seconds: CPU time of the search for symbols.
        item: what the file says.
    """

    rate: float
    share: float
    distortion: float
    seconds: float
    item: Quantized


def measured(weight: Weight, quantizer: Quantizer, form: QuadraticForm | None, level: float) -> Measured:
    """Quantize at a water level, pack, decode."""
    start = time.process_time()
    item = quantizer.quantize(weight, form, level)
    seconds = time.process_time() - start
    shape = weight.layout.shape
    packed = container.pack((Entry("w", shape, "float32", Coded(weight.layout)),), {"w": item}, {}, "")
    error = weight.layout.to_matrix(WaterfillFile(packed.data)["w"].numpy()) - weight.matrix
    cost = float(np.square(error, dtype=np.float64).sum()) if form is None else form.cost(error)
    bits = 8 / weight.matrix.size
    return Measured(bits * len(packed.data), bits * packed.tensor_bytes["w"], cost, seconds, item)


def at_rate(weight: Weight, quantizer: Quantizer, form: KroneckerForm, rate: float, tries: int = 5) -> Measured:
    """Measure it where the tensor's own part of the file is near a rate: Newton's steps at the slope of high rate."""
    spectrum = volumes(form, power(weight))
    level, best = spectrum.level_at_rate(rate * weight.matrix.size), None
    for _ in range(tries):
        found = measured(weight, quantizer, form, level)
        if best is None or abs(found.share - rate) < abs(best.share - rate):
            best = found
        if abs(found.share - rate) < NEAR:
            break
        level *= 4.0 ** float(np.clip(found.share - rate, -2, 2))
    assert best is not None
    return best


def volumes(form: KroneckerForm, variance: float) -> Rectangles:
    """What reverse water-filling fills for independent Gaussian weights of a variance: eigenvalues of `G (x) A`.

    Args:
        form: with the diagonal of G.
        variance: of every weight.
    """
    if form.rows.ndim != 1:
        raise ValueError(f"The factor over rows has {form.rows.ndim} axes; expected the vector of its diagonal.")
    values = np.linalg.eigvalsh(form.columns) if form.columns.ndim == 3 else form.columns
    rows = form.rows.reshape(len(values), -1, 1)
    return Rectangles(variance * rows * np.maximum(values, 0)[:, None, :])


def limit(weight: Weight, form: KroneckerForm, distortion: float) -> float:
    """Bits per weight of independent Gaussian weights of the same variance at a distortion."""
    return volumes(form, power(weight)).rate_at_distortion(distortion) / weight.matrix.size


def power(weight: Weight) -> float:
    """Mean square of the weights."""
    return float(np.square(weight.matrix, dtype=np.float64).mean())


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
