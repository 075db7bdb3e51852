"""Norms and elementwise functions: how each uses its learned tensors. See `functions`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from waterfill.errors import UnsupportedModelError
from waterfill.models.recorder import SubstitutingRecorder, UseRecorder
from waterfill.models.uses import Broadcast
from waterfill.records import Layout

Function = Callable[..., Any]


def batch_norm(
    tape: SubstitutingRecorder,
    func: Function,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Handle `F.batch_norm`: a folded one as `s x + t`, another one by its normalized input."""
    if training:
        raise UnsupportedModelError(
            "A batch norm uses the statistics of the batch in evaluation mode, so that one sample changes the outputs "
            "of another and no importance per sample exists; expected running statistics. Set track_running_stats=True "
            "and run some batches in training mode, or use the identity importance."
        )
    channels = channels_of(input)
    y: Tensor
    norm = tape.folded(running_var)
    if norm is not None:
        scale, shift = (tape.value(part) for part in norm)
        y = torch.addcmul(shift.reshape(channels), input, scale.reshape(channels))
        record_factor(tape, y, norm[0], channels, lambda: input)
        record_term(tape, y, norm[1], channels)
        return y
    y = func(input, running_mean, running_var, weight, bias, False, momentum, eps)
    normalized = lambda: func(input, running_mean, running_var, None, None, False, momentum, eps)  # noqa: E731
    record_factor(tape, y, weight, channels, normalized)
    record_term(tape, y, bias, channels)
    return y


def instance_norm(
    tape: UseRecorder,
    func: Function,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *options: Any,
    **named: Any,
) -> Tensor:
    """Handle `F.instance_norm`."""
    y: Tensor = func(input, running_mean, running_var, weight, bias, *options, **named)
    normalized = lambda: func(input, running_mean, running_var, None, None, *options, **named)  # noqa: E731
    record_factor(tape, y, weight, channels_of(input), normalized)
    record_term(tape, y, bias, channels_of(input))
    return y


def layer_norm(
    tape: UseRecorder,
    func: Function,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Handle `F.layer_norm`."""
    y: Tensor = func(input, normalized_shape, weight, bias, eps)
    record_factor(tape, y, weight, normalized_shape, lambda: func(input, normalized_shape, None, None, eps))
    record_term(tape, y, bias, normalized_shape)
    return y


def rms_norm(
    tape: UseRecorder,
    func: Function,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Handle `F.rms_norm`."""
    y: Tensor = func(input, normalized_shape, weight, eps)
    record_factor(tape, y, weight, normalized_shape, lambda: func(input, normalized_shape, None, eps))
    return y


def group_norm(
    tape: UseRecorder,
    func: Function,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Handle `F.group_norm`."""
    y: Tensor = func(input, num_groups, weight, bias, eps)
    record_factor(tape, y, weight, channels_of(input), lambda: func(input, num_groups, None, None, eps))
    record_term(tape, y, bias, channels_of(input))
    return y


def prelu(tape: UseRecorder, func: Function, input: Tensor, weight: Tensor) -> Tensor:
    """Handle `F.prelu`: the slope multiplies the negative part of the input."""
    y: Tensor = func(input, weight)
    trailing = channels_of(input) if weight.numel() > 1 else (1,) * (input.ndim - 1)
    record_factor(tape, y, weight, trailing, lambda: input.clamp(max=0))
    return y


def multiply(tape: UseRecorder, func: Function, input: Any, other: Any, **named: Any) -> Any:
    """Handle a product with a learned tensor that is spread over the leading axes of the other."""
    pair = None if named else _learned_and_other(tape, input, other)
    if pair is None:
        return tape.pass_through(func, input, other, **named)
    y = func(input, other)
    weight, x = pair
    record_factor(tape, y, weight, trailing_axes(weight), lambda: x)
    return y


def add(tape: UseRecorder, func: Function, input: Any, other: Any, **named: Any) -> Any:
    """Handle a sum with a learned tensor that is spread over the leading axes of the other."""
    pair = None if named else _learned_and_other(tape, input, other)
    if pair is None:
        return tape.pass_through(func, input, other, **named)
    y = func(input, other)
    record_term(tape, y, pair[0], trailing_axes(pair[0]))
    return y


def _learned_and_other(tape: UseRecorder, input: Any, other: Any) -> tuple[Tensor, Tensor] | None:
    """The learned one of two tensors, and the other, where exactly one is learned and has no axis of its own."""
    if not (isinstance(input, Tensor) and isinstance(other, Tensor)):
        return None
    if (tape.name_of(input) is None) == (tape.name_of(other) is None):
        return None
    weight, x = (input, other) if tape.name_of(other) is None else (other, input)
    return (weight, x) if x.ndim > len(trailing_axes(weight)) else None


def record_factor(
    tape: UseRecorder, y: Tensor, tensor: Tensor | None, trailing: Sequence[int], x: Callable[[], Tensor]
) -> None:
    """Record `y = x() * tensor + ...`, where `trailing` is the tensor's shape beside the last axes of y."""
    if tensor is not None:
        lead = y.ndim - len(trailing)
        rows = math.prod(y.shape[:lead])
        view = Broadcast(Layout(tuple(tensor.shape)), tuple(trailing), factor=True)
        tape.record(y, tensor, view, lambda: x().expand(y.shape).reshape(rows, *y.shape[lead:]), lead)


def record_term(tape: UseRecorder, y: Tensor, tensor: Tensor | None, trailing: Sequence[int]) -> None:
    """Record `y = ... + tensor`, where `trailing` is the tensor's shape beside the last axes of y."""
    if tensor is not None:
        view = Broadcast(Layout(tuple(tensor.shape)), tuple(trailing), factor=False)
        tape.record(y, tensor, view, None, y.ndim - len(trailing))


def channels_of(t: Tensor) -> tuple[int, ...]:
    """Trailing axes of a value for each channel of images [n, channels, *size]."""
    return (t.shape[1], *(1,) * (t.ndim - 2))


def trailing_axes(t: Tensor) -> tuple[int, ...]:
    """The shape without leading axes of length 1."""
    first = next((axis for axis, size in enumerate(t.shape) if size > 1), t.ndim)
    return tuple(t.shape[first:])
