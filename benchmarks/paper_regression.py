"""The paper's objective for regression (Eq. 2 and 5): the lower half of a digit from its upper half."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import waterfill
from measure import say
from waterfill import zoo
from waterfill.importance import regression
from waterfill.quantize import KMeans, Prune
from waterfill.reproduce.experiments import Task
from waterfill.reproduce.subject import Forms, Subject, paper_ratio

Row = dict[str, Any]
Pairs = list[tuple[Tensor, Tensor]]

HALF, HIDDEN = 392, 256
EPOCHS, BATCH = 5, 128
KEEPS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
CENTROIDS = (2, 3, 4, 6, 8, 16)

TEXT = f"""\
Not in the paper, which measures classifiers only: Eq. 2 and 5 for a network that predicts values, the 392 pixels of
the lower half of a digit from those of the upper half. It is a perceptron 392-256-256-392, trained for {EPOCHS} epochs
on the 60,000 training images of MNIST by the squared error. The importance is `regression()` on 1,024 of them, without
targets. Matrices alone are compressed, as above; squared errors are those of the outputs from the original's, summed
over the outputs and averaged over the 10,000 test images (Eq. 2), and relative to the mean squared length of the
original's outputs. *Diagonal*: what the objective says, `sum_i I_i e_i^2`. Pruning by Eq. 5 loses 36 to 75 % less
than by magnitude at every ratio, also at equal bytes (its files are 5 to 16 % larger at equal ratios). Codebooks of
three and more centroids lose 4 to 23 % less; with two they lose 2.3 times as much, where errors are as large as the
outputs. The diagonal is far too low where weights are lost, by a factor of three even at 80 % kept: products of errors
again."""


def rows() -> Iterator[Row]:
    """Both objectives at all amounts."""
    model = trained()
    test = halves(zoo.paper_mnist_test())
    calibration = halves(zoo.paper_mnist_calibration())
    subject = Subject.of(model)
    importance = regression().estimate(model, calibration, "values", fold_norms=False)
    say(f"regression: mean squared error of the original {waterfill.evaluate(model, test, output='values').mse}")
    quantizers: list[Prune | KMeans] = [Prune(keep) for keep in KEEPS]
    quantizers += [KMeans(k, start="quantile") for k in CENTROIDS]
    for quantizer in quantizers:
        row: Row = {"": f"{quantizer.keep:g} kept" if isinstance(quantizer, Prune) else f"{quantizer.k} centroids"}
        for name, forms in (("baseline", {}), ("Eq. 5", importance)):
            row |= {f"{key}, {name}": value for key, value in measured(subject, quantizer, forms, test).items()}
        diagonal = sum(form.cost(error) for form, error in _errors(subject, importance))
        yield row | {"diagonal, Eq. 5": diagonal}


def measured(subject: Subject, quantizer: Prune | KMeans, forms: Forms, test: Pairs) -> Row:
    """Bytes, ratio and squared errors of one file."""
    quantized = subject.quantize(quantizer, forms)
    data = subject.pack(quantized)
    subject.load(data)
    found = waterfill.evaluate(subject.copy, test, reference=subject.model, output="values")
    task: Task = "prune" if isinstance(quantizer, Prune) else "quantize"
    return {
        "ratio, %": 100 * paper_ratio(task, quantized),
        "bytes": len(data),
        "squared error": found.squared_error,
        "relative, %": 100 * float(found.relative_squared_error or 0),
    }


def _errors(subject: Subject, importance: Forms) -> Iterator[tuple[Any, Any]]:
    """Forms of matrices, and the errors that the copy has."""
    state = subject.copy.state_dict()
    for name, weight in subject.inventory.weights.items():
        yield importance[name], weight.matrix - weight.layout.to_matrix(state[name].numpy())


def halves(batches: zoo.Batches) -> Pairs:
    """Upper and lower halves of images, each as a vector."""
    flat = [x.flatten(1) for x, _ in batches]
    return [(x[:, :HALF], x[:, HALF:]) for x in flat]


def trained() -> nn.Module:
    """The network."""
    pairs = [torch.cat(parts) for parts in zip(*halves(zoo.paper_mnist_calibration(samples=None)), strict=True)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(HALF, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HALF)
        )
        steps = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(EPOCHS):
            order = torch.randperm(len(pairs[0]))
            for start in range(0, len(order), BATCH):
                x, y = (part[order[start : start + BATCH]] for part in pairs)
                steps.zero_grad()
                torch.autograd.backward((net(x) - y).square().sum(1).mean())
                steps.step()
    return net.eval()
