"""Check the gradients of a model by moving its tensors: a zero gradient is not zero sensitivity.

```
few samples --backward--> what the gradients say of a small move --.
            --forward, one tensor moved-----------------------------> agree: its form is kept
                                                     `--> not: it is moved farther, and priced by what that costs
```
Gradients do not show weights that are read through `.data`, `detach` or Python numbers, nor what hooks and functions
with a backward of their own make of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.compression.estimated_forms import data_free_forms
from waterfill.distortion import Distortion
from waterfill.importance import UnfactoredForm, weight_scale
from waterfill.importance.backward import NoGradientError, gradients
from waterfill.importance.state import differentiable, full_precision, in_full_precision
from waterfill.models.batches import Inputs, call, evaluation, map_tensors, num_samples, split, take
from waterfill.models.capture import Tape, Variables
from waterfill.models.replay import Replay
from waterfill.models.state_dict import assemble_one, values_of
from waterfill.models.torch_module import fill
from waterfill.protocols import QuadraticForm
from waterfill.records import Floats, Inventory, NormMean, Weight

FEW_SAMPLES = 2
"""Samples on which the gradients are checked."""

MORE_SAMPLES = 16
"""Samples on which a tensor is priced."""

PROJECTIONS = 4
"""Random directions at the outputs along which a move is compared with what gradients say of it."""

CHECKED = (5e-3, 5e-4, 0.1)
"""Moves for which gradients should hold, relative to every value; the next one is for those that failed the last."""

PRICED = (0.1, 1.0)
"""Moves as coding makes them; the second where the first changes nothing (signs, rounding, gates)."""

DISAGREEMENT = 0.5
"""A move has failed from this distance to what gradients say of it, relative to the larger one."""

NOISE = 32
"""What is below so many roundings of the outputs is not told from rounding."""

TRUSTED = 3
"""Tensors with good gradients that say what a predicted distortion is worth on these samples, at the most."""

MOVED = "gradients do not show its effect, priced by moving it"
"""Why a tensor has a form that no gradient made."""


@dataclass(frozen=True, eq=False)
class CheckedForms:
    """Forms of which gradients that cannot be believed have no part.

    Attributes:
        forms: by name; tensors that nothing reaches have theirs as it was.
        reasons: of the tensors that were priced by moving them, by name.
        unreached: names of the tensors that change no output, however far they are moved.
    """

    forms: Mapping[str, QuadraticForm]
    reasons: Mapping[str, str] = field(default_factory=dict)
    unreached: Sequence[str] = ()


def checked_by_moving(
    copy: nn.Module,
    batches: Iterable[Any],
    distortion: Distortion,
    inventory: Inventory,
    forms: Mapping[str, QuadraticForm],
) -> CheckedForms:
    """Check the forms of a model against what moving its tensors does, one forward pass each on a few samples.

    A tensor whose small move differs from what the gradients say of it, or whose form is zero, is moved as far as
    coding moves it. Its form then is the one without data, scaled so that it costs what was measured; the forms of
    other tensors say what a predicted distortion is worth on these samples.

    Args:
        copy: a copy of the network, which is filled with the values of the inventory.
        batches: the first one is looked at.
        distortion: of what the model returns.
        inventory: its tensors.
        forms: what errors cost by gradients, by name.
    """
    names = [name for name in forms if name in inventory.weights and inventory.weights[name].matrix.size]
    moving = _Moving.of(copy, next(iter(batches)), distortion, inventory)
    suspects = moving.suspects(names, forms)
    if not suspects:
        return CheckedForms(forms)
    trusted = sorted((name for name in names if name not in suspects), key=lambda n: -_scale(inventory, forms, n))
    ratios = [moving.price(name, forms[name], PRICED[:1]) for name in trusted[:TRUSTED]]
    worth = median([ratio for ratio in ratios if ratio] or [1.0])
    found, unreached = dict(forms), []
    for name in suspects:
        unscaled = _without_data(inventory.weights[name], forms[name])
        price = moving.price(name, unscaled, PRICED)
        if price:
            found[name] = UnfactoredForm(
                unscaled.diagonal() * np.float32(price / worth), MOVED, factor=unscaled.factor, unit=unscaled.unit
            )
        elif not forms[name].diagonal().any():
            unreached.append(name)
    reasons = {name: MOVED for name in suspects if found[name] is not forms[name]}
    return CheckedForms(found, reasons, unreached)


def _scale(inventory: Inventory, forms: Mapping[str, QuadraticForm], name: str) -> float:
    """What an error as large as the values of a tensor costs."""
    matrix = inventory.weights[name].matrix
    return float((forms[name].diagonal() * np.square(matrix, dtype=np.float64)).sum())


def _without_data(weight: Weight, form: QuadraticForm) -> UnfactoredForm:
    """A form without data in the unit of one with data; of vectors the same for all values."""
    known = data_free_forms(weight_scale(), {weight.name: weight}).get(weight.name)
    values = np.ones(weight.matrix.shape, np.float32) if known is None else known.diagonal()
    return UnfactoredForm(values, MOVED, factor=form.factor, unit=form.unit)


@dataclass(frozen=True, eq=False)
class _Moving:
    """A model in which one tensor at a time is moved.

    Attributes:
        model: in single or double precision.
        inputs: some samples.
        target: of these; None without.
        distortion: of what the model returns.
        inventory: its tensors, whose values the model has.
    """

    model: nn.Module
    inputs: Inputs
    target: Tensor | None
    distortion: Distortion
    inventory: Inventory

    @classmethod
    def of(cls, copy: nn.Module, batch: Any, distortion: Distortion, inventory: Inventory) -> _Moving:
        """Fill a copy with the values that are coded, as they are without loss."""
        fill(copy, values_of(inventory))
        inputs, target = split(batch)
        samples = min(MORE_SAMPLES, num_samples(inputs))
        fits = target is not None and target.ndim > 0 and len(target) == num_samples(inputs)
        target = target[:samples] if fits and target is not None else target
        some = map_tensors(take(inputs, 0, samples), full_precision)
        return cls(in_full_precision(copy), some, target, distortion, inventory)

    @cached_property
    def _state(self) -> Mapping[str, Tensor]:
        state: Mapping[str, Tensor] = self.model.state_dict(keep_vars=True)
        return state

    @cached_property
    def _output(self) -> Tensor:
        with evaluation(self.model), torch.no_grad():
            return call(self.model, self.inputs)

    # Moves

    @contextmanager
    def moved(self, name: str, error: Floats) -> Iterator[list[str]]:
        """Move a tensor for a while; gives the entries that change.

        Args:
            name: of the tensor.
            error: to add to it, in normal form.
        """
        matrix = self.inventory.weights[name].matrix + error
        entries = self._entries(name)
        before = {each: self._state[each].detach().clone() for each in entries}
        try:
            with torch.no_grad():
                for each in entries:
                    value = assemble_one(each, self.inventory.entries, self._matrices(name, matrix), {})
                    self._state[each].copy_(value)
            yield entries
        finally:
            with torch.no_grad():
                for each, value in before.items():
                    self._state[each].copy_(value)

    def _entries(self, name: str) -> list[str]:
        """The entries of the state dict that a tensor decides."""
        entries = self.inventory.entries
        return [each.name for each in entries if each.name == name or _scale_of(each.origin) == name]

    def _matrices(self, name: str, matrix: Floats) -> Callable[[str], Floats]:
        weights = self.inventory.weights
        return lambda other: matrix if other == name else weights[other].matrix

    # Gradients

    def suspects(self, names: Sequence[str], forms: Mapping[str, QuadraticForm]) -> list[str]:
        """Names of the tensors whose moves gradients do not foresee, or whose form is zero."""
        silent = {name for name in names if not forms[name].diagonal().any()}
        wrong = [name for name in names if name not in silent and name in self._parameters]
        for size in CHECKED:
            wrong = self._disagreeing(wrong, size) if wrong else []
        return [name for name in names if name in silent or name in wrong]

    @cached_property
    def _parameters(self) -> Mapping[str, Tensor]:
        return dict(self.model.named_parameters(remove_duplicate=False))

    def _disagreeing(self, names: Sequence[str], size: float) -> list[str]:
        """Names of the tensors whose moves of a size differ from what gradients say of them."""
        few = take(self.inputs, 0, min(FEW_SAMPLES, num_samples(self.inputs)))
        said = self._said(names, few, size)
        found = []
        with evaluation(self.model), torch.no_grad():
            replay = Replay(self.model, few, self._state)
            directions = _directions(replay.output)
            least = NOISE * _rounding(replay.output, directions)
            for name in names:
                with self.moved(name, _proportional(self.inventory.weights[name], size)) as entries:
                    seen = _projected(replay.run(entries) - replay.output, directions)
                larger = max(float(seen.norm()), float(said[name].norm()))
                apart = min(float((seen - said[name]).norm()), float((seen + said[name]).norm()))  # signs do not count
                if apart > max(DISAGREEMENT * larger, least):
                    found.append(name)
        return found

    def _said(self, names: Sequence[str], few: Inputs, size: float) -> dict[str, Tensor]:
        """What gradients say of moves, along every direction at the outputs, float64 [PROJECTIONS]."""
        tensors = {name: self._parameters[name] for name in names}
        layouts = {name: self.inventory.weights[name].layout for name in names}
        said = {name: torch.zeros(PROJECTIONS, dtype=torch.float64) for name in names}
        with differentiable(self.model):
            with Tape(Variables(tensors, layouts, {}), {}):
                output = call(self.model, few)
            for number, direction in enumerate(_directions(output.detach())):
                for name, gradient in zip(names, self._back(output, tensors, direction), strict=True):
                    if gradient is not None:
                        error = layouts[name].from_matrix(_proportional(self.inventory.weights[name], size))
                        said[name][number] = float((gradient.cpu().double() * torch.from_numpy(error)).sum())
        return said

    def _back(self, output: Tensor, tensors: Mapping[str, Tensor], direction: Tensor) -> Sequence[Tensor | None]:
        if not output.requires_grad:
            return [None] * len(tensors)
        try:
            return gradients(output, list(tensors.values()), direction.to(output))
        except NoGradientError:
            return [None] * len(tensors)

    # Prices

    def price(self, name: str, form: QuadraticForm, sizes: Sequence[float]) -> float:
        """Measured distortion of a move over what a form says of it; 0 where no move changes the outputs.

        Args:
            name: of the tensor.
            form: what errors cost.
            sizes: of moves, relative to the values; the next one is tried where one changes nothing.
        """
        reference = self._output
        least = NOISE * torch.finfo(reference.dtype).eps * reference[reference.isfinite()].abs().max()
        for size in sizes:
            error = _uniform(self.inventory.weights[name], size)
            with evaluation(self.model), torch.no_grad(), self.moved(name, error):
                output = call(self.model, self.inputs)
            changes = bool((output - reference).nan_to_num().abs().max() > least)
            total = float(self.distortion.total(reference, output, self.target))
            cost = form.factor * float((form.diagonal() * np.square(error, dtype=np.float64)).sum())
            if changes and 0 < total < float("inf") and cost > 0:
                return total / max(1, self.distortion.count(reference, self.target)) / cost
        return 0.0


def _scale_of(origin: object) -> str:
    """The scale by which the mean of a folded norm goes; empty for all other entries."""
    return origin.scale if isinstance(origin, NormMean) else ""


def _uniform(weight: Weight, size: float) -> Floats:
    """A random error [out, in] of one size for all values."""
    return _drawn(weight) * np.float32(size * _typical(weight))


def _proportional(weight: Weight, size: float) -> Floats:
    """A random error [out, in] that goes with the values, and is never zero."""
    sizes = np.abs(weight.matrix) + np.float32(0.1 * _typical(weight))
    error: Floats = _drawn(weight) * sizes * np.float32(size)
    return error


def _typical(weight: Weight) -> float:
    """Root mean square of the values; one tenth where all are zero."""
    return float(np.sqrt(np.square(weight.matrix, dtype=np.float64).mean())) or 0.1


def _drawn(weight: Weight) -> Floats:
    """Random normal values [out, in], the same in every process."""
    generator = torch.Generator().manual_seed(sum(map(ord, weight.name)))
    drawn: Floats = torch.randn(weight.matrix.shape, generator=generator).numpy()
    return drawn


def _directions(output: Tensor) -> Tensor:
    """Random directions at the outputs, [PROJECTIONS, *shape]; 0 where outputs are not finite."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(PROJECTIONS, *output.shape, generator=generator).to(output.device)
    return drawn * output.isfinite()


def _projected(change: Tensor, directions: Tensor) -> Tensor:
    """The parts of a change of the outputs along every direction, float64 [PROJECTIONS]."""
    return (change.nan_to_num().double() * directions.double()).flatten(1).sum(1).cpu()


def _rounding(output: Tensor, directions: Tensor) -> float:
    """About how much rounding the outputs changes their parts along the directions."""
    lengths = (output.nan_to_num().double() * directions.double()).flatten(1).norm(dim=1)
    return torch.finfo(output.dtype).eps * float(lengths.mean())
