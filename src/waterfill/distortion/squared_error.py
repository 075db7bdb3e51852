"""Outputs that are values: their distance is the squared error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from waterfill.distortion import probe_vectors
from waterfill.distortion.base import Distortion, Measures
from waterfill.distortion.losses import Loss, squared_error
from waterfill.distortion.probe_vectors import DRAWS, Signals
from waterfill.errors import CalibrationError
from waterfill.models.batches import Inputs, describe
from waterfill.models.embedder import mean_of_tokens
from waterfill.models.language import mask_of
from waterfill.protocols import Output


class _SquaredError(Distortion):
    """Mean over the samples of `|original - other|^2` (Eq. 5)."""

    name: ClassVar[Output] = "values"
    factor: ClassVar[float] = 1.0
    unit: ClassVar[str] = "squared output"
    measure: ClassVar[str] = "squared_error"
    has_classes: ClassVar[bool] = False

    def allowed(self, outputs: Tensor) -> Tensor:
        """All finite ones."""
        return outputs.isfinite()

    def count(self, reference: Tensor, target: Tensor | None) -> int:  # noqa: ARG002 - all count
        """Number of samples."""
        return len(reference)

    def per_output(self, reference: Tensor, result: Tensor, target: Tensor | None) -> Tensor:  # noqa: ARG002
        """Squared distance of every sample, float64 [samples]."""
        return _squared_distances(result, reference)

    def total(self, reference: Tensor, result: Tensor, target: Tensor | None) -> Tensor:  # noqa: ARG002
        """Sum of all squared differences, float64."""
        return (result.double() - reference.double()).square().sum()

    def training_loss(self, reference: Tensor, result: Tensor, target: Tensor | None) -> Tensor:  # noqa: ARG002
        """Mean squared distance of the samples."""
        return (result - reference).square().sum() / len(result)

    def measures(self, result: Tensor, target: Tensor | None, reference: Tensor | None) -> Iterator[Measures]:
        """Squared errors: to the target for every value, to the reference for every sample."""
        found = {}
        if target is not None and target.is_floating_point():
            if target.numel() != result.numel():
                raise CalibrationError(
                    f"Targets {describe(target)} do not fit the values {describe(result)}; expected the same shape. "
                    "Give targets of the shape of the model's output, or None."
                )
            found["mse"] = (result.double() - target.to(result.device).double().reshape(result.shape)).square()
        if reference is not None:
            found["squared_error"] = _squared_distances(result, reference)
            found["squared_length"] = _squared_distances(reference, torch.zeros_like(reference))
            found["cosine"] = _cosines(result, reference)
        yield found

    def counted(self, outputs: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002 - they are of whole samples
        """All of them."""
        return outputs

    def read_text(self, model: nn.Module, inputs: Inputs, outputs: list[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
        """No target, and the means over the tokens, [texts, width]."""
        del model
        mask = mask_of(inputs)
        return None, [mean_of_tokens(each, mask.to(each.device)) for each in outputs]

    def probe_vectors(
        self, output: Tensor, target: Tensor | None, temperature: float, draws: int | None, generator: torch.Generator
    ) -> Signals:
        """Vectors for values, which stand for samples."""
        del target, temperature
        rows = output.reshape(len(output), -1)
        exact = draws is None and rows.shape[-1] <= probe_vectors.EXACT_SIGNALS
        if exact:
            sent, number = probe_vectors.values_exact(rows), rows.shape[-1]
        else:
            number = draws or DRAWS
            sent = probe_vectors.values_drawn(rows, number, generator)
        return Signals((row.reshape(output.shape) for row in sent), number, len(output), drawn=not exact)

    def probe_powers(self, output: Tensor, target: Tensor | None, temperature: float) -> Tensor:
        """One for every value, [samples, values]."""
        del target, temperature
        return output.new_ones((1, 1), dtype=torch.float64).expand(len(output), output[:1].numel())

    def draw(
        self, output: Tensor, mask: Tensor, temperature: float, generator: torch.Generator
    ) -> tuple[Tensor, float]:
        """A vector for the samples."""
        del mask, temperature
        return next(probe_vectors.values_drawn(output, 1, generator)).float(), float(len(output))

    def labelled_loss(self, temperature: float) -> Loss:  # noqa: ARG002 - there is no softmax
        """Squared error to the right values."""
        return squared_error


SQUARED_ERROR = _SquaredError()
"""Of values: the squared distance of every sample."""


def _squared_distances(result: Tensor, reference: Tensor) -> Tensor:
    """||a - b||^2 of every sample, float64 [samples]."""
    return (result.double() - reference.double()).square().unsqueeze(-1).flatten(1).sum(-1)


def _cosines(result: Tensor, reference: Tensor) -> Tensor:
    """Cosine of the angle between the outputs of every sample, float64 [samples]; 0 beside a vector of zeros."""
    a, b = (each.double().unsqueeze(-1).flatten(1) for each in (result, reference))
    return nn.functional.cosine_similarity(a, b, dim=1, eps=sys.float_info.min)
