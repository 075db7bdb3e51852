"""How the gradients of each learned tensor are taken: checked on three samples before it is relied on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from waterfill.errors import UnsupportedModelError
from waterfill.importance import functional
from waterfill.importance.backward import NoGradientError, gradients
from waterfill.importance.squares import Order, per_sample_gradients
from waterfill.models.batches import Inputs, call, describe, num_samples, pick
from waterfill.models.capture import Tape, Variables
from waterfill.models.uses import Use

Method: TypeAlias = Literal["major", "minor", "vmap", "loop"]
"""From captured uses, where the rows of a sample lie together or apart; by `vmap`; one sample after the other."""

_ORDERS: tuple[Order, ...] = ("major", "minor")
_SAMPLES = 3
_TOLERANCE = {torch.float64: 1e-6}
VMAP_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError)


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
    probe = _probe(inputs)
    samples = num_samples(probe)
    tape = Tape(learned)
    with tape:
        output = call(model, probe, index=index)
    check_output(output, samples)
    signals = _one_sample_each(output)
    orders = _right_orders(tape, learned, pending, output, signals)
    methods: dict[str, Method] = {name: found[0] for name, found in orders.items() if found}
    others = [name for name, found in orders.items() if not found]
    methods |= _general_methods(model, learned, others, probe, output, signals)
    return Plan({**plan.methods, **methods}, samples, max(plan.site_values, tape.site_values // samples))


def without_series(plan: Plan, model: nn.Module, learned: Variables, inputs: Inputs) -> Plan:
    """Move tensors that are used in series to methods that look at the tensor itself, not at its uses one by one.

    First derivatives need no such care, second ones do: an error in the tensor meets itself on the way.

    Args:
        plan: what `extend` found for these inputs.
        model: the network, prepared for gradients.
        learned: its learned tensors.
        inputs: a batch, on the model's device.
    """
    probe = _probe(inputs)
    tape = Tape(learned)
    with tape:
        output = call(model, probe)
    names = [name for name in tape.in_series() if plan.methods.get(name) in _ORDERS]
    signals = _one_sample_each(output)
    return replace(plan, methods={**plan.methods, **_general_methods(model, learned, names, probe, output, signals)})


def _probe(inputs: Inputs) -> Inputs:
    """Three samples of a batch, or its only one."""
    count = num_samples(inputs)
    return pick(inputs, [number % count for number in range(_SAMPLES if count > 1 else 1)])


def _one_sample_each(output: Tensor) -> Tensor:
    """Random signals [samples, *shape of the output], each from one sample alone."""
    generator = torch.Generator().manual_seed(0)
    signals = torch.zeros(len(output), *output.shape, dtype=output.dtype, device=output.device)
    for sample, signal in enumerate(signals):
        signal[sample] = torch.randn(output.shape[1:], generator=generator, dtype=torch.float64).to(signal)
    return signals


def check_output(output: Tensor, samples: int) -> None:
    """Check that an output can be taken apart by sample and differentiated.

    Raises:
        UnsupportedModelError: it cannot be taken apart.
        NoGradientError: it cannot be differentiated.
    """
    if output.ndim == 0 or output.shape[0] != samples:
        raise UnsupportedModelError(
            f"The model returns {describe(output)} for {samples} samples; expected [samples, ...]. Put the axis of the "
            "samples first in inputs and output."
        )
    if not output.requires_grad:
        raise NoGradientError(
            f"The model's output {describe(output)} does not depend on its parameters by gradients; expected logits or "
            "values. Return them before argmax or rounding, or use the identity importance."
        )


def _right_orders(
    tape: Tape, learned: Variables, names: Sequence[str], output: Tensor, signals: Tensor
) -> dict[str, list[Order]]:
    """The orders of rows by which the captured uses give the right gradients for every signal.

    Only for tensors with enough gradients that are not zero to be a proof; the lists may be empty.
    """
    tensors = [learned.tensors[name] for name in names]
    proofs: Counter[str] = Counter()
    orders: dict[str, list[Order]] = {name: [] if name in tape.missed else list(_ORDERS) for name in names}
    for sample, signal in enumerate(signals):
        at_sites = gradients(output, tape.sites, signal)
        for name, wanted in zip(names, gradients(output, tensors, signal), strict=True):
            if wanted is not None:
                uses = [use for use in tape.uses.get(name, ()) if at_sites[use.site] is not None]
                at_uses = [at for use in uses if (at := at_sites[use.site]) is not None]
                orders[name] = [o for o in orders[name] if _holds(uses, at_uses, o, wanted, sample, len(signals))]
                proofs[name] += bool(wanted.any())
    return {name: found for name, found in orders.items() if proofs[name] >= min(2, len(signals))}


def _holds(
    uses: Sequence[Use], at_uses: Sequence[Tensor], order: Order, wanted: Tensor, sample: int, samples: int
) -> bool:
    """Whether captured uses give the wanted gradient for one sample and zero for the others."""
    if not uses or any(use.rows % samples for use in uses):
        return False
    each = (per_sample_gradients(uses, at_uses, samples, order, slice(s, s + 1))[0] for s in range(samples))
    return _agrees(each, wanted, sample)


def _agrees(by_sample: Iterable[Tensor], wanted: Tensor, sample: int) -> bool:
    limit = _TOLERANCE.get(wanted.dtype, 1e-3) * wanted.abs().max()
    errors = (each - wanted if number == sample else each for number, each in enumerate(by_sample))
    return all(bool((error.abs() <= limit).all()) for error in errors)


def _general_methods(
    model: nn.Module, learned: Variables, names: Sequence[str], probe: Inputs, output: Tensor, signals: Tensor
) -> dict[str, Method]:
    """`vmap` where it gives the right gradients, else `loop`."""
    methods: dict[str, Method] = dict.fromkeys(names, "vmap")
    tensors = [learned.tensors[name] for name in names]
    for sample, signal in enumerate(signals if names else ()):
        try:
            found = functional.vmap_gradients(model, learned, names, probe, signal.unsqueeze(0))
        except VMAP_ERRORS:
            return dict.fromkeys(names, "loop")
        for name, wanted in zip(names, gradients(output, tensors, signal), strict=True):
            if wanted is None or not _agrees(found[name][:, 0], wanted, sample):
                methods[name] = "loop"
    return methods
