"""Outputs and targets of every kind as logits and class numbers, the form in which they are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from waterfill.errors import CalibrationError
from waterfill.models.batches import IGNORED, describe

# Outputs


def as_it_is(each: Tensor) -> Tensor:
    """The tensor itself."""
    return each


def logits_of_probabilities(p: Tensor) -> Tensor:
    """Logits `log p`; a probability below the smallest normal number counts as that number, so that all are finite."""
    p = _single_precision(p)
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()


def two_classes_of_logits(z: Tensor) -> Tensor:
    """Logits 0 and z of no and yes, [..., 2]: `sigmoid(z)` is the second of `softmax((0, z))`."""
    return torch.stack([torch.zeros_like(z), z], -1)


def two_classes_of_probabilities(p: Tensor) -> Tensor:
    """Logits `log(1 - p)` and `log p` of no and yes, [..., 2]; `1 - p` is at least a quarter of the precision of 1."""
    p = _single_precision(p)
    no = (1 - p).clamp_min(torch.finfo(p.dtype).eps / 4)
    return torch.stack([no.log(), logits_of_probabilities(p)], -1)


def _single_precision(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.itemsize < 4 else tensor


# Targets


def numbers_of_ones(target: Tensor, *, axis: int) -> Tensor:
    """Class numbers of targets that have one 1 along an axis of zeros.

    Raises:
        CalibrationError: a prediction has none or several.
    """
    if not is_one_hot(target, axis):
        raise CalibrationError(
            f"The targets {describe(target)} of a batch have no single 1 along axis {axis} for some predictions; "
            "expected one, as in the first batch. Give the numbers of the classes as integers."
        )
    return target.to(torch.int64).argmax(axis)


def yes_or_no(target: Tensor) -> Tensor:
    """Class numbers of targets that are 0 and 1 in any type.

    Raises:
        CalibrationError: they are others.
    """
    if not is_yes_or_no(target):
        raise CalibrationError(
            f"The targets {describe(target)} of a batch range from {float(target.min()):g} to "
            f"{float(target.max()):g}; expected 0 for no and 1 for yes, one for every number of the output, or "
            f"{IGNORED} for what does not count. Correct them, or give output='values' for real values."
        )
    return target.to(torch.int64)


def one_of_many(target: Tensor, *, classes: int) -> Tensor:
    """Yes for the right class and no for all others, [..., classes], of class numbers.

    Raises:
        CalibrationError: a number is out of range.
    """
    counted = target != IGNORED
    low, high = (int(target[counted].min()), int(target[counted].max())) if bool(counted.any()) else (0, 0)
    if not 0 <= low <= high < classes:
        raise CalibrationError(
            f"Integer targets range from {low} to {high}; expected 0 to {classes - 1}. Correct them."
        )
    wanted = torch.nn.functional.one_hot(target.to(torch.int64).clamp_min(0), classes)
    return torch.where(counted[..., None], wanted, IGNORED)


def is_yes_or_no(target: Tensor) -> bool:
    """Whether all targets are 0 or 1; integers may also be `IGNORED`."""
    return bool(((target == 0) | (target == 1) | ((target == IGNORED) & (not target.is_floating_point()))).all())


def is_one_hot(target: Tensor, axis: int) -> bool:
    """Whether targets have one 1 along an axis, and zeros."""
    ones = target == 1
    return bool((ones | (target == 0)).all()) and bool((ones.sum(axis) == 1).all())
