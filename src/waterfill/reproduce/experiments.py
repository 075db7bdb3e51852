"""What the paper measured: data sets, networks, objectives, ratios and figures.

Source: sections 6 and appendix C of the paper; the ranges are those of the axes of its figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from waterfill import zoo
from waterfill.importance import gradient, gradient_hessian, hessian, kl
from waterfill.protocols import Estimator
from waterfill.zoo.training import Recipe

Task: TypeAlias = Literal["prune", "quantize"]

TEMPERATURES = tuple(float(temperature) for temperature in range(1, 10))
"""T of the paper, 1 to 9."""

REGULARISERS = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)
"""mu that are tried with squares. The paper finds its own by a search, too; its figure 12 goes from 0 to .25."""

PAPER_REGULARISERS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
"""mu on the axis of figure 12."""

QUARTIC_REGULARISERS = (0.0, 1e3, 1e4, 1e5, 1e6, 1e7)
"""The same with fourth powers, which cost 1e2 to 1e6 times less than the squares when a whole weight is lost."""


@dataclass(frozen=True)
class Objective:
    """One row of the paper's tables: what the error of a weight costs.

    Attributes:
        name: as in the figures.
        estimator: makes the importance at a temperature; None for 1 everywhere.
        supervised: whether it knows the labels.
        regularisers: all mu that are tried; none where it does not apply.
        normalises: the objective whose estimates it takes, with their means divided out in every matrix; empty for its
            own as they are.
    """

    name: str
    estimator: Callable[[float, int], Estimator] | None
    supervised: bool = True
    regularisers: tuple[float, ...] = ()
    normalises: str = ""


BASELINE = Objective("baseline", None, supervised=False)
KL = Objective("kl", lambda temperature, seed: kl(temperature=temperature, seed=seed), supervised=False)
GRADIENT = Objective("gradient", lambda temperature, seed: gradient(temperature=temperature, seed=seed))
HESSIAN = Objective(
    "hessian",
    lambda temperature, seed: hessian(temperature=temperature, seed=seed),
    regularisers=REGULARISERS,
)
BOTH = Objective(
    "gradient+hessian",
    lambda temperature, seed: gradient_hessian(temperature=temperature, seed=seed),
    regularisers=QUARTIC_REGULARISERS,
)
NORMALISED = Objective("gradient+hessian, means 1", BOTH.estimator, regularisers=REGULARISERS, normalises=BOTH.name)
"""As the authors' code has it: the coefficients of squares and of fourth powers both have the mean 1."""

EVERY = (BASELINE, KL, GRADIENT, HESSIAN, BOTH, NORMALISED)


@dataclass(frozen=True)
class Plot:
    """One figure: qualities of some objectives against the compression ratio.

    Attributes:
        number: of the figure in the paper.
        task: what compresses.
        objectives: their names.
        top5: whether top-5 accuracy is shown too.
    """

    number: int
    task: Task
    objectives: tuple[str, ...]
    top5: bool = False


@dataclass(frozen=True)
class Sweep:
    """A figure of what one option does: supervised pruning at a few ratios.

    Attributes:
        number: of the figure in the paper.
        option: the option on the horizontal axis.
        keeps: fractions of the weights that are kept.
        objectives: their names.
        axis: values of the paper's figure, besides those that are tried; none where they are the same.
    """

    number: int
    option: Literal["temperature", "mu"]
    keeps: tuple[float, ...]
    objectives: tuple[str, ...]
    axis: tuple[float, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One data set of the paper.

    Attributes:
        name: of the data set, for the command.
        title: of the data set, for people.
        network: makes the network at a width.
        width: the default width; 0 where the network has only one.
        weights: file of trained weights in the data folder, with `{width}` in it; empty for none.
        training: loader of training samples.
        test: loader of the test set.
        recipe: how the network is trained where there are no weights.
        validation: how many training samples behind those of the importance choose T and mu.
        objectives: all that are measured.
        keeps: fractions kept by pruning.
        codebooks: numbers of centroids.
        plots: figures over the ratio.
        sweeps: figures over an option.
        temperatures: all T that are tried.
    """

    name: str
    title: str
    network: Callable[[int], nn.Module]
    width: int
    weights: str
    training: Callable[..., zoo.Batches]
    test: Callable[..., zoo.Batches]
    recipe: Recipe
    validation: int
    objectives: tuple[Objective, ...]
    keeps: tuple[float, ...]
    codebooks: tuple[int, ...]
    plots: tuple[Plot, ...]
    sweeps: tuple[Sweep, ...] = ()
    temperatures: tuple[float, ...] = TEMPERATURES

    def objective(self, name: str) -> Objective:
        """The objective of that name."""
        return next(objective for objective in self.objectives if objective.name == name)


_UNSUPERVISED = ("baseline", "kl")
_SUPERVISED = ("baseline", "gradient", "hessian", BOTH.name, NORMALISED.name)

MNIST = Experiment(
    name="mnist",
    title="MNIST",
    network=lambda width: zoo.paper_mlp(),  # noqa: ARG005
    width=0,
    weights="",
    training=zoo.paper_mnist_calibration,
    test=zoo.paper_mnist_test,
    recipe=Recipe(epochs=20),
    validation=4096,
    objectives=EVERY,
    keeps=(0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25),
    codebooks=(2, 3, 4, 5, 6, 7, 8, 10, 12, 14),
    plots=(
        Plot(2, "prune", _UNSUPERVISED),
        Plot(3, "quantize", _UNSUPERVISED),
        Plot(4, "prune", _SUPERVISED),
        Plot(5, "quantize", _SUPERVISED),
    ),
    sweeps=(Sweep(11, "temperature", (0.05, 0.075, 0.1), ("gradient", "hessian", "gradient+hessian")),),
)

CIFAR10 = Experiment(
    name="cifar10",
    title="CIFAR-10",
    network=lambda width: zoo.paper_conv(width, 10),
    width=32,
    weights="cifar10_paperconv_w{width}.safetensors",
    training=zoo.paper_cifar10_calibration,
    test=zoo.paper_cifar10_test,
    recipe=Recipe(epochs=16, flip=True, shift=4),
    validation=512,
    objectives=EVERY,
    keeps=(0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8),
    codebooks=(2, 3, 4, 5, 6, 8, 10, 12),
    plots=MNIST.plots,
    sweeps=(Sweep(12, "mu", (0.4, 0.5, 0.6), ("hessian", BOTH.name, NORMALISED.name), PAPER_REGULARISERS),),
)

CIFAR100 = Experiment(
    name="cifar100",
    title="CIFAR-100",
    network=lambda width: zoo.paper_conv(width, 100),
    width=32,
    weights="cifar100_paperconv_w{width}.safetensors",
    training=zoo.paper_cifar100_calibration,
    test=zoo.paper_cifar100_test,
    recipe=Recipe(epochs=16, flip=True, shift=4),
    validation=512,
    objectives=(BASELINE, KL, GRADIENT),
    keeps=CIFAR10.keeps,
    codebooks=(2, 3, 4, 6, 8, 10, 12, 16),
    plots=(
        Plot(7, "prune", _UNSUPERVISED, top5=True),
        Plot(8, "quantize", _UNSUPERVISED, top5=True),
        Plot(9, "prune", ("baseline", "gradient"), top5=True),
        Plot(10, "quantize", ("baseline", "gradient"), top5=True),
    ),
    temperatures=(1.0, 2.0, 3.0, 5.0, 9.0),
)

EXPERIMENTS = {experiment.name: experiment for experiment in (MNIST, CIFAR10, CIFAR100)}
"""All experiments by the name of the data set."""
