"""A small experiment in the form of the paper's, on made data."""

import dataclasses
from collections import OrderedDict

import numpy as np
import pytest
from torch import nn

from waterfill.reproduce import EXPERIMENTS, Options, reproduce
from waterfill.reproduce.experiments import Sweep
from waterfill.zoo.training import Recipe


def perceptron(width):  # noqa: ARG001
    layers = OrderedDict(flatten=nn.Flatten(), fc1=nn.Linear(784, 8), relu=nn.ReLU(), fc2=nn.Linear(8, 10))
    return nn.Sequential(layers)


TINY = dataclasses.replace(
    EXPERIMENTS["mnist"],
    objectives=tuple(
        dataclasses.replace(objective, regularisers=objective.regularisers[:2])
        for objective in EXPERIMENTS["mnist"].objectives
    ),
    network=perceptron,
    recipe=Recipe(epochs=4, batch_size=32),
    validation=64,
    keeps=(0.05, 0.3),
    codebooks=(2, 5),
    sweeps=(
        Sweep(11, "temperature", (0.05,), ("gradient",)),
        Sweep(12, "mu", (0.05,), ("hessian", "gradient+hessian"), (0.0, 0.1)),
    ),
    temperatures=(1.0, 3.0),
)
OPTIONS = Options(samples=64)


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture(scope="session")
def options():
    return OPTIONS


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """A data set in the place and form of MNIST: a pattern for each class, and noise."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    patterns = rng.integers(0, 160, (10, 28, 28))
    arrays = {}
    for split, count in (("train", 512), ("test", 200)):
        labels = rng.integers(0, 10, count)
        noise = rng.integers(-90, 90, (count, 28, 28))
        arrays[f"{split}_images"] = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    np.savez(root / "mnist.npz", **arrays)
    return root


@pytest.fixture(autouse=True)
def data_folder(data_root, monkeypatch):
    monkeypatch.setenv("WATERFILL_DATA", str(data_root))


@pytest.fixture(scope="session")
def finished(data_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WATERFILL_DATA", str(data_root))
        return folder, reproduce(TINY, folder, OPTIONS)
