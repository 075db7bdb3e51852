"""Logits as rows, one for every prediction, and the targets that belong to them."""

from __future__ import annotations

import torch
from torch import Tensor

from waterfill.errors import CalibrationError
from waterfill.models.batches import IGNORED, describe, is_integer


def class_axis(logits: Tensor, target: Tensor | None = None) -> int:
    """Axis of the classes: the last, `[B, C]` or `[B, T, C]`, except where only axis 1 agrees with the target.

    Images labelled pixel by pixel have logits `[B, C, H, W]` and integer targets `[B, H, W]`: there it is 1.
    """
    if not is_integer(target) or target is None or target.shape == logits.shape[:-1]:
        return logits.ndim - 1
    return 1 if logits.ndim > 2 and target.shape == logits.shape[:1] + logits.shape[2:] else logits.ndim - 1


def prediction_rows(logits: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Read logits as one row for every prediction, those that do not count among them.

    Args:
        logits: [samples, classes], [samples, ..., classes], or [samples, classes, ...] where the target says so.
        target: integers, one for every prediction; anything else is not looked at.

    Returns:
        Logits [predictions, classes], no copy where their memory allows, and integer targets [predictions] or None.

    Raises:
        CalibrationError: integer targets do not fit the logits in shape.
    """
    rows = logits.movedim(class_axis(logits, target), -1)
    if target is None or not is_integer(target):
        return rows.reshape(-1, rows.shape[-1]), None
    if without_ones(target.shape) != without_ones(rows.shape[:-1]):
        raise CalibrationError(
            f"Integer targets {describe(target)} do not fit the logits {describe(logits)}; expected one target for "
            "every prediction, [samples] for logits [samples, classes]. Give such targets, or None."
        )
    return rows.reshape(-1, rows.shape[-1]), target.reshape(-1).to(rows.device, torch.int64)


def as_predictions(logits: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Read logits as one row for every prediction; those whose target is `IGNORED` are left out.

    Args:
        logits: as in `prediction_rows`.
        target: as there.

    Returns:
        Logits [predictions, classes], and integer targets [predictions] or None.

    Raises:
        CalibrationError: integer targets do not fit the logits in shape or range.
    """
    rows, labels = prediction_rows(logits, target)
    if labels is None:
        return rows, None
    counted = labels != IGNORED
    rows, labels = rows[counted], labels[counted]
    low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
    if not 0 <= low <= high < rows.shape[-1]:
        raise CalibrationError(
            f"Integer targets range from {low} to {high}; expected 0 to {rows.shape[-1] - 1} for {rows.shape[-1]} "
            f"classes, or {IGNORED} for a prediction that does not count. Correct the targets."
        )
    return rows, labels


def axes_that_fit(tensor: Tensor, target: Tensor) -> list[int]:
    """Axes of an output that may have the classes, with one target for everything else: the last, axis 1 or both.

    Of images, with four axes or more, both in the other order, as `cross_entropy` has them.
    """
    if tensor.ndim < 2:
        return []
    found = [tensor.ndim - 1] if without_ones(target.shape) == without_ones(tensor.shape[:-1]) else []
    if tensor.ndim > 2 and target.shape == tensor.shape[:1] + tensor.shape[2:]:
        found.append(1)
    return found[::-1] if tensor.ndim > 3 else found


def without_ones(shape: torch.Size) -> tuple[int, ...]:
    """The lengths of axes that are not 1."""
    return tuple(size for size in shape if size != 1)
