"""Which tensor of an output counts, where there are several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from waterfill.errors import UnsupportedModelError
from waterfill.models.batches import IGNORED, Inputs, describe, is_integer, tensors_in
from waterfill.models.output_values import is_yes_or_no
from waterfill.models.outputs import (
    Path,
    first_tensor,
    in_order,
    is_dense,
    is_readable,
    kind_of,
    path_words,
    tensors_of,
)
from waterfill.models.predictions import axes_that_fit, without_ones
from waterfill.protocols import Output

MOST_RIGHT = 0.5
"""A tensor that is not the first is read where it tells more than this fraction of the targets, twice as many."""


SHOWN = 2
"""So many targets for every class show how many classes there are."""


def chosen(
    output: Any, inputs: Inputs, target: Tensor | None, kind: Output | None
) -> tuple[Path, Tensor, tuple[str, ...]]:
    """Choose the tensor that counts: the first that fits the targets, or the first.

    Of several that fit class numbers the most accurate is read where it is far more accurate than the first; else the
    one that has just as many classes as the targets, if the first has more.

    Args:
        output: of a model, on one batch.
        inputs: of the batch; a tensor with as many samples comes before others.
        target: of the batch; None where there is none.
        kind: what the model is said to return; None where that is not said.

    Returns:
        The path, empty where `first_tensor` finds the same; the tensor; a note where there were several.

    Raises:
        UnsupportedModelError: no tensor can be read.
    """
    found = list(tensors_of(output))
    first = first_tensor(output)
    readable = in_order(found)
    if kind == "values" and not readable:
        readable = [each for each in found if is_dense(each[1]) and each[1].ndim]
    if not readable:
        raise _unreadable(first, kind)
    readable = [each for each in readable if _has_samples_of(inputs, each[1])] or readable
    path, tensor = _best(readable, target)
    note = _note(output, found, path, tensor, fits=tensor is not readable[0][1])
    return (() if tensor is first else path), tensor, note


def _has_samples_of(inputs: Inputs, tensor: Tensor) -> bool:
    """Whether a tensor has the samples of a batch on its first axis."""
    return any(each.ndim and len(each) == len(tensor) for each in tensors_in(inputs)[:1])


def _best(readable: Sequence[tuple[Path, Tensor]], target: Tensor | None) -> tuple[Path, Tensor]:
    if target is None or len(readable) == 1:
        return readable[0]
    fitting = [each for each in readable if fits(each[1], target)]
    if not fitting or not is_integer(target):
        return (fitting or list(readable))[0]
    right = [accuracy(tensor, target) for _, tensor in fitting]
    most = max(right)
    if most > MOST_RIGHT and most > 2 * right[0]:
        return fitting[right.index(most)]
    exact = [each for each in fitting if _has_just_as_many_classes(each[1], target)]
    return (exact or fitting)[0]


def _has_just_as_many_classes(tensor: Tensor, target: Tensor) -> bool:
    """Whether the highest class number is that of the last class, of targets that are enough to show all classes."""
    sizes = [tensor.shape[axis] for axis in axes_that_fit(tensor, target)]
    highest = int(target.max()) + 1 if target.numel() else 0
    return highest in sizes and target.numel() >= SHOWN * highest


def fits(tensor: Tensor, target: Tensor) -> bool:
    """Whether targets are one for every number of an output, or integers, one for every prediction."""
    if without_ones(tensor.shape) == without_ones(target.shape):
        return not is_integer(target) or is_yes_or_no(target)
    highest = int(target.max()) if is_integer(target) and target.numel() else 0
    return is_integer(target) and any(highest < tensor.shape[axis] for axis in axes_that_fit(tensor, target))


def accuracy(tensor: Tensor, target: Tensor) -> float:
    """Fraction of the class numbers that are those of the largest outputs."""
    axes = axes_that_fit(tensor, target)
    if without_ones(tensor.shape) == without_ones(target.shape) or not axes:
        return 0.0
    best = tensor.detach().real.argmax(axes[0]).reshape(-1)
    wanted = target.reshape(-1).to(best)
    return float((best == wanted)[wanted != IGNORED].double().mean().nan_to_num())


def _note(
    output: Any, found: Sequence[tuple[Path, Tensor]], path: Path, tensor: Tensor, *, fits: bool
) -> tuple[str, ...]:
    """Words for what was read; none where there was nothing to choose."""
    if len(found) < 2:
        return ()
    what = f"{kind_of(output)} of {len(found)} tensors"
    why = ", as it fits the targets" if fits else ""
    return (f"The model returns {what}; {path_words(path)}, {describe(tensor)}, was read{why}.",)


def _unreadable(tensor: Tensor, kind: Output | None) -> UnsupportedModelError:
    what = describe(tensor)
    if not is_dense(tensor):
        return UnsupportedModelError(
            f"The model returns {what}, a sparse or nested tensor; expected a dense one. Return output.to_dense() or "
            "output.to_padded_tensor(0)."
        )
    if tensor.ndim == 0:
        return UnsupportedModelError(
            "The model returns a single number for a batch; expected [samples, ...]. Return an output per sample."
        )
    assert not is_readable(tensor)
    return UnsupportedModelError(
        f"The model returns {what}, which are no {kind or 'logits'}; expected floating-point numbers. Return the "
        "scores before argmax, comparison or rounding."
    )
