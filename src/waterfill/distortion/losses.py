"""Losses that know the right answer, and how each responds to a small change of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from waterfill.distortion import probe_vectors
from waterfill.errors import CalibrationError
from waterfill.models.batches import IGNORED, describe, is_integer
from waterfill.models.predictions import as_predictions, class_axis


@dataclass(frozen=True, eq=False)
class Response:
    """Derivatives of a loss by the outputs of some samples; all signals have the shape of the outputs.

    Attributes:
        gradient: first derivative, 0 for predictions that do not count.
        count: number of predictions that count.
        single: whether every sample has one prediction.
        factors: gives signals whose squares add up to the second derivative exactly; None where they are too many.
        factor: draws one signal whose square is the second derivative in expectation.
        signs: draws 1 or -1 for every prediction.
    """

    gradient: Tensor
    count: int
    single: bool
    factors: Callable[[], Iterator[Tensor]] | None
    factor: Callable[[torch.Generator], Tensor]
    signs: Callable[[torch.Generator], Tensor]


Loss: TypeAlias = Callable[[Tensor, Tensor | None], Response]
"""Takes outputs [samples, ...] and their targets."""


def check_classes(output: Tensor) -> None:
    """Check that an output has an axis of classes, two or more.

    Raises:
        CalibrationError: it has not.
    """
    if output.ndim < 2 or output.numel() == len(output):
        raise CalibrationError(
            f"The model returns {describe(output)}, which has no axis of classes; expected logits [samples, "
            "classes] of two or more. Give output='values' if these are values."
        )


def cross_entropy(output: Tensor, target: Tensor | None, temperature: float) -> Response:
    """Respond as `L = -log softmax(z / T)` of the right class, one for every prediction.

    With `f = softmax(z / T)` the gradient is `(f - onehot) / T`; the second derivative `(diag(f) - f f^T) / T^2` is
    that of the KL importance and knows no label.

    Args:
        output: logits.
        target: integers, one for every prediction; -100 for one that does not count.
        temperature: T.

    Raises:
        CalibrationError: there is no integer target, or it does not fit the logits.
    """
    check_classes(output)
    if target is None or not is_integer(target):
        raise CalibrationError(
            f"The target of a batch is {_described(target)}, but the cross-entropy needs the right class; expected "
            "integers, one for every prediction. Give batches of (input, target), or use the kl importance, which "
            "needs no labels."
        )
    as_predictions(output, target)
    axis = class_axis(output, target)
    shape = output.movedim(axis, -1).shape
    rows = output.movedim(axis, -1).reshape(-1, shape[-1]).double()
    labels = target.reshape(-1, 1).to(rows.device, torch.int64)
    counted = labels != IGNORED

    def shaped(signal: Tensor) -> Tensor:
        return (signal * counted).reshape(shape).movedim(-1, axis)

    single = len(rows) == len(output)
    f = (rows / temperature).softmax(-1)
    return Response(
        shaped(f.scatter_add(-1, labels.clamp_min(0), -torch.ones_like(f[:, :1])) / temperature),
        int(counted.sum()),
        single,
        (lambda: map(shaped, probe_vectors.softmax_exact(rows, temperature)))
        if single and shape[-1] <= probe_vectors.EXACT_SIGNALS
        else None,
        lambda generator: shaped(next(probe_vectors.softmax_drawn(rows, temperature, 1, generator))),
        lambda generator: probe_vectors.random_signs(rows[:, :1], generator).reshape(*shape[:-1], 1).movedim(-1, axis),
    )


def squared_error(output: Tensor, target: Tensor | None) -> Response:
    """Respond as `L = |f - y|^2`, one for every sample: gradient `2 (f - y)`, second derivative 2.

    Args:
        output: values.
        target: of the same shape, but for axes of length 1.

    Raises:
        CalibrationError: there is no target, or it does not fit.
    """
    if target is None or [n for n in target.shape if n != 1] != [n for n in output.shape if n != 1]:
        raise CalibrationError(
            f"The target of a batch is {_described(target)}, but the squared error of outputs {describe(output)} needs "
            "the right values; expected a target of the same shape. Give batches of (input, target), or use the "
            "regression importance, which needs no targets."
        )
    rows = output.reshape(len(output), -1).double()
    root = 2**0.5

    def shaped(signal: Tensor) -> Tensor:
        return signal.reshape(output.shape)

    return Response(
        2 * shaped(rows - target.to(rows).reshape(rows.shape)),
        len(rows),
        True,
        (lambda: (shaped(root * signal) for signal in probe_vectors.values_exact(rows)))
        if rows.shape[-1] <= probe_vectors.EXACT_SIGNALS
        else None,
        lambda generator: shaped(root * next(probe_vectors.values_drawn(rows, 1, generator))),
        lambda generator: probe_vectors.random_signs(rows[:, :1], generator).reshape(-1, *(1,) * (output.ndim - 1)),
    )


def _described(target: Tensor | None) -> str:
    return "missing" if target is None else describe(target)
