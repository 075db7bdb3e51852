"""The functions that layers are made of: how each uses its learned tensors.

Every handler has the signature of its function after (tape, function), computes what the function computes, and records
the uses. What is not here goes through `UseRecorder.pass_through` and is missed, never ignored.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from waterfill.models import elementwise, recurrent
from waterfill.models.elementwise import channels_of, record_term, trailing_axes
from waterfill.models.recorder import SubstitutingRecorder, UseRecorder
from waterfill.models.uses import Convolution, Dense, Tokens
from waterfill.records import Layout

Function = Callable[..., Any]

ProductHandler: TypeAlias = Callable[Concatenate[UseRecorder, ...], Any]
"""Takes a recorder, the function and its arguments; returns what the function returns."""

Handler: TypeAlias = Callable[Concatenate[SubstitutingRecorder, ...], Any]
"""The same, where the recorder may have substitutes."""


def _linear(tape: UseRecorder, func: Function, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = func(input, weight, bias)
    tape.miss(input)
    rows = math.prod(input.shape[:-1])
    tape.record(y, weight, Dense(_layout(weight)), lambda: input.reshape(rows, -1), y.ndim - 1)
    record_term(tape, y, bias, y.shape[-1:])
    return y


def _matmul(tape: UseRecorder, func: Function, input: Any, other: Any) -> Any:
    """`y = x W`, with a learned W [in, out]."""
    if not isinstance(other, Tensor) or tape.name_of(other) is None or other.ndim != 2:
        return tape.pass_through(func, input, other)
    y = func(input, other)
    tape.miss(input)
    rows = math.prod(input.shape[:-1])
    tape.record(y, other, Dense(_layout(other, transposed=True)), lambda: input.reshape(rows, -1), y.ndim - 1)
    return y


def _addmm(tape: UseRecorder, func: Function, input: Tensor, mat1: Tensor, mat2: Tensor, **scales: Any) -> Any:
    """`y = b + x W`, with a learned b [out] and W [in, out]."""
    if scales:
        return tape.pass_through(func, input, mat1, mat2, **scales)
    y = func(input, mat1, mat2)
    tape.miss(mat1)
    tape.record(y, mat2, Dense(_layout(mat2, transposed=True)), lambda: mat1, 1)
    record_term(tape, y, input, trailing_axes(input))
    return y


def _embedding(
    tape: UseRecorder,
    func: Function,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    *gradient_options: Any,
    **named_options: Any,
) -> Tensor:
    del padding_idx, gradient_options, named_options  # they change gradients only, not outputs
    y: Tensor = func(input, weight, None, max_norm, norm_type)
    tape.record(y, weight, Tokens(_layout(weight, transposed=True)), lambda: input.reshape(-1), input.ndim)
    return y


def _convolution(
    tape: UseRecorder,
    func: Function,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    y: Tensor = func(input, weight, bias, stride, padding, dilation, groups)
    tape.miss(input)
    if input.ndim != weight.ndim:
        tape.miss(weight, bias)
        return y
    reach = _per_axis(dilation, weight)
    if padding == "same":
        total = [step * (taps - 1) for step, taps in zip(reach, weight.shape[2:], strict=True)]
        around = [(count // 2, count - count // 2) for count in total]
    else:
        around = [(count, count) for count in _per_axis(0 if padding == "valid" else padding, weight)]
    view = Convolution(_layout(weight), groups, _per_axis(stride, weight), tuple(around), reach)
    tape.record(y, weight, view, lambda: input, 1)
    record_term(tape, y, bias, channels_of(y))
    return y


def _transposed_convolution(
    tape: UseRecorder,
    func: Function,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    y: Tensor = func(input, weight, bias, stride, padding, output_padding, groups, dilation)
    tape.miss(input)
    if input.ndim != weight.ndim:
        tape.miss(weight, bias)
        return y
    reach = _per_axis(dilation, weight)
    sizes = zip(reach, weight.shape[2:], _per_axis(padding, weight), _per_axis(output_padding, weight), strict=True)
    around = tuple((step * (taps - 1) - cut, step * (taps - 1) - cut + more) for step, taps, cut, more in sizes)
    ones = (1,) * len(reach)
    layout = _layout(weight, transposed=True, groups=groups)
    view = Convolution(layout, groups, ones, around, reach, upsample=_per_axis(stride, weight))
    tape.record(y, weight, view, lambda: input, 1)
    record_term(tape, y, bias, channels_of(y))
    return y


def _per_axis(value: Any, weight: Tensor) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values * (weight.ndim - 2) if len(values) == 1 else values


def _layout(t: Tensor, *, transposed: bool = False, groups: int = 1) -> Layout:
    return Layout(tuple(t.shape), transposed, groups)


def _keep_gradients(tape: UseRecorder, func: Function, *_: Any) -> None:
    """`torch.no_grad` inside a model."""
    del tape, func


def _no_hook(tape: UseRecorder, func: Function, tensor: Tensor, *_: Any) -> RemovableHandle:
    """`Tensor.register_hook` inside a model: gives a handle of a hook that is never called."""
    del tape, func, tensor
    return RemovableHandle(OrderedDict())


def _number(tape: UseRecorder, func: Function, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A tensor that becomes numbers, which have no gradient; NumPy takes none that has one."""
    tape.miss(tensor)
    return func(tensor.detach(), *args, **kwargs)


def is_in_place(func: Any) -> bool:
    """Whether a function writes over its first argument, by its name."""
    name: str = getattr(func, "__name__", "")
    return name.startswith("__i") if name.startswith("__") else name.endswith("_")


_NUMBERS = (
    *(Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.item),
    *(Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.__index__, Tensor.__complex__),
)

DETACHING = frozenset({Tensor.detach, torch.detach, vars(torch._C.TensorBase)["data"].__get__})
"""Functions that give the same values without a gradient."""


LOOK_AT_FIRST = frozenset(
    {Tensor.to, Tensor.type_as, Tensor.expand_as, Tensor.view_as, Tensor.reshape_as}  # the second gives only a shape
)
"""Functions whose other arguments have no part in the values of the result."""

PRODUCTS: Mapping[Any, ProductHandler] = {
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _transposed_convolution),
}
"""Those that multiply their input with a matrix."""

HANDLERS: Mapping[Any, Handler] = {
    **PRODUCTS,
    F.embedding: _embedding,
    F.batch_norm: elementwise.batch_norm,
    F.instance_norm: elementwise.instance_norm,
    F.layer_norm: elementwise.layer_norm,
    F.rms_norm: elementwise.rms_norm,
    F.group_norm: elementwise.group_norm,
    F.prelu: elementwise.prelu,
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), elementwise.multiply),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), elementwise.add),
    torch.lstm: recurrent.sequence_handler(recurrent.lstm_step),
    torch.gru: recurrent.sequence_handler(recurrent.gru_step),
    torch.rnn_tanh: recurrent.sequence_handler(recurrent.tanh_step),
    torch.rnn_relu: recurrent.sequence_handler(recurrent.relu_step),
    torch.lstm_cell: recurrent.cell_handler(recurrent.lstm_step),
    torch.gru_cell: recurrent.cell_handler(recurrent.gru_step),
    torch.rnn_tanh_cell: recurrent.cell_handler(recurrent.tanh_step),
    torch.rnn_relu_cell: recurrent.cell_handler(recurrent.relu_step),
    torch._C._set_grad_enabled: _keep_gradients,
    Tensor.register_hook: _no_hook,
    **dict.fromkeys(_NUMBERS, _number),
}
