"""Tuples of several inputs: which parts of a batch a model takes, and whether the last one is the target."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.errors import CalibrationError, UnsupportedModelError
from waterfill.models.batches import call, evaluation, is_integer, map_arrays
from waterfill.models.kept_batches import OnePass, RepeatableBatches

_KINDS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Arrangement:
    """How tuples are read that are neither `(input, target)` nor inputs alone.

    Attributes:
        inputs: how many parts are inputs, from the front.
        parts: how many there are, with the target where there is one.
    """

    inputs: int
    parts: int

    def __call__(self, batch: Any) -> Any:
        """The batch as a pair of inputs and target; one of another kind as it is."""
        if not _is_tuple(batch) or len(batch) != self.parts:
            return batch
        return tuple(batch[: self.inputs]), batch[-1] if self.inputs < self.parts else None

    @property
    def note(self) -> str:
        """What was assumed, in a sentence."""
        target = "and a target" if self.inputs < self.parts else "without a target"
        return (
            f"Batches of {self.parts} parts are read as {self.inputs} inputs {target}, for the model's forward takes "
            f"{self.inputs}."
        )


@dataclass(frozen=True)
class MaskedText:
    """Pairs of tokens and the mask of their padding, read as the arguments of these names.

    Attributes:
        tokens: name of the first.
        mask: name of the second.
    """

    tokens: str = "input_ids"
    mask: str = "attention_mask"

    def __call__(self, batch: Any) -> Any:
        """The batch as a dict; one of another kind as it is."""
        return {self.tokens: batch[0], self.mask: batch[1]} if _is_tuple(batch) and len(batch) == 2 else batch

    @property
    def note(self) -> str:
        """What was assumed, in a sentence."""
        return f"Pairs are read as ({self.tokens}, {self.mask}), for the second part is 1 on tokens and 0 on padding."


BatchReading: TypeAlias = Arrangement | MaskedText
"""How batches are read that are not as `split` takes them."""


@dataclass(frozen=True, eq=False)
class ArrangedBatches(RepeatableBatches):
    """Batches as the model takes them, beside those that the caller gave.

    Attributes:
        given: batches of the caller.
        arrangement: how they are read.
    """

    given: Sequence[Any]
    arrangement: BatchReading

    def __len__(self) -> int:
        return len(self.given)

    def __iter__(self) -> Iterator[Any]:
        return map(self.arrangement, self.given)

    def __getitem__(self, index: Any) -> Any:
        return self.arrangement(self.given[index])


def arranged(model: nn.Module, batches: Sequence[Any], note: Callable[[str], None] = lambda _: None) -> Sequence[Any]:
    """Batches as a model takes them, told by its signature and by calling it with the first one.

    Args:
        model: the network; its modes are left as they were.
        batches: of the caller.
        note: called with what was assumed, in a sentence.

    Returns:
        They themselves, unless their tuples hold several inputs.
    """
    found = arrangement(model, batches[0], note)
    return batches if found is None else ArrangedBatches(batches, found)


def masked_text(batches: Sequence[Any], note: Callable[[str], None]) -> Sequence[Any]:
    """Batches for a model of text: pairs of tokens and their mask as dicts, all others themselves."""
    if not is_masked(batches[0]):
        return batches
    note(MaskedText().note)
    return ArrangedBatches(batches, MaskedText())


def is_masked(batch: Any) -> bool:
    """Whether a pair is tokens [texts, tokens] and a mask: in every row ones, and zeros before or after them."""
    if not _is_tuple(batch) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        return False
    tokens, mask = batch
    if not is_integer(tokens) or tokens.ndim != 2 or tokens.shape != mask.shape or not mask.numel():
        return False
    steps = mask.to(torch.int64).diff(dim=1)
    sorted_rows = bool((steps <= 0).all()) or bool((steps >= 0).all())
    binary = bool(((mask == 0) | (mask == 1)).all()) and bool(mask.bool().any(1).all())
    return sorted_rows and binary and int(tokens.max()) > 1


def arranged_pass(model: nn.Module, batches: OnePass, note: Callable[[str], None] = lambda _: None) -> OnePass:
    """Data to go through once, as a model takes them; see `arranged`."""
    found = arrangement(model, batches.first, note)
    if found is None:
        return batches
    return OnePass(found(batches.first), map(found, batches.rest), batches.total)


def as_given(batches: Iterable[Any]) -> Iterable[Any]:
    """Batches as the caller gave them."""
    return batches.given if isinstance(batches, ArrangedBatches) else batches


def arrangement(model: nn.Module, batch: Any, note: Callable[[str], None] = lambda _: None) -> BatchReading | None:
    """How a model takes the parts of a batch; None where `split` reads it right.

    A tuple of two is `(input, target)`, one of three or more is inputs alone. Only where the model does not take them
    so, and takes them otherwise, they are read otherwise.

    Args:
        model: the network; its modes are left as they were.
        batch: the first one.
        note: called with a sentence where something was assumed.
    """
    if not _is_tuple(batch) or len(batch) < 2 or not all(isinstance(part, Tensor | np.ndarray) for part in batch):
        return None
    least, most = positional_inputs(model)
    if most < 2:
        return None
    names = input_names(model)
    found: BatchReading | None
    if is_masked(batch) and len(names) > 1 and "mask" in names[1]:
        found = MaskedText(*names[:2])
    elif len(batch) == 2:
        found = _of_pair(model, batch, least, note)
    else:
        found = _of_several(model, batch, most)
    if found is not None:
        note(found.note)
    return found


def _of_several(model: nn.Module, batch: Any, most: float) -> Arrangement | None:
    """How three parts or more are read by a model that takes so many inputs at most."""
    count = len(batch)
    if count - 1 > most or (count <= most and _answer(model, batch) is not None):
        return None
    return Arrangement(count - 1, count) if _answer(model, batch[:-1]) is not None else None


def _of_pair(model: nn.Module, batch: Any, least: int, note: Callable[[str], None]) -> Arrangement | None:
    """How a pair is read by a model that can take two inputs."""
    target = batch[1]
    alone = _answer(model, batch[:1]) if least < 2 else None
    plausible = alone is not None and _may_be_target(target, alone)
    if plausible and target.shape != batch[0].shape:
        return None
    if _answer(model, batch) is None:
        return None
    if not plausible:
        return Arrangement(2, 2)
    note(
        "Pairs of tensors are read as (input, target), though the model takes both as inputs, too; for two inputs give "
        "((first, second), None)."
    )
    return None


def _may_be_target(target: Any, output: Tensor) -> bool:
    """Whether the second part of a pair could be what the output should be: classes, or values like it."""
    shapes = {output.shape, output.shape[:-1], output.shape[:1] + output.shape[2:], output.shape[:1]}
    if is_integer(map_arrays(target)) or target.shape == output.shape:
        return math.prod(target.shape) == 1 or tuple(target.shape) in {tuple(shape) for shape in shapes}
    return math.prod(target.shape) == math.prod(output.shape) and len(target) == len(output)


def input_names(model: nn.Module) -> list[str]:
    """Names of the positional inputs of a model's forward, as far as it tells."""
    parameters = _parameters(model) or []
    return [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


def positional_inputs(model: nn.Module) -> tuple[int, float]:
    """How many positional inputs a model's forward needs at least, and takes at most."""
    parameters = _parameters(model)
    if parameters is None:
        return 1, math.inf
    several = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
    named = [each for each in parameters if each.kind in _KINDS]
    needed = sum(each.default is inspect.Parameter.empty for each in named)
    return max(1, needed), math.inf if several else len(named)


def _parameters(model: nn.Module) -> list[inspect.Parameter] | None:
    """Parameters of a model's forward; None where its code is not Python's and does not tell."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return None


def _answer(model: nn.Module, parts: Any) -> Tensor | None:
    """What the model returns for some inputs; None where it does not take them."""
    try:
        with evaluation(model), torch.no_grad():
            return call(model, tuple(map(map_arrays, parts)))
    except (CalibrationError, UnsupportedModelError):
        return None


def _is_tuple(batch: Any) -> bool:
    return isinstance(batch, tuple | list)
