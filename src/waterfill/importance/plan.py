"""How the gradients of each learned tensor are taken: checked on two samples before it is relied on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from waterfill.errors import UnsupportedModelError
from waterfill.importance import functional
from waterfill.importance.squares import Order, per_sample_gradients
from waterfill.models.batches import Inputs, call, describe, num_samples, take
from waterfill.models.capture import Tape, Variables
from waterfill.models.uses import Use

Method: TypeAlias = Literal["major", "minor", "vmap", "loop"]
"""From captured uses, where the rows of a sample lie together or apart; by `vmap`; one sample after the other."""

_ORDERS: tuple[Order, ...] = ("major", "minor")
_TOLERANCE = {torch.float64: 1e-6}
_VMAP_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError)


@dataclass(frozen=True)
class Plan:
    """The method for every tensor that was met so far.

    Attributes:
        methods: by name.
        samples: how many samples they were checked on.
        site_values: values per sample of all sites together, what one backward pass keeps.
    """

    methods: Mapping[str, Method] = field(default_factory=dict)
    samples: int = 0
    site_values: int = 1


def extend(plan: Plan, model: nn.Module, learned: Variables, inputs: Inputs, index: int | None = None) -> Plan:
    """Find the method for every tensor that has none yet.

    Two samples go through the model, and a random signal back from the first alone. The gradient that autograd finds is
    what the captured uses have to give for the first sample, and zero is what they have to give for the second.
    Whatever does not agree, for any reason, is left to slower methods that hold for every model.

    Args:
        plan: what is known.
        model: the network, prepared for gradients.
        learned: its learned tensors.
        inputs: a batch, on the model's device.
        index: number of the batch, for error messages.

    Returns:
        A plan that also has the tensors with a gradient here; those that no sample has reached yet stay without a
        method.

    Raises:
        CalibrationError: the batch does not fit the model.
        UnsupportedModelError: gradients do not reach the output.
    """
    if plan.samples == 1 < num_samples(inputs):
        plan = Plan()
    pending = [name for name in learned.tensors if name not in plan.methods]
    if not pending:
        return plan
    probe = take(inputs, 0, 2)
    samples = num_samples(probe)
    tape = Tape(learned)
    with tape:
        output = call(model, probe, index=index)
    check_output(output, samples)
    signal = torch.zeros_like(output)
    generator = torch.Generator().manual_seed(0)
    signal[0] = torch.randn(output.shape[1:], generator=generator, dtype=torch.float64).to(signal)
    expected = dict(zip(pending, gradients(output, [learned.tensors[name] for name in pending], signal), strict=True))
    at_sites = gradients(output, tape.sites, signal)
    methods: dict[str, Method] = {}
    others: dict[str, Tensor] = {}
    for name, gradient in expected.items():
        if gradient is None or not gradient.any():
            continue
        uses = () if name in tape.missed else tape.uses.get(name, ())
        order = _right_order(uses, at_sites, gradient, samples)
        if order is None:
            others[name] = gradient
        else:
            methods[name] = order
    methods |= _general_methods(model, learned, probe, signal, others)
    return Plan({**plan.methods, **methods}, samples, max(plan.site_values, tape.site_values // samples))


def check_output(output: Tensor, samples: int) -> None:
    """Check that an output can be taken apart by sample and differentiated.

    Raises:
        UnsupportedModelError: it cannot.
    """
    if output.ndim == 0 or output.shape[0] != samples:
        raise UnsupportedModelError(
            f"The model returns {describe(output)} for {samples} samples; expected [samples, ...]. Put the axis of the "
            "samples first in inputs and output."
        )
    if not output.requires_grad:
        raise UnsupportedModelError(
            f"The model's output {describe(output)} does not depend on its parameters by gradients; expected logits or "
            "values. Return them before argmax or rounding, or use the identity importance."
        )


def gradients(output: Tensor, at: Sequence[object], signal: Tensor) -> tuple[Tensor | None, ...]:
    """Send one signal back, keeping the graph.

    Raises:
        UnsupportedModelError: the backward pass fails.
    """
    if not at:
        return ()
    try:
        return torch.autograd.grad(output, at, signal, retain_graph=True, allow_unused=True)  # type: ignore[arg-type]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"The backward pass of the model fails: {str(error).splitlines()[0]} Expected a model that can be "
            "differentiated. Take in-place changes out of its forward, or use the identity importance."
        ) from error


def _right_order(
    uses: Sequence[Use], at_sites: Sequence[Tensor | None], expected: Tensor, samples: int
) -> Order | None:
    """The order of rows by which the captured uses give the expected gradient for the first sample alone."""
    reached = [use for use in uses if at_sites[use.site] is not None]
    if not reached or any(use.rows % samples for use in reached):
        return None
    found = [gradient for use in reached if (gradient := at_sites[use.site]) is not None]
    for order in _ORDERS:
        if _agrees(per_sample_gradients(reached, found, samples, order), expected):
            return order
    return None


def _agrees(by_sample: Tensor, expected: Tensor) -> bool:
    """Whether gradients [samples, ...] are the expected one for the first sample and zero for the others."""
    error = by_sample.clone()
    error[0] -= expected
    limit = _TOLERANCE.get(expected.dtype, 1e-3) * expected.abs().max()
    return bool((error.abs() <= limit).all())


def _general_methods(
    model: nn.Module, learned: Variables, probe: Inputs, signal: Tensor, expected: Mapping[str, Tensor]
) -> dict[str, Method]:
    if not expected:
        return {}
    try:
        found = functional.vmap_gradients(model, learned, list(expected), probe, signal.unsqueeze(0))
    except _VMAP_ERRORS:
        return dict.fromkeys(expected, "loop")
    return {name: "vmap" if _agrees(found[name][:, 0], gradient) else "loop" for name, gradient in expected.items()}
