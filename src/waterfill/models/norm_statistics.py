"""Inputs whose activations have the statistics that batch norms remember of training.

Source: Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework" (2020), section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from waterfill.models.batches import call
from waterfill.models.trial_inputs import quiet

STEPS = 30
"""Of gradient descent."""

STEP = 0.1
"""Its size; inputs have a standard deviation near 1."""

LEAST_VARIANCE = 1e-8


def remembering_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a module that have statistics of training."""
    norms = [each for each in model.modules() if isinstance(each, _BatchNorm)]
    return [each for each in norms if each.running_mean is not None and each.running_var is not None]


def matched_inputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Move real inputs until the activations before the batch norms have the means and deviations of training.

    Args:
        model: a copy with batch norms; gradients of its parameters are not touched.
        inputs: where to start, of real numbers.

    Returns:
        Inputs of the same shape; those that were given where the way leads to what is not finite.
    """
    found = inputs.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([found], STEP)
    with quiet(model), _distances(remembering_norms(model)) as distances:
        for _ in range(STEPS):
            distances.clear()
            call(model, found)
            if not distances:
                return inputs
            (found.grad,) = torch.autograd.grad(torch.stack(distances).mean(), [found])
            optimizer.step()
    return found.detach() if bool(found.isfinite().all()) else inputs


@contextmanager
def _distances(norms: list[_BatchNorm]) -> Iterator[list[Tensor]]:
    """Collect how far the activations before norms are from what these remember."""
    found: list[Tensor] = []

    def note(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        found.append(_distance(norm, args[0]))

    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _distance(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Squared distances of means and deviations, in deviations, averaged over channels."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    axes = [0, *range(2, x.ndim)]
    deviation = (norm.running_var + LEAST_VARIANCE).sqrt()
    mean = (x.mean(axes) - norm.running_mean) / deviation
    ratio = (x.var(axes, unbiased=False) + LEAST_VARIANCE).sqrt() / deviation
    return mean.square().mean() + (ratio - 1).square().mean()
