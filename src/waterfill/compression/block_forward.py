"""Activations on their way through a model, one transformer block at a time.

```
batch --embed-----> hidden states before the first block, and what every block is called with beside them
hidden --run_block--> after one block
hidden --head-------> output: logits, or the embeddings of sentences
```
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from waterfill.distortion import KL_DIVERGENCE, SQUARED_ERROR, Distortion
from waterfill.errors import CalibrationError, UnsupportedModelError, WaterfillError, first_line
from waterfill.models.batches import Inputs, split
from waterfill.models.skeleton import Skeleton

Call: TypeAlias = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Arguments of a block beside the hidden states."""

OTHERWISE = (
    "expected blocks that are called one after the other, each once with the hidden states of the one before. Compress "
    "the directory without data, or the model as a module with waterfill.compress."
)


class Reached(BaseException):
    """The pass has come to where it was to stop; no error, so that nothing between takes it for one."""


@dataclass(frozen=True, eq=False)
class EmbeddedBatch:
    """A batch at the first block.

    Attributes:
        hidden: hidden states [samples, positions, width].
        calls: what each block is called with beside them.
        mask: which positions count, bool [samples * positions], on the CPU.
    """

    hidden: Tensor
    calls: list[Call]
    mask: Tensor


class BlockForward:
    """How batches go through the blocks of a skeleton.

    Args:
        skeleton: the model.
        head: module around the model that gives its output; None for the logits of a language model.
    """

    def __init__(self, skeleton: Skeleton, head: nn.Module | None) -> None:
        self.skeleton = skeleton
        self.distortion: Distortion = KL_DIVERGENCE if head is None else SQUARED_ERROR
        self.model = skeleton.model if head is None else head
        self.device = skeleton.device
        self._tuples = False
        skeleton.model.config.use_cache = False

    def embed(self, batch: Any) -> EmbeddedBatch:
        """Come to the first block.

        Raises:
            CalibrationError: the model cannot be called with the batch.
        """
        inputs = as_keywords(batch)
        try:
            hidden, calls = self._entered(inputs)
        except _OtherShape:
            self._tuples = not self._tuples
            try:
                hidden, calls = self._entered(inputs)
            except _OtherShape as error:
                raise UnsupportedModelError(
                    f"Blocks of the model change the shape of hidden states; {OTHERWISE}"
                ) from error
        mask = inputs.get("attention_mask")
        count = math.prod(hidden.shape[:-1])
        if not count:
            shapes = {name: list(each.shape) for name, each in inputs.items()}
            raise CalibrationError(f"The batch {shapes} is empty; expected at least one position. Leave it out.")
        if mask is None or mask.shape != hidden.shape[:-1]:  # such as that of an encoder before
            mask = torch.ones(hidden.shape[:-1])
        counted = mask.bool().flatten().cpu()
        return EmbeddedBatch(hidden, calls, counted)

    def run_block(self, block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
        """Go through one block, on the device of the model."""
        out = block(hidden.to(self.device), *call[0], **call[1])
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    def head(self, batch: Any, hidden: Tensor) -> Tensor:
        """Come from the last block to the output [samples, ...]."""
        called: list[int] = []
        last = len(self.skeleton.blocks) - 1

        def act(index: int, given: Tensor, call: Call) -> Tensor:
            del call
            _check_order(index, called)
            called.append(index)
            return hidden.to(self.device) if index == last else given

        return self._call(as_keywords(batch), act)

    def _entered(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, list[Call]]:
        first: list[Tensor] = []
        calls: list[Call] = []

        def act(index: int, given: Tensor, call: Call) -> Tensor:
            if first and given.shape != first[0].shape:
                raise _OtherShape
            _check_order(index, calls)
            first.append(given)
            calls.append(call)
            if index == len(self.skeleton.blocks) - 1:
                raise Reached
            return given

        try:
            self._call(inputs, act)
        except Reached:
            return first[0], calls
        raise UnsupportedModelError(f"The model does not call its last block; {OTHERWISE}")

    def _call(self, inputs: Mapping[str, Tensor], act: Any) -> Tensor:
        with _standing_in(list(self.skeleton.blocks.values()), act, self._tuples):
            try:
                out = self.model(**{name: each.to(self.device) for name, each in inputs.items()})
            except (_OtherShape, WaterfillError):
                raise
            except Exception as error:
                shapes = {name: list(each.shape) for name, each in inputs.items()}
                raise CalibrationError(
                    f"The model cannot be called with the batch {shapes}: {first_line(error)} Expected "
                    "input_ids [samples, positions] within its vocabulary and length, or a dict of its arguments. A "
                    "model that takes no tokens, or whose blocks hand on more than hidden states, goes without data, "
                    "or as a module with waterfill.compress."
                ) from error
        return _output_of(out)


def _output_of(out: Any) -> Tensor:
    """The logits of a model of transformers, or what a head returns.

    Raises:
        UnsupportedModelError: there are none.
    """
    found = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if not isinstance(found, Tensor):
        raise UnsupportedModelError(
            f"The model returns a {type(out).__name__} without logits; expected logits for every token. Compress the "
            "directory without data, or the model as a module with waterfill.compress."
        )
    return found


def _check_order(index: int, called: Sequence[Any]) -> None:
    """Check that blocks are called one after the other, each once.

    Raises:
        UnsupportedModelError: they are not, such as one that a model uses several times.
    """
    if index != len(called):
        raise UnsupportedModelError(
            f"The model calls its block {index} after {len(called)} others, or again as layers that share weights; "
            f"{OTHERWISE}"
        )


class _OtherShape(Exception):
    """Blocks give something else than stand-ins."""


@contextmanager
def _standing_in(blocks: list[nn.Module], act: Any, tuples: bool) -> Iterator[None]:
    """While it is entered, blocks do not compute anything: `act(index, hidden, call)` does."""

    def stand_in(index: int) -> Any:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            found = act(index, hidden, (args, kwargs))
            return (found,) if tuples else found

        return forward

    for index, block in enumerate(blocks):
        block.forward = stand_in(index)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def as_keywords(batch: Any) -> dict[str, Tensor]:
    """The arguments of a transformers model: a batch of tokens is its `input_ids`; a target is left out.

    Raises:
        CalibrationError: it is none.
    """
    inputs: Inputs = split(batch)[0]
    if isinstance(inputs, tuple | list) and len(inputs) == 1:
        inputs = inputs[0]
    if isinstance(inputs, Tensor):
        return {"input_ids": inputs}
    if isinstance(inputs, Mapping) and inputs and all(isinstance(each, Tensor) for each in inputs.values()):
        return {str(name): each for name, each in inputs.items() if name != "labels"}
    raise CalibrationError(
        f"A batch is a {type(inputs).__name__}; expected tokens int64 [samples, positions], or a dict of tensors such "
        "as input_ids and attention_mask. Use waterfill.text_batches."
    )
