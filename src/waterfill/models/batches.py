"""What a batch is, and how a model is called with one.

A batch is `(input, target)`, a tuple or list of exactly two, or only inputs: a tensor, a dict, or a tuple or list of
another length. Inputs are a tensor, a tuple or list (positional arguments) or a dict (keyword arguments); the first
axis of their tensors counts the samples. A target may be None.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from waterfill.errors import CalibrationError, UnsupportedModelError, UsageError
from waterfill.models.containers import (
    is_named_tuple,
    leaves,
    map_leaves,
    map_packed,
    pick_packed,
    tensors_of_packed,
)
from waterfill.models.restoring import restored
from waterfill.protocols import Output

Inputs: TypeAlias = Any
"""A tensor, a tuple or list of positional arguments, or a dict of keyword arguments."""

OUTPUTS: tuple[Output, ...] = get_args(Output)
"""Names of what a model can return."""

IGNORED = -100
"""Integer target of a prediction that does not count, as in `torch.nn.functional.cross_entropy`."""

_FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def split(batch: Any) -> tuple[Inputs, Tensor | None]:
    """Split a batch into its inputs and its target.

    Args:
        batch: `(input, target)`, or only inputs.

    Returns:
        The inputs as they are, and the target as a tensor, or None where there is none.

    Raises:
        CalibrationError: the second of a pair cannot be read as a tensor.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        return batch, None
    inputs, target = batch
    if target is None or isinstance(target, Tensor):
        return inputs, target
    try:
        return inputs, torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            f"The target of a batch is a {type(target).__name__}; expected a tensor or None. A tuple of two is read as "
            "(input, target); give two inputs as ((first, second), None)."
        ) from error


def map_tensors(inputs: Inputs, function: Callable[[Tensor], Any]) -> Inputs:
    """Apply `function` to every tensor inside of containers, which keep their types; see `containers`."""

    def mapped(leaf: Tensor | PackedSequence) -> Any:
        return map_packed(leaf, function) if isinstance(leaf, PackedSequence) else function(leaf)

    return map_leaves(inputs, mapped)


def tensors_in(inputs: Inputs) -> list[Tensor]:
    """List every tensor that `map_tensors` maps, in order."""
    found: list[Tensor] = []
    for leaf in leaves(inputs):
        found += tensors_of_packed(leaf) if isinstance(leaf, PackedSequence) else [leaf]
    return found


def num_samples(inputs: Inputs) -> int:
    """Length of the first axis of the first tensor; of a packed sequence, the number of sequences.

    Raises:
        CalibrationError: there is no tensor, or it has no axes.
    """
    first = next(leaves(inputs), None)
    if isinstance(first, PackedSequence):
        return int(first.batch_sizes[0])
    if first is None or first.is_nested or first.ndim == 0:
        raise CalibrationError(
            f"Inputs {describe(inputs)} have no axis that counts samples; expected tensors [samples, ...]. "
            "Give batches of tensors, a single sample as [1, ...]."
        )
    return first.shape[0]


def take(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Samples `start` to `stop`; tensors that do not have the samples on their first axis stay whole."""
    return _chosen(inputs, slice(start, stop))


def pick(inputs: Inputs, samples: list[int]) -> Inputs:
    """Chosen samples, in the order given; other tensors as in `take`."""
    return _chosen(inputs, samples)


def _chosen(inputs: Inputs, samples: list[int] | slice) -> Inputs:
    count = num_samples(inputs)

    def chosen(leaf: Tensor | PackedSequence) -> Tensor | PackedSequence:
        if isinstance(leaf, PackedSequence):
            return pick_packed(leaf, samples)
        return leaf[samples] if leaf.ndim > 0 and leaf.shape[0] == count else leaf

    return map_leaves(inputs, chosen)


def describe(inputs: Inputs) -> str:
    """Shapes and dtypes for an error message, such as `(float32[8, 3, 32, 32], mask=bool[8])`."""
    if isinstance(inputs, Tensor) and inputs.is_nested:
        return "a nested tensor"
    if isinstance(inputs, Tensor):
        return f"{str(inputs.dtype).removeprefix('torch.')}{list(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return "(" + ", ".join(f"{key}={describe(value)}" for key, value in inputs.items()) + ")"
    if isinstance(inputs, tuple | list):
        return "(" + ", ".join(map(describe, inputs)) + ")"
    return type(inputs).__name__


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first tensor is; the CPU for a model without tensors."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def arguments(model: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a model for inputs; a named tuple is one where forward takes only one.

    Args:
        model: the network.
        inputs: as in `call`.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    whole = isinstance(inputs, PackedSequence) or (is_named_tuple(inputs) and not _takes(model, inputs))
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) and not whole else ((inputs,), {})


def _takes(model: nn.Module, inputs: Sequence[Any]) -> bool:
    """Whether a forward takes so many positional arguments, as far as its signature tells."""
    try:
        inspect.signature(model.forward).bind(*inputs)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Move inputs to a device; tensors of inference mode, which have no gradients, are copied to ordinary ones."""
    return map_tensors(inputs, lambda t: t.to(device, copy=True) if _lacks_gradients(t) else t.to(device))


def _lacks_gradients(tensor: Tensor) -> bool:
    with torch._C.DisableTorchFunction():  # a question that is no part of what the model computes
        return tensor.is_inference() and not torch.is_inference_mode_enabled()


def call(model: nn.Module, inputs: Inputs, *, index: int | None = None) -> Tensor:
    """Run the model on one batch, with gradients as the caller has set them; what it keeps of it is put back.

    Args:
        model: the network; inputs are moved to its device.
        inputs: a tensor, positional arguments as a tuple or list, or keyword arguments as a dict.
        index: number of the batch, for the error message.

    Returns:
        The output tensor: the output itself, its `logits`, or the first tensor of a tuple, list or dict.

    Raises:
        CalibrationError: the forward pass rejects the batch.
        UnsupportedModelError: the output has no tensor.
    """
    moved = on_device(inputs, device_of(model))
    run = getattr(model, "_orig_mod", model)  # of torch.compile, whose code cannot be watched
    try:
        with restored(model):
            args, kwargs = arguments(run, moved)
            output = run(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except _FORWARD_ERRORS as error:
        raise CalibrationError(_misfit(inputs, index, error)) from error
    return first_tensor(output)


def _misfit(inputs: Inputs, index: int | None, error: Exception) -> str:
    which = "A batch" if index is None else f"Batch {index}"
    cause = (str(error).strip() or "no message").splitlines()[0]
    return (
        f"{which} does not fit the model: its inputs {describe(inputs)} raised {type(error).__name__}: {cause} "
        "Expected what the model's forward takes; give batches of that shape and dtype, as (input, target) or as "
        "inputs alone: a tensor, a tuple of positional or a dict of keyword arguments."
    )


def first_tensor(output: Any) -> Tensor:
    """Find the tensor that counts in a model's output: itself, its `logits`, or the first of a tuple, list or dict.

    Raises:
        UnsupportedModelError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise UnsupportedModelError(
        f"The model returns a {type(output).__name__} without a tensor; expected a tensor, an object with `logits`, or "
        "a tuple, list or dict with a tensor. Wrap the model so that it returns its output tensor."
    )


def as_batches(data: Any) -> Iterable[Any]:
    """Check that `data` can be iterated over several times, and make it so where it cannot.

    Args:
        data: an iterable of batches, such as a list or a DataLoader.

    Returns:
        `data` itself, or a list of what a one-shot iterator yields.

    Raises:
        CalibrationError: `data` is one batch, cannot be iterated over, or is empty.
    """
    problem = _not_batches(data)
    if problem:
        raise CalibrationError(f"Data is {problem}; expected an iterable of batches. Give a list of batches: [batch].")
    if not isinstance(data, Iterable):
        raise CalibrationError(
            f"Data is a {type(data).__name__} and cannot be iterated over; expected an iterable of batches. "
            "Give a list of batches or wrap a dataset in torch.utils.data.DataLoader."
        )
    batches: Iterable[Any] = list(data) if isinstance(data, Iterator) else data
    if _is_empty(batches):
        raise CalibrationError("Data has no batches; expected at least one. Give a list of batches that is not empty.")
    return batches


def _not_batches(data: Any) -> str:
    """Say what `data` is where it is plainly a single batch or no data at all; empty text otherwise."""
    if isinstance(data, Tensor):
        return f"a single tensor {describe(data)}"
    if isinstance(data, Mapping):
        return "a single dict"
    if isinstance(data, str | bytes):
        return f"a {type(data).__name__}"
    pair = isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    if pair and is_integer(data[1]) and data[1].ndim < data[0].ndim and data[0].shape[:1] == data[1].shape[:1]:
        return f"a single pair {describe(data)}"
    return ""


def _is_empty(batches: Iterable[Any]) -> bool:
    try:
        return len(batches) == 0  # type: ignore[arg-type]
    except TypeError:
        return next(iter(batches), _NOTHING) is _NOTHING


_NOTHING = object()


def is_integer(target: Tensor | None) -> bool:
    """Whether targets are classes: signed integers or bytes, not booleans."""
    return target is not None and target.dtype in _INTEGERS


def output_kind(data: Iterable[Any], output: str | None) -> Output:
    """Tell whether the model returns logits or values.

    Args:
        data: batches that can be iterated over again; only the first is looked at.
        output: what the caller says, which wins; None to tell from the targets, where integers mean logits.

    Raises:
        UsageError: `output` is not one of the two names.
        CalibrationError: `output` is None and the targets do not tell.
    """
    if output is not None:
        return _named(output)
    _, target = split(next(iter(data)))
    if is_integer(target):
        return "logits"
    found = "no targets" if target is None else f"targets of {describe(target)}"
    raise CalibrationError(
        f"Data has {found}, which do not tell what the model returns; expected integer targets or output=. Give "
        "output='logits' for scores of classes (error measured as KL divergence) or output='values' for real values "
        "(error measured as squared error)."
    )


def _named(output: str) -> Output:
    for known in OUTPUTS:
        if output == known:
            return known
    names = ", ".join(map(repr, OUTPUTS))
    raise UsageError(f"Output is {output!r}; expected {names} or None. Name what the model returns.")


def class_axis(logits: Tensor, target: Tensor | None = None) -> int:
    """Axis of the classes: the last, `[B, C]` or `[B, T, C]`, except where only axis 1 agrees with the target.

    Images labelled pixel by pixel have logits `[B, C, H, W]` and integer targets `[B, H, W]`: there it is 1.
    """
    if not is_integer(target) or target is None or target.shape == logits.shape[:-1]:
        return logits.ndim - 1
    return 1 if logits.ndim > 2 and target.shape == logits.shape[:1] + logits.shape[2:] else logits.ndim - 1


def prediction_rows(logits: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Read logits as one row for every prediction, those that do not count among them.

    Args:
        logits: [samples, classes], [samples, ..., classes], or [samples, classes, ...] where the target says so.
        target: integers, one for every prediction; anything else is not looked at.

    Returns:
        Logits [predictions, classes], no copy where their memory allows, and integer targets [predictions] or None.

    Raises:
        CalibrationError: integer targets do not fit the logits in shape.
    """
    rows = logits.movedim(class_axis(logits, target), -1)
    if target is None or not is_integer(target):
        return rows.reshape(-1, rows.shape[-1]), None
    if _without_ones(target.shape) != _without_ones(rows.shape[:-1]):
        raise CalibrationError(
            f"Integer targets {describe(target)} do not fit the logits {describe(logits)}; expected one target for "
            "every prediction, [samples] for logits [samples, classes]. Give such targets, or None."
        )
    return rows.reshape(-1, rows.shape[-1]), target.reshape(-1).to(rows.device, torch.int64)


def as_predictions(logits: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Read logits as one row for every prediction; those whose target is `IGNORED` are left out.

    Args:
        logits: as in `prediction_rows`.
        target: as there.

    Returns:
        Logits [predictions, classes], and integer targets [predictions] or None.

    Raises:
        CalibrationError: integer targets do not fit the logits in shape or range.
    """
    rows, labels = prediction_rows(logits, target)
    if labels is None:
        return rows, None
    counted = labels != IGNORED
    rows, labels = rows[counted], labels[counted]
    low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
    if not 0 <= low <= high < rows.shape[-1]:
        raise CalibrationError(
            f"Integer targets range from {low} to {high}; expected 0 to {rows.shape[-1] - 1} for {rows.shape[-1]} "
            f"classes, or {IGNORED} for a prediction that does not count. Correct the targets."
        )
    return rows, labels


def _without_ones(shape: torch.Size) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


@contextmanager
def evaluation(model: nn.Module, *, writing: bool = False) -> Iterator[nn.Module]:
    """Put the whole model into evaluation mode, and afterwards every flag, gradient, attribute and tensor as it was.

    Args:
        model: the network.
        writing: whether the caller gives parameters and statistics of norms other values, which then stay.
    """
    modes = [(each, each.training) for each in model.modules() if hasattr(each, "training")]  # frozen ones have none
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    with suppress(NotImplementedError):  # an exported graph stays as it was exported
        model.eval()
    for parameter in model.parameters():
        parameter.grad = None
    try:
        with restored(model, learned=not writing, in_place=True):
            yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in parameters:
            if parameter.requires_grad != requires_grad:  # a tensor of inference mode does not take it
                parameter.requires_grad_(requires_grad)
            parameter.grad = grad
