"""Backward passes, whose failures name the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from waterfill.errors import UnsupportedModelError
from waterfill.models.capture import steps_before


class NoGradientError(UnsupportedModelError):
    """Nothing can be sent back through the model, or it does not reach a parameter."""


_CANNOT = "torch::autograd::Error"
"""What autograd puts in the place of a step that it cannot differentiate again."""


def gradients(
    output: Tensor | Sequence[object],
    at: Sequence[object],
    signal: Tensor | Sequence[Tensor],
    *,
    differentiable: bool = False,
) -> tuple[Tensor | None, ...]:
    """Send one signal back, keeping the graph.

    Args:
        output: where to start: a tensor, or several tensors or edges.
        at: tensors or edges.
        signal: of the shape of the output, or one for each of several.
        differentiable: whether the gradients can be differentiated again.

    Raises:
        NoGradientError: the backward pass fails.
    """
    if not at:
        return ()
    try:
        return torch.autograd.grad(
            output,  # type: ignore[arg-type]
            at,  # type: ignore[arg-type]
            signal,
            retain_graph=True,
            create_graph=differentiable,
            allow_unused=True,
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise NoGradientError(
            f"The backward pass of the model fails: {str(error).splitlines()[0]} Expected a model that can be "
            "differentiated. Take in-place changes out of its forward, or use the identity importance."
        ) from error


def check_twice(slopes: Tensor) -> None:
    """Check that gradients made with `differentiable` have gradients: some functions give none, and no error.

    Raises:
        UnsupportedModelError: they have not.
    """
    if slopes.grad_fn is not None and any(step.name() == _CANNOT for step in steps_before([slopes.grad_fn])):
        raise UnsupportedModelError(
            "The model calls a function that can be differentiated only once (once_differentiable); expected one with "
            "second derivatives. Write its backward with differentiable operations, or use the kl importance."
        )
