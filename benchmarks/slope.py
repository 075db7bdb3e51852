"""Measured divergence, predicted distortion and the limit of whole networks against the rate, in dB beside 6.02 a bit.

`--only` measures some networks and keeps the rows of the others; without a name it writes the page again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

import commits
import pictures
import results
import slope_parts
import waterfill
from compressed import Once
from decoding import decoded
from measure import say
from results import Section
from waterfill import importance, zoo
from waterfill.compression.bound import ModelBound
from waterfill.results import CompressionResult
from waterfill.zoo import Batches

Row = dict[str, Any]

WHOLE_BITS = (1, 2, 3, 4, 5)
PER_BIT = 20 * math.log10(2)
"""dB that a bit per weight is worth where every weight takes bits: 6.02."""


@dataclass(frozen=True)
class Network:
    """A network of the zoo.

    Attributes:
        name: for people.
        calibration: loads the data that compression sees.
        test: loads those it does not.
        tested: on how many of these the divergence is measured; None for all.
        test_samples: how many of them errors are taken apart on.
        batches: of the calibration data errors are taken apart on, and layers are looked at alone on.
        rates: bits per value.
        alone: those at which layers are also looked at alone.
    """

    name: str
    calibration: Callable[[], Batches]
    test: Callable[..., Batches]
    tested: int | None
    test_samples: int
    batches: tuple[int, int]
    rates: Sequence[float] = WHOLE_BITS
    alone: Sequence[float] = (1, 3)


NETWORKS = {
    "lenet300": Network(
        "LeNet-300-100",
        zoo.mnist_calibration,
        zoo.mnist_test,
        None,
        10_000,
        (8, 8),
        (0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8),
    ),
    "charlstm": Network("character LSTM", zoo.charlstm_calibration, zoo.charlstm_test, None, 8, (8, 8)),
    "resnet20": Network("ResNet-20", zoo.cifar10_calibration, zoo.cifar10_test, 2_000, 250, (4, 1), alone=(3,)),
}

KL, PREDICTED, LIMIT = "KL, test", "predicted", "limit at this rate"
MEASURE, ITS_LIMIT = "the file's measure", "its limit at this rate"
CURVES = (KL, PREDICTED, LIMIT, MEASURE, ITS_LIMIT)

NATS = (
    "Files of `compress(model, data, rate=..., effort='fast')`. *KL*: of the decoded network from the original, nats, "
    "on the test set (ResNet-20: 2,000 images) and on the calibration data. *Predicted*: the sum of the quadratic "
    "forms of the errors of all tensors (`predicted_distortion`). *Limit at this rate*: the least distortion by the "
    "same forms in a file of as many bits (`waterfill.bound`). *The file's measure*: the forms to the power .5, which "
    "chose the steps (`limit_distortion`; its unit is not nats), and the least that it can be at this rate "
    "(`limit_curve`)."
)
DECIBELS = (
    "The same as `10 log10`, and slopes from the row above, dB a bit. A bit per weight is worth 6.02 dB where every "
    "weight takes bits."
)
PARTS = (
    "The way from the prediction to the measured divergence, nats. *Second order*: the divergence after a hundredth of "
    "the way from the original to the decoded weights, times 10,000, which is the whole quadratic form, products of "
    "errors of all layers in it; on the calibration data (ResNet-20: 512 images) and on a part of the test set "
    f"({', '.join(f'{each.name}: {each.test_samples:,}' for each in NETWORKS.values())} samples or streams). The last "
    "four divergences are on that part, too: the decoded network, in passes of 64 and of 32 bits; the original with "
    "decoded matrices alone, and with all other decoded tensors alone. Batch norms are folded in all. The *share* is "
    "of the file's bytes that belong to no matrix."
)
LAYERS = (
    "The sum of the forms of the matrices, nats; the sum of the second order of each of them alone with random signs "
    "of the rows of its error, which leaves products of errors in different rows out (mean of two draws); the same sum "
    "with the errors as they are; and the second order of all at once. On the calibration data (ResNet-20: 128 images)."
)
TITLES = ("Distortion against rate", "In dB", "From the prediction to the divergence", "Layer by layer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    options = parser.parse_args()
    for key in options.only:
        remember(*measured(key))
    page()


def measured(key: str) -> tuple[list[Row], list[Row], list[Row]]:
    """A network at all its rates: distortions, what they are made of, and layers alone."""
    network = NETWORKS[key]
    subject = Subject.of(network, zoo.pretrained(key).eval())
    taken = list(network.test(samples=network.test_samples))
    images = slope_parts.Data(subject.data, taken, *network.batches)
    rows, parts, layers = [], [], []
    for rate in network.rates:
        result = subject.compressed(rate)
        compressed = decoded(result.data, deepcopy(subject.model))
        rows.append(subject.row(result, compressed))
        start = {"network": network.name, "bit/value": round(result.rate, 3)}
        parts.append(start | slope_parts.parts(subject.model, compressed, result, images))
        if rate in network.alone:
            layers.append(start | slope_parts.layers(subject.model, compressed, result, images))
        say(f"{rows[-1]} {parts[-1]}")
    return rows, parts, layers


def row(key: str, rate: float) -> Row:
    """Distortions of a network at one rate."""
    subject = Subject.of(NETWORKS[key], zoo.pretrained(key).eval())
    result = subject.compressed(rate)
    return subject.row(result, decoded(result.data, deepcopy(subject.model)))


@dataclass(frozen=True)
class Subject:
    """A network with its data, importance and limit, which all of its rates share.

    Attributes:
        network: which one.
        model: with its weights.
        data: for calibration.
        test: on which the divergence is measured.
        estimator: of the importance.
        bound: the limit.
        commit: of the code that measures.
    """

    network: Network
    model: nn.Module
    data: list[Any]
    test: list[Any]
    estimator: Any
    bound: ModelBound
    commit: str

    @classmethod
    def of(cls, network: Network, model: nn.Module) -> Subject:
        commit = commits.commit(also=("benchmarks",))
        data, test = list(network.calibration()), list(network.test(samples=network.tested))
        estimator: Any = Once(importance.kronecker())
        return cls(network, model, data, test, estimator, waterfill.bound(model, data, importance=estimator), commit)

    def compressed(self, rate: float) -> CompressionResult:
        return waterfill.compress(self.model, self.data, rate=rate, importance=self.estimator, effort="fast")

    def row(self, result: CompressionResult, decoded: nn.Module) -> Row:
        """Distortions at the rate of a file."""
        start = {"network": self.network.name, "bit/value": round(result.rate, 3)}
        kl = waterfill.evaluate(decoded, self.test, reference=self.model).kl
        end = {LIMIT: self.bound.distortion(result.rate), "commit": self.commit}
        return start | {KL: kl} | distortions(result) | end


def distortions(result: CompressionResult) -> Row:
    """Distortions and limits that a file has of itself."""
    return {
        "KL, calibration": result.distortion,
        PREDICTED: result.predicted_distortion,
        MEASURE: result.limit_distortion,
        ITS_LIMIT: least(result.limit_curve, result.rate),
    }


def least(curve: Sequence[tuple[float, float]], rate: float) -> float:
    """The distortion of a limit at a rate, between its points straight in dB."""
    (low, high) = next((a, b) for a, b in pairwise(curve) if a[0] <= rate <= b[0])
    share = (rate - low[0]) / (high[0] - low[0])
    return math.exp((1 - share) * math.log(low[1]) + share * math.log(high[1]))


def in_decibels(rows: Sequence[Row]) -> list[Row]:
    """All curves in dB, each with its slope from the row before."""
    found: list[Row] = []
    before: Mapping[str, Any] = {"network": ""}
    for row in rows:
        cells: Row = {"network": row["network"], "bit/value": row["bit/value"]}
        for name in CURVES:
            cells[name] = round(10 * math.log10(row[name]), 2)
            same = before["network"] == row["network"]
            cells[f"slope, {name}"] = _slope(before, row, name) if same else "-"
        found.append(cells)
        before = row
    return found


def _slope(before: Mapping[str, Any], row: Row, name: str) -> float:
    fall = 10 * math.log10(before[name] / row[name])
    width: float = row["bit/value"] - before["bit/value"]
    return round(fall / width, 2)


def remember(rows: list[Row], parts: list[Row], layers: list[Row]) -> None:
    """Put the rows of a network into the JSON file, in the order of networks."""
    known = results.read("slope")
    order = [network.name for network in NETWORKS.values()]
    name = rows[0]["network"]
    for title, new in ((TITLES[0], rows), (TITLES[2], parts), (TITLES[3], layers)):
        kept = [row for row in known.get(title, []) if row["network"] != name]
        known[title] = sorted([*kept, *new], key=lambda row: order.index(row["network"]))
    results.keep("slope", known, named=[row["commit"] for row in known[TITLES[0]]])


def page() -> None:
    known = results.read("slope")
    rows = known[TITLES[0]]
    decibels = in_decibels(rows)
    sections = [
        Section(TITLES[0], NATS, rows),
        Section(TITLES[1], DECIBELS, decibels, pictures.slopes(decibels, CURVES[:3], PER_BIT)),
        Section(TITLES[2], PARTS, known[TITLES[2]]),
        Section(TITLES[3], LAYERS, known[TITLES[3]]),
    ]
    text = "Measurements for [the theory](../theory.md#what-a-bit-is-worth), which says where and why the curves part."
    results.write_page("slope", "What a bit is worth", text, sections, named=[row["commit"] for row in rows])


if __name__ == "__main__":
    main()
