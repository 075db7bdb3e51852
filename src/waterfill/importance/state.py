"""The state of an estimator: what it has seen, as a value that takes in batches and merges with others.

```
batch --forward--> outputs --signals--> u [signals, samples, ...]     u u^T adds up to the matrix over the outputs
                      `--backward of each u--> gradients at every site --with the inputs--> squares of every tensor
```
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from waterfill.distortion.probe_vectors import Signals
from waterfill.importance import functional
from waterfill.importance.backward import gradients
from waterfill.importance.forms import DiagonalForm
from waterfill.importance.moments import Moments
from waterfill.importance.plan import Method, Plan, check_output, extend
from waterfill.importance.squares import Order, square_sum
from waterfill.models.batches import (
    Inputs,
    call,
    checksum,
    device_of,
    evaluation,
    map_tensors,
    num_samples,
    on_device,
    split,
    take,
)
from waterfill.models.capture import Tape, Variables, variables
from waterfill.models.cloning import clone
from waterfill.models.surroundings import inference_mode_ignored
from waterfill.models.uses import Use
from waterfill.processes import current_processes
from waterfill.protocols import Progress

SITE_BYTES = 2**28
"""Most memory for the gradients at all sites together."""

_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
_SIGNALS_TOGETHER = 10
_SAMPLES_TOGETHER = 4

S = TypeVar("S", bound="Seen")


class Source(Protocol):
    """What an importance sends back from the outputs."""

    @property
    def seed(self) -> int:
        """Seed of everything that is drawn."""
        ...

    @property
    def factor(self) -> float:
        """Of the forms, see `QuadraticForm.factor`."""
        ...

    @property
    def unit(self) -> str:
        """Of the forms."""
        ...

    def signals(self, output: Tensor, target: Tensor | None, generator: torch.Generator) -> Signals:
        """Give what is sent back from an output."""
        ...


@dataclass(frozen=True, eq=False)
class Seen(ABC):
    """What an estimator has seen of a model's data.

    Attributes:
        model: the network, in single or double precision.
        learned: its learned tensors.
        moments: the sums.
        plan: how gradients are taken.
    """

    model: nn.Module
    learned: Variables
    moments: Moments
    plan: Plan

    @property
    @abstractmethod
    def seed(self) -> int:
        """Seed of everything that is drawn."""

    @abstractmethod
    def measure(self, inputs: Inputs, target: Tensor | None, generator: torch.Generator, index: int | None) -> Moments:
        """Sums over a few samples, whose plan is made."""

    @property
    def together(self) -> int:
        """For how many signals at once the gradients at all sites are kept."""
        return _SIGNALS_TOGETHER

    def planned(self, inputs: Inputs, index: int | None) -> Plan:
        """The plan with everything that a batch meets."""
        return extend(self.plan, self.model, self.learned, inputs, index)

    def update(self, batch: Any, *, index: int | None = None) -> Self:
        """Take in one batch.

        What is drawn depends on the seed and on the inputs alone, so that batches can come in any order and states
        be merged in any order.

        Args:
            batch: `(input, target)` or inputs alone.
            index: number of the batch, for error messages.

        Returns:
            The state after it.

        Raises:
            CalibrationError: the batch does not fit the model.
            UnsupportedModelError: the model cannot be differentiated or taken apart by sample.
        """
        here = self.prepared_for(batch, index)
        return replace(here, moments=self.moments.merge(here.seen(batch, index)))

    def prepared_for(self, batch: Any, index: int | None = None) -> Self:
        """The same with a plan for everything that a batch meets; it is not taken in.

        Args:
            batch: as in `update`.
            index: number of the batch, for error messages.

        Raises:
            CalibrationError: the batch does not fit the model.
            UnsupportedModelError: gradients do not reach the output.
        """
        with differentiable(self.model):
            return replace(self, plan=self.planned(self._on_device(split(batch)[0]), index))

    def seen(self, batch: Any, index: int | None = None) -> Moments:
        """Sums over one batch alone, by the plan.

        Args:
            batch: as in `update`; the state is prepared for it.
            index: number of the batch, for error messages.

        Raises:
            CalibrationError: the batch does not fit the model.
            UnsupportedModelError: the model cannot be differentiated or taken apart by sample.
        """
        inputs, target = split(batch)
        samples = num_samples(inputs)
        generator = torch.Generator().manual_seed(self.seed ^ checksum(inputs))
        inputs = self._on_device(inputs)
        most = max(_SAMPLES_TOGETHER, SITE_BYTES // (self.together * 4 * self.plan.site_values))
        size = math.ceil(samples / math.ceil(samples / most))
        found: Moments | None = None
        with differentiable(self.model):
            for start in range(0, samples, size):
                part = take(inputs, start, start + size)
                labels = target
                if target is not None and target.ndim and len(target) == samples:
                    labels = target[start : start + size]
                seen = self.measure(part, labels, generator, index)
                found = seen if found is None else found.absorb(seen)
        assert found is not None  # every batch has samples
        return found

    def _on_device(self, inputs: Inputs) -> Inputs:
        """Inputs as the model takes them, in single precision at least."""
        return map_tensors(on_device(inputs, device_of(self.model)), lambda t: full_precision(t).contiguous())

    def merge(self, other: Self) -> Self:
        """Add what another state of the same model and importance has seen.

        Raises:
            UsageError: it is about other tensors.
        """
        return replace(self, moments=self.moments.merge(other.moments))


@dataclass(frozen=True, eq=False)
class State(Seen):
    """Sums of squared gradients of what an importance sends back.

    Attributes:
        source: what is sent back.
    """

    source: Source

    @property
    def seed(self) -> int:
        """Seed of the source."""
        return self.source.seed

    def measure(self, inputs: Inputs, target: Tensor | None, generator: torch.Generator, index: int | None) -> Moments:
        """Square the gradients of all signals."""
        passed = forward(self, inputs, index)
        signals = self.source.signals(passed.output.detach(), target, generator)
        sums = dict(nothing(self.learned).sums)
        for stack in passed.stacks(signals):
            for name, order, uses, found in passed.captured(stack):
                sums[name] += square_sum(uses, found, passed.samples, order)
            for name, squares in passed.general_squares(self, stack):
                sums[name] += squares
        return Moments(sums, signals.count)

    def forms(self) -> dict[str, DiagonalForm]:
        """Means so far, by name.

        Raises:
            CalibrationError: nothing was seen.
        """
        return self.moments.forms(self.learned.layouts, factor=self.source.factor, unit=self.source.unit)


def run(state: S, data: Iterable[Any], progress: Progress | None) -> S:
    """Take in all batches, each process of a compression every n-th; batch after batch is added up in all of them.

    Args:
        state: the state before.
        data: batches that can be iterated over.
        progress: called with ("importance", done, total) after every batch.
    """
    total = len(data) if isinstance(data, Sized) else 0
    if current_processes().count > 1:
        state = replace(state, moments=state.moments.on_host())
    plans = _prepared_states(state, data)
    for index, (seen, plan) in enumerate(current_processes().map(_seen_by, plans)):
        state = replace(state, plan=plan, moments=state.moments.absorb(seen))
        if progress is not None:
            progress("importance", index + 1, max(index + 1, total))
    return state


def _prepared_states(state: S, data: Iterable[Any]) -> Iterator[tuple[S, Any]]:
    """For every batch a state that is prepared for it and those before; so all processes have the same plans."""
    for index, batch in enumerate(data):
        state = state.prepared_for(batch, index)
        yield state, batch


def _seen_by(index: int, prepared: tuple[Seen, Any]) -> tuple[Moments, Plan]:
    state, batch = prepared
    seen = state.seen(batch, index)
    return seen.on_host() if current_processes().count > 1 else seen, state.plan


def begin(model: nn.Module, source: Source, *, fold_norms: bool = True) -> State:
    """Make the state before the first batch.

    Args:
        model: the network; one in half precision is copied to single precision.
        source: what is sent back.
        fold_norms: as in `inventory`.
    """
    model = in_full_precision(model)
    learned = variables(model, fold_norms=fold_norms)
    return State(model, learned, nothing(learned), Plan(), source)


def in_full_precision(model: nn.Module) -> nn.Module:
    """The model itself; a copy of one in half precision, in single precision, or of one made in inference mode."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(_is_half(tensor) for tensor in tensors):
        return clone(model).float()
    return clone(model) if any(tensor.is_inference() for tensor in tensors) else model


def full_precision(tensor: Tensor) -> Tensor:
    """Half precision to single; everything else as it is."""
    return tensor.float() if _is_half(tensor) else tensor


def _is_half(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.itemsize < 4


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients for every parameter, afterwards everything as it was."""
    with evaluation(model), _without_backward_hooks(model), inference_mode_ignored(), torch.enable_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        yield


@contextmanager
def _without_backward_hooks(model: nn.Module) -> Iterator[None]:
    """Take hooks that see and change gradients off for a while: they have no part in what the model computes."""
    holders: list[tuple[nn.Module | Tensor, str]] = [
        (each, name) for each in model.modules() for name in _BACKWARD_HOOKS if vars(each).get(name)
    ]
    holders += [(each, _BACKWARD_HOOKS[0]) for each in model.parameters() if each._backward_hooks]
    hooks = [getattr(holder, name) for holder, name in holders]
    for holder, name in holders:
        setattr(holder, name, OrderedDict())
    try:
        yield
    finally:
        for (holder, name), each in zip(holders, hooks, strict=True):
            setattr(holder, name, each)


def nothing(learned: Variables, *kinds: int) -> Moments:
    """Sums of nothing, [*kinds, *shape of the tensor], on the device of the tensor."""
    tensors = learned.tensors.items()
    return Moments({name: each.new_zeros((*kinds, *each.shape), dtype=torch.float64) for name, each in tensors})


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """What a forward pass leaves for the backward ones.

    Attributes:
        inputs: of the samples.
        output: of the model.
        tape: the uses of all learned tensors.
        methods: how the gradients of each are taken.
    """

    inputs: Inputs
    output: Tensor
    tape: Tape
    methods: Mapping[str, Method]

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self.output)

    def stacks(self, signals: Signals) -> Iterator[Tensor]:
        """Some signals at a time, [signals, *shape of the output], as many as gradients are kept for at once."""
        most = max(1, SITE_BYTES // (max(1, self.tape.site_values) * self.output.element_size()))
        together = math.ceil(signals.number / max(1, math.ceil(signals.number / most)))
        stack: list[Tensor] = []
        for signal in signals.sent:
            stack.append(signal)
            if len(stack) == together:
                yield torch.stack(stack).to(self.output)
                stack = []
        if stack:
            yield torch.stack(stack).to(self.output)

    def captured(self, signals: Tensor) -> Iterator[tuple[str, Order, list[Use], list[list[Tensor]]]]:
        """Order of rows, uses and gradients (as in `square_sum`) of every tensor whose uses are known."""
        at_sites = [gradients(self.output, self.tape.sites, signal) for signal in signals]
        for name, method in self.methods.items():
            uses = [use for use in self.tape.uses.get(name, ()) if at_sites[0][use.site] is not None]
            if method in ("major", "minor") and uses:
                yield name, method, uses, [[at for s in at_sites if (at := s[use.site]) is not None] for use in uses]

    def general_squares(
        self, state: Seen, signals: Tensor, looped: list[int] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Sums over samples and signals of squared gradients of all other tensors, by slower methods.

        Args:
            state: whose pass it is.
            signals: [signals, samples, ...].
            looped: samples that stand for all where they are looked at one after the other; None for all of them.
        """
        for method, squares in (("vmap", functional.vmap_squares), ("loop", functional.loop_squares)):
            names = [name for name in self.methods if self.methods[name] == method]
            sent = signals
            if method == "loop" and looped is not None:
                sent = torch.zeros_like(signals)
                sent[:, looped] = signals[:, looped] * math.sqrt(self.samples / len(looped))
            if names:
                yield from squares(state.model, state.learned, names, self.inputs, sent).items()


def forward(state: Seen, inputs: Inputs, index: int | None) -> ForwardPass:
    """Run a few samples through the model.

    Args:
        state: with a plan for them.
        inputs: the samples.
        index: number of the batch, for error messages.
    """
    samples = num_samples(inputs)
    tape = Tape(state.learned)
    with tape:
        output = call(state.model, inputs, index=index)
    check_output(output, samples)
    return ForwardPass(inputs, output, tape, methods_for(state.plan, state.learned, tape, output, samples))


def methods_for(plan: Plan, learned: Variables, tape: Tape, output: Tensor, samples: int) -> dict[str, Method]:
    """The method for every tensor in this pass; the slow one for what the plan did not foresee."""
    methods = dict(plan.methods)
    pending = [name for name in learned.tensors if name not in methods]
    found = gradients(output, [learned.tensors[name] for name in pending], torch.ones_like(output))
    methods |= {name: "loop" for name, gradient in zip(pending, found, strict=True) if gradient is not None}
    for name, method in methods.items():
        captured = method in ("major", "minor")
        if captured and (name in tape.missed or any(use.rows % samples for use in tape.uses.get(name, ()))):
            methods[name] = "loop"
    return methods
