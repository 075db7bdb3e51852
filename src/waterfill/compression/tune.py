"""Tuning: vectors of a compressed model that bring its outputs nearer to those of the original, without labels."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from waterfill.distortion import Distortion
from waterfill.errors import UsageError
from waterfill.models.batches import call, evaluation, split
from waterfill.protocols import Progress

LEAST_SCALE = 1e-3
"""A vector of smaller root mean square moves as if it had this one."""


@dataclass(frozen=True)
class Tune:
    """Distillation of the vectors of a model: biases, scales and shifts of norms; matrices stay as they are.

    Adam on the KL divergence from the original's outputs, or on their squared distance for values; the step of every
    tensor is relative to its root mean square, and falls to nothing as half a cosine.

    Source: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", at temperature 1; Kingma and
    Ba 2015, "Adam".

    Attributes:
        passes: over the calibration data.
        step: the first step, relative.

    Raises:
        UsageError: an option is out of its range.
    """

    passes: int = 4
    step: float = 0.0003

    def __post_init__(self) -> None:
        if self.passes < 1 or not (math.isfinite(self.step) and self.step > 0):
            raise UsageError(
                f"Tune of passes={self.passes}, step={self.step} is out of range; expected at least 1, and above 0."
            )

    def fit(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        references: Sequence[Tensor],
        distortion: Distortion,
        names: Collection[str],
        progress: Progress | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Tune a copy of a model, in place.

        Args:
            model: the compressed network; only the parameters named change, and gradients are left as they were.
            batches: calibration data; labels are not looked at.
            references: outputs of the original on them.
            distortion: of what the model returns.
            names: of the vectors, in its state dict; those that are no parameters stay as they are.
            progress: called with ("tune", done, total) after every batch.

        Returns:
            What the vectors are now, by name.
        """
        tuned = {name: each for name, each in model.named_parameters() if name in names}
        chosen = list(tuned.values())
        if not chosen:
            return {}
        groups = [{"params": [each], "lr": self.step * _scale(each)} for each in chosen]
        adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
        total = self.passes * len(references)
        decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda done: 0.5 + 0.5 * math.cos(math.pi * done / total))
        with evaluation(model, writing=True), _only(model, chosen), torch.enable_grad():
            for done in range(self.passes):
                for index, (batch, reference) in enumerate(zip(batches, references, strict=True)):
                    adam.zero_grad()
                    inputs, target = split(batch)
                    result = call(model, inputs)
                    distance = distortion.training_loss(reference.to(result.device), result, target)
                    if distance.requires_grad:  # not where no vector has a part in the output, or none that it says
                        torch.autograd.backward(distance)
                    if all(each.grad is None or bool(each.grad.isfinite().all()) for each in chosen):
                        adam.step()
                    decay.step()
                    if progress is not None:
                        progress("tune", done * len(references) + index + 1, total)
        return {name: each.detach().cpu().float().numpy().copy() for name, each in tuned.items()}


def _scale(values: Tensor) -> float:
    return max(LEAST_SCALE, float(values.detach().double().square().mean().sqrt()))


@contextmanager
def _only(model: nn.Module, chosen: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gradients for some parameters alone; afterwards everything asks for gradients, and has them, as before."""
    before = [(each, each.requires_grad, each.grad) for each in model.parameters()]
    try:
        for each, _, _ in before:
            each.requires_grad_(False)
        for some in chosen:
            some.requires_grad_(True)
        yield
    finally:
        for each, wanted, gradient in before:
            each.requires_grad_(wanted)
            each.grad = gradient
