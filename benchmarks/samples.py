"""Make one cheap row of every page again, by the functions that made it; say why there is none of the others.

A new page of `docs/results` needs a line in `SAMPLES`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import bases
import data_free
import feedback_gaps
import gaps
import hf
import hf_ways
import hostile
import importance
import kmeans
import known_sources
import lenet
import networks
import peer_networks
import peers
import slope
import sparse
import speed
import stories
import walk_cases
import walks
from hf_tasks import KL, STORIES
from waterfill import zoo
from waterfill.importance import gradient, weight_scale
from waterfill.reproduce import EXPERIMENTS, Options
from waterfill.reproduce.run import Step, open_lab

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Within:
    """How far a number may be from the recorded one.

    Attributes:
        relative: as a share of the recorded one.
        absolute: besides.
    """

    relative: float = 0.0
    absolute: float = 0.0

    def holds(self, recorded: float, now: float) -> bool:
        """Say whether a number is near enough."""
        return abs(now - recorded) <= self.relative * abs(recorded) + self.absolute


BYTES = Within(0.003)
RATE = Within(0.003)
PERCENT = Within(absolute=0.01)
ERROR = Within(0.05)
"""Files of equal settings differ that much from machine to machine."""


@dataclass(frozen=True)
class Sample:
    """A row that is made again.

    Attributes:
        row: what it is, for people.
        section: where the page has it: a key of its JSON file.
        where: finds it there.
        make: makes it.
        columns: which numbers are compared, and how near they have to be.
        source: name of the JSON file, if it is not that of the page.
    """

    row: str
    section: str
    where: Callable[[Row], bool]
    make: Callable[[], Row]
    columns: Mapping[str, Within]
    source: str = ""


def has(**cells: Any) -> Callable[[Row], bool]:
    """Find a row by some of its cells."""
    return lambda row: all(row.get(key) == cell for key, cell in cells.items())


# Rows of pages that are measured for several networks or settings at once


def _autoregression(basis: str) -> Row:
    return next(row for row in bases.autoregression_rows((2.0,), 64) if row["basis"] == basis)


def _case(key: str) -> Row:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as sources, tempfile.TemporaryDirectory() as out:
        for step in walk_cases.STEPS.values():
            found |= step(walk_cases.CASES[key], Path(sources), Path(out))
    return {"bytes": found["bytes"], "quality": walks.qualities(found)}


def _data_free() -> Row:
    network = next(each for each in data_free.NETWORKS if each.key == "lenet300")
    _, size, error = data_free.own(network, data_free.NOW, 3.5)
    return {"bytes": size, "error": error}


def _importance() -> Row:
    data = list(zoo.cifar10_calibration(samples=1024))
    return importance.measured(gradient(), zoo.pretrained("resnet20").eval(), data)[0]


def _kmeans() -> Row:
    return next(row for row in kmeans.drawn("Gaussian", (16,)).rows if row["method"] == "Lloyd from quantiles")


def _limits() -> Row:
    return gaps.gaussian(np.random.default_rng(0), 1 << 20, (64,), (0.0625,))[-1]


def _losses() -> Row:
    return feedback_gaps.files("AR(.9)", feedback_gaps.forms()["AR(.9)"], 3.0)


def _paper() -> Row:
    with tempfile.TemporaryDirectory() as folder:
        lab = open_lab(EXPERIMENTS["cifar10"], Path(folder), Options(samples=1, test_samples=100), None)
        return lab.row(Step("prune", 0.5, "baseline"))


def _peers() -> Row:
    network = next(each for each in peer_networks.NETWORKS if each.key == "lenet300").at_rates([0.46])
    found: list[dict[str, Any]] = []
    peers.measured(network, [peer_networks.WATERFILL], found.extend, argparse.Namespace(quick=False, work=None))
    return found[-1]


def _stories() -> Row:
    return stories.row(4.0, weight_scale(), zoo.pretrained("stories260k"), list(zoo.stories_test()))


def _theory() -> Row:
    return networks.row("lenet300", networks.compressed_at("lenet300", (1.0,))[1.0])


def _transformers() -> Row:
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        asked = {"work": Path(folder), "methods": (hf_ways.WATERFILL,), "rates": (3.0,), "bits": (), "settings": ""}
        hf.measured(STORIES, argparse.Namespace(**asked), found.append, set())
    return found[-1]


SAMPLES: dict[str, Sample | str] = {
    "bases": Sample(
        "AR(0.9), 2 bit, learnt",
        "An autoregression",
        has(asked=2.0, basis="learnt"),
        partial(_autoregression, "learnt"),
        {"bit/weight": RATE, "above R(D)": ERROR},
    ),
    "cases": Sample(
        "LeNet-300-100, rate 2",
        "Measured",
        has(case="LeNet-300-100, rate 2, 1,024 images", tree="now"),
        partial(_case, "lenet300"),
        {"bytes": BYTES, "quality": ERROR},
    ),
    "checks": "it has only seconds",
    "data_free": Sample(
        "LeNet-300-100, rate 3.5",
        "lenet300",
        has(codec="default", setting="rate 3.5"),
        _data_free,
        {"bytes": BYTES, "error": ERROR},
    ),
    "devices": "it has only seconds, and instructions that an assembler chooses",
    "hostile": Sample(
        "2,000 tensors", "Very many tensors", has(tensors=2000), partial(hostile.tensors, 2000), {"bytes": BYTES}
    ),
    "importance": Sample(
        "gradient", "ResNet-20", has(importance="gradient"), _importance, {"error by samples, %": ERROR}
    ),
    "kmeans": Sample(
        "Gaussian, 16 centroids, Lloyd from quantiles",
        "Gaussian, 1,000,000 weights",
        has(k=16, method="Lloyd from quantiles"),
        _kmeans,
        {"excess cost, %": ERROR},
    ),
    "lenet": Sample(
        "lenet300", "rows", has(network="lenet300"), partial(lenet.row, "lenet300"), {"bytes": BYTES, KL: ERROR}
    ),
    "limits": Sample(
        "Gaussian, 2 bit, 64 states",
        "Independent weights",
        lambda row: (row["source"], row["states"]) == ("Gaussian", 64) and round(row["bit/weight"]) == 2,
        _limits,
        {"bit/weight": RATE, "gap": ERROR},
    ),
    "losses": Sample(
        "AR(.9), 3 bit",
        "Feedback against the limit, form by form",
        lambda row: row["A"] == "AR(.9)" and round(row["bit/weight, steps"]) == 3,
        _losses,
        {"bit/weight, 64 states": RATE, "gap, steps": ERROR, "gap, 64 states": ERROR},
    ),
    "paper": Sample(
        "CIFAR-10, half of the weights, baseline",
        "points",
        has(task="prune", amount=0.5, objective="baseline", variant="paper"),
        _paper,
        {"size_bytes": BYTES},
        source="paper/cifar10",
    ),
    "peers": Sample(
        "LeNet-300-100, rate 0.46",
        "LeNet-300-100",
        has(codec="waterfill", setting="rate 0.46"),
        _peers,
        {"bytes": BYTES, KL: ERROR},
    ),
    "plan": "it is computed from one block that takes ten minutes",
    "reader_fuzzing": "a fuzzer ran for hours",
    "readers": "it compresses wide matrices and makes environments, for minutes",
    "slope": Sample(
        "LeNet-300-100, rate 3",
        "Distortion against rate",
        lambda row: row["network"] == "LeNet-300-100" and round(row["bit/value"]) == 3,
        partial(slope.row, "lenet300", 3.0),
        {"bit/value": RATE, slope.KL: ERROR, slope.PREDICTED: ERROR, slope.LIMIT: ERROR},
    ),
    "sparse": Sample(
        "lenet300", "Files", has(network="lenet300"), lambda: sparse.measure("lenet300")[0], {"bytes": BYTES}
    ),
    "sources": Sample(
        "autoregression, 2 bit",
        "Sources that are known",
        lambda row: row["source"] == "autoregression of .9 along rows" and round(row["rate"]) == 2,
        partial(known_sources.one, "autoregression of .9 along rows", 2.0),
        {"rate": RATE, "limit": RATE},
    ),
    "speed": Sample(
        "rANS, Laplace, size above the ideal",
        "Coding and decoding",
        has(what="rANS, Laplace, 2.48 bit/symbol: size above the ideal code length"),
        lambda: speed.coder(5, 36, "Laplace")[-1],
        {"measured": PERCENT},
    ),
    "stories": Sample(
        "weight_scale, rate 4",
        "rows",
        lambda row: (row["importance"], row["asked bit/value"]) == ("weight_scale(1)", 4.0),
        _stories,
        {"bytes": BYTES, KL: ERROR},
    ),
    "theory": Sample(
        "LeNet-300-100, rate 1",
        "Whole networks: files and their limits",
        lambda row: row["network"] == "LeNet-300-100" and round(row["bit/value"]) == 1,
        _theory,
        {"bytes": BYTES, "limit": ERROR, "KL on the calibration data": ERROR},
    ),
    "transformers": Sample(
        "stories260K, rate 3",
        "stories260K",
        has(method="waterfill", setting="rate 3"),
        _transformers,
        {"bytes": BYTES, KL: ERROR},
    ),
    "walks": "it compares two commits, which stay what they are",
}
"""By page: what is made again, or why nothing is."""
