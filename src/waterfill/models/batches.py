"""What a batch is, and how a model is called with one.

A batch is `(input, target)`, a tuple or list of exactly two, or only inputs: a tensor, a dict, or a tuple or list of
another length. Inputs are a tensor, a tuple or list (positional arguments) or a dict (keyword arguments); the first
axis of their tensors counts the samples. A target may be None. Tuples that a model takes otherwise: see `arrangement`.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from waterfill.errors import CalibrationError
from waterfill.models.containers import (
    is_named_tuple,
    leaves,
    map_leaves,
    map_packed,
    pick_packed,
    tensors_of_packed,
)
from waterfill.models.outputs import first_tensor
from waterfill.models.restoring import unchanged
from waterfill.models.surroundings import differentiable_recurrence

Inputs: TypeAlias = Any
"""A tensor, a tuple or list of positional arguments, or a dict of keyword arguments."""

IGNORED = -100
"""Integer target of a prediction that does not count, as in `torch.nn.functional.cross_entropy`."""

_FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def split(batch: Any) -> tuple[Inputs, Tensor | None]:
    """Split a batch into its inputs and its target.

    Args:
        batch: `(input, target)`, or only inputs.

    Returns:
        The inputs as they are, arrays as tensors; and the target as a tensor, or None where there is none.

    Raises:
        CalibrationError: the second of a pair cannot be read as a tensor.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        return map_arrays(batch), None
    inputs, target = map_arrays(batch[0]), batch[1]
    if target is None or isinstance(target, Tensor):
        return inputs, target
    try:
        return inputs, _tensor_of(target) if isinstance(target, np.ndarray) else torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            f"The target of a batch is a {type(target).__name__}; expected a tensor or None. A tuple of two is read as "
            "(input, target); give two inputs as ((first, second), None)."
        ) from error


def map_arrays(inputs: Inputs) -> Inputs:
    """Arrays of NumPy as tensors, those of its own double precision in that of PyTorch; all else stays as it is."""
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "biufc":
        found = _tensor_of(inputs)
        return found.to(torch.get_default_dtype()) if found.dtype == torch.float64 else found
    if isinstance(inputs, Mapping) and any(isinstance(value, np.ndarray) for value in inputs.values()):
        return {key: map_arrays(value) for key, value in inputs.items()}
    if type(inputs) in (tuple, list) and any(isinstance(value, np.ndarray) for value in inputs):
        return tuple(map(map_arrays, inputs))
    return inputs


def _tensor_of(array: NDArray[Any]) -> Tensor:
    """The values of an array, which may be read-only, in another order of bytes, or have steps that are negative."""
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


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


def checksum(inputs: Inputs) -> int:
    """Number made of all bytes of all tensors (CRC-32)."""
    number = 0
    for tensor in tensors_in(inputs):
        number = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data, number)
    return number


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
    """Positional and keyword arguments of a model for inputs; a dict or named tuple is one where forward takes one.

    Args:
        model: the network.
        inputs: as in `call`.
    """
    if isinstance(inputs, Mapping):
        return ((inputs,), {}) if _takes_whole(model, inputs) else ((), dict(inputs))
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


def _takes_whole(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether a forward takes a dict as its only positional argument, and not its entries by name."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return False
    kinds = {each.kind for each in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds or any(key in signature.parameters for key in inputs):
        return False
    return _takes(model, [inputs])


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Copy inputs to a device, for a model may write over them, and those of inference mode have no gradients."""
    return map_tensors(inputs, lambda t: t.to(device, copy=True))


def call(model: nn.Module, inputs: Inputs, *, index: int | None = None) -> Tensor:
    """Run the model on one batch, with gradients as the caller has set them; arguments and errors of `whole_output`.

    Returns:
        The tensor that is read of the output, see `first_tensor`; within `OutputReading.of` that of the reading.

    Raises:
        UnsupportedModelError: the output has no tensor.
    """
    return first_tensor(whole_output(model, inputs, index=index))


def whole_output(model: nn.Module, inputs: Inputs, *, index: int | None = None) -> Any:
    """Run the model on one batch, with gradients as the caller has set them; what it keeps of it is put back.

    Args:
        model: the network; inputs are moved to its device.
        inputs: a tensor, positional arguments as a tuple or list, or keyword arguments as a dict.
        index: number of the batch, for the error message.

    Returns:
        What the model returns.

    Raises:
        CalibrationError: the forward pass rejects the batch.
    """
    own = getattr(model, "_orig_mod", model)  # of torch.compile, whose code cannot be watched
    device = device_of(model)
    args, kwargs = arguments(own, on_device(inputs, device))
    try:
        with unchanged(model), differentiable_recurrence(own, device):
            return own(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except _FORWARD_ERRORS as error:
        raise CalibrationError(_misfit(inputs, index, error)) from error


def _misfit(inputs: Inputs, index: int | None, error: Exception) -> str:
    which = "A batch" if index is None else f"Batch {index}"
    cause = (str(error).strip() or "no message").splitlines()[0]
    return (
        f"{which} does not fit the model: its inputs {describe(inputs)} raised {type(error).__name__}: {cause} "
        "Expected what the model's forward takes; give batches of that shape and dtype, as (input, target) or as "
        "inputs alone: a tensor, a tuple of positional or a dict of keyword arguments."
    )


def is_integer(target: Tensor | None) -> bool:
    """Whether targets are classes: signed integers or bytes, not booleans."""
    return target is not None and target.dtype in _INTEGERS


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
        with unchanged(model, learned=not writing, in_place=True):
            yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in parameters:
            if parameter.requires_grad != requires_grad:  # a tensor of inference mode does not take it
                parameter.requires_grad_(requires_grad)
            parameter.grad = grad
