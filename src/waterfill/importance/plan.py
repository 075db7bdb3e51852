"""How the gradients of each learned tensor are taken: checked on three samples before it is relied on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from waterfill.errors import UnsupportedModelError
from waterfill.importance import functional
from waterfill.importance.squares import Order, per_sample_gradients
from waterfill.models.batches import Inputs, call, describe, num_samples, pick
from waterfill.models.capture import Tape, Variables
from waterfill.models.uses import Use

Method: TypeAlias = Literal["major", "minor", "vmap", "loop"]
"""From captured uses, where the rows of a sample lie together or apart; by `vmap`; one sample after the other."""

_ORDERS: tuple[Order, ...] = ("major", "minor")
_SAMPLES = 3
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

    Three samples go through the model, and a random signal back from each of them alone. The gradient that autograd
    finds is what the captured uses have to give for that sample, and zero is what they have to give for the others.
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
    count = num_samples(inputs)
    probe = pick(inputs, [number % count for number in range(_SAMPLES if count > 1 else 1)])
    samples = num_samples(probe)
    tape = Tape(learned)
    with tape:
        output = call(model, probe, index=index)
    check_output(output, samples)
    signals = _one_sample_each(output)
    tensors = [learned.tensors[name] for name in pending]
    expected = _by_name(pending, [gradients(output, tensors, signal) for signal in signals])
    at_sites = [gradients(output, tape.sites, signal) for signal in signals]
    methods: dict[str, Method] = {}
    for name, wanted in expected.items():
        uses = () if name in tape.missed else tape.uses.get(name, ())
        order = _right_order(uses, at_sites, wanted)
        if order is not None:
            methods[name] = order
    others = {name: wanted for name, wanted in expected.items() if name not in methods}
    methods |= _general_methods(model, learned, probe, signals, others)
    return Plan({**plan.methods, **methods}, samples, max(plan.site_values, tape.site_values // samples))


def _one_sample_each(output: Tensor) -> Tensor:
    """Random signals [samples, *shape of the output], each from one sample alone."""
    generator = torch.Generator().manual_seed(0)
    signals = torch.zeros(len(output), *output.shape, dtype=output.dtype, device=output.device)
    for sample, signal in enumerate(signals):
        signal[sample] = torch.randn(output.shape[1:], generator=generator, dtype=torch.float64).to(signal)
    return signals


def _by_name(names: Sequence[str], found: Sequence[Sequence[Tensor | None]]) -> dict[str, list[Tensor]]:
    """The gradients of every signal, for the tensors with enough of them that are not zero to be a proof."""
    result = {}
    for name, gradient in zip(names, zip(*found, strict=True), strict=True):
        known = [each for each in gradient if each is not None]
        if len(known) == len(found) and sum(bool(each.any()) for each in known) >= min(2, len(found)):
            result[name] = known
    return result


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
    uses: Sequence[Use], at_sites: Sequence[Sequence[Tensor | None]], expected: Sequence[Tensor]
) -> Order | None:
    """The order of rows by which the captured uses give the expected gradient for every sample alone."""
    samples = len(expected)
    reached = [use for use in uses if at_sites[0][use.site] is not None]
    if not reached or any(use.rows % samples for use in reached):
        return None
    for order in _ORDERS:
        found = (
            per_sample_gradients(
                reached, [at for use in reached if (at := at_site[use.site]) is not None], samples, order
            )
            for at_site in at_sites
        )
        if all(
            _agrees(by_sample, wanted, s) for s, (by_sample, wanted) in enumerate(zip(found, expected, strict=True))
        ):
            return order
    return None


def _agrees(by_sample: Tensor, expected: Tensor, sample: int) -> bool:
    """Whether gradients [samples, ...] are the expected one for one sample and zero for the others."""
    error = by_sample.clone()
    error[sample] -= expected
    limit = _TOLERANCE.get(expected.dtype, 1e-3) * expected.abs().max()
    return bool((error.abs() <= limit).all())


def _general_methods(
    model: nn.Module,
    learned: Variables,
    probe: Inputs,
    signals: Tensor,
    expected: Mapping[str, Sequence[Tensor]],
) -> dict[str, Method]:
    """`vmap` where it gives the expected gradients, else `loop`."""
    if not expected:
        return {}
    try:
        found = functional.vmap_gradients(model, learned, list(expected), probe, signals)
    except _VMAP_ERRORS:
        return dict.fromkeys(expected, "loop")
    return {
        name: "vmap" if all(_agrees(found[name][:, s], each, s) for s, each in enumerate(wanted)) else "loop"
        for name, wanted in expected.items()
    }
