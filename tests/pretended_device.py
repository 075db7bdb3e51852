"""A device that is none: plain tensors that say they are elsewhere, in memory of this machine.

The operations of PyTorch are computed by those of the CPU, and refuse what a device refuses: tensors of the CPU beside
tensors of the device, unless they have no axes or are indices, and generators of the CPU. That a tensor of the device
is no array of NumPy, PyTorch says itself. What is copied to the CPU is counted in `COPIED`.

A process has to register the device before its first backward pass, so that tests of it are in a process of their own.
"""

from __future__ import annotations

import ctypes
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "pretended"
DEVICE = f"{NAME}:0"

COPIED: list[tuple[int, str]] = []
"""Bytes of every copy to the CPU, and the line of the package that asked for it."""

FREE_BYTES = {0: 1 << 40}
"""What the device says of its free memory."""

_CODES = {
    torch.float32: (2, 32), torch.float64: (2, 64), torch.float16: (2, 16), torch.bfloat16: (4, 16),
    torch.int64: (0, 64), torch.int32: (0, 32), torch.int16: (0, 16), torch.int8: (0, 8), torch.uint8: (1, 8),
    torch.bool: (6, 8), torch.complex64: (5, 64), torch.complex128: (5, 128),
}  # fmt: skip


class _DLDevice(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DLType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device", _DLDevice), ("ndim", ctypes.c_int32), ("dtype", _DLType),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )  # fmt: skip


class _DLManaged(ctypes.Structure):
    _fields_ = (("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_PRIVATE_USE = 12
_ALIGNED = 64
_libc = ctypes.CDLL(None)
_libc.malloc.restype, _libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
_FREE = ctypes.cast(_libc.free, ctypes.c_void_p).value
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


def _away(tensor: Tensor) -> Tensor:
    """Copy a tensor of the CPU to the device.

    It comes as a capsule of DLPack. Its description and its values are one piece of memory, which `free` lets go: a
    function of Python in its place would be called while exceptions are on their way, and lose them.
    """
    tensor, sides = tensor.detach(), max(1, tensor.ndim)
    head = -(-(ctypes.sizeof(_DLManaged) + 16 * sides) // _ALIGNED) * _ALIGNED
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    size = (1 + span) * tensor.itemsize if tensor.numel() else 0
    address = _libc.malloc(head + size + _ALIGNED)
    start = address + head + -(address + head) % _ALIGNED
    managed = _DLManaged.from_address(address)
    shape, strides = (
        (ctypes.c_int64 * sides).from_address(address + ctypes.sizeof(_DLManaged) + 8 * sides * k) for k in (0, 1)
    )
    shape[: tensor.ndim], strides[: tensor.ndim] = tensor.shape, tensor.stride()
    kind = _DLType(*_CODES[tensor.dtype], 1)
    managed.tensor = _DLTensor(start, _DLDevice(_PRIVATE_USE, 0), tensor.ndim, kind, shape, strides, 0)
    managed.deleter = _FREE
    if size:
        memory = torch.frombuffer((ctypes.c_uint8 * size).from_address(start), dtype=tensor.dtype)
        memory.as_strided(tensor.shape, tensor.stride()).copy_(tensor)
    return torch._C._from_dlpack(_capsule(address, b"dltensor", None))


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, dev_id: int) -> bool:
        del dev_id
        return True

    def is_built(self) -> bool:
        return True


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


def register() -> None:
    """Make the device known to PyTorch, once in a process."""
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    module = SimpleNamespace(
        is_initialized=lambda: True, is_available=lambda: True, current_device=lambda: 0, device_count=lambda: 1,
        _is_in_bad_fork=lambda: False, manual_seed_all=lambda _: None, mem_get_info=lambda _: (FREE_BYTES[0], 1 << 40),
    )  # fmt: skip
    backend_registration._setup_privateuseone_for_python_backend(NAME, module, _Hooks(), _Guard())
    _LIBRARY.fallback(_computed, "PrivateUse1")
    for name, function in _KERNELS.items():
        _ATEN.impl(name, function, "PrivateUse1")
    clone = torch.UntypedStorage.clone
    torch.UntypedStorage.clone = lambda self: _cloned(self) if self.device.type == NAME else clone(self)


def _cloned(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """Copy of a memory of the device, for PyTorch has no allocator of it."""
    whole = (ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr()) if storage.nbytes() else b""
    return _away(torch.tensor(bytearray(whole), dtype=torch.uint8)).untyped_storage()


# Operations

_LIBRARY = torch.library.Library("_", "IMPL")
_ATEN = torch.library.Library("aten", "IMPL")
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
_JOINED = ("aten::cat", "aten::stack")


def _here(tensor: Tensor) -> Tensor:
    """A tensor of the CPU with the memory of one of the device."""
    if tensor.device.type != NAME:
        return tensor
    address, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
    if not tensor.numel() or not address:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    memory = (ctypes.c_uint8 * size).from_address(address)
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=size // tensor.itemsize)
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _map(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(_map(each, function) for each in value)
    return value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _map(value, found.append)
    return found


def _check(op: Any, args: Any, kwargs: Any) -> None:
    """Refuse what a device refuses."""
    name = op._schema.name
    for each, argument in zip((*args, *kwargs.values()), (*op._schema.arguments,), strict=False):
        if isinstance(each, torch.Generator) and each.device.type != NAME:
            raise RuntimeError(f"{name}: Expected a {NAME!r} device type for generator but found {each.device.type!r}")
        if name in _INDEXED and argument.name == "indices":
            continue
        for tensor in _tensors(each):
            scalar = tensor.ndim == 0 and name not in _JOINED
            if tensor.device.type != NAME and not scalar:
                raise RuntimeError(
                    f"{name}: Expected all tensors to be on the same device, but found at least two devices, {DEVICE} "
                    f"and {tensor.device}! ({argument.name})"
                )


def _computed(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute an operation of the device by that of the CPU."""
    with torch._C.DisableTorchFunction():
        schema = op._schema
        _check(op, args, kwargs)
        is_view = not schema.is_mutable and any(each.alias_info is not None for each in schema.returns)
        if is_view or schema.name == "aten::set_":
            return op.redispatch(_CPU, *args, **kwargs)  # no memory is looked at
        kwargs = {key: _cpu_if_device(value) for key, value in kwargs.items()}
        args = tuple(_as_declared(value, each) for value, each in zip(args, schema.arguments, strict=False))
        there = {}

        def here(tensor: Tensor) -> Tensor:
            found = _here(tensor)
            there[id(found)] = tensor, found
            return found

        result = op(*_map(args, here), **{key: _map(value, here) for key, value in kwargs.items()})
        for tensor, found in there.values():
            if tensor.device.type == NAME and tensor.shape != found.shape:
                _replace(tensor, found)
        return _map(result, lambda found: there[id(found)][0] if id(found) in there else _away(found))


def _as_declared(value: Any, argument: Any) -> Any:
    """A number where a tensor is declared is one: on its way to Python it was unwrapped."""
    if isinstance(value, bool | int | float) and str(argument.type) == "Tensor":
        return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    return _cpu_if_device(value)


def _cpu_if_device(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _replace(tensor: Tensor, found: Tensor) -> None:
    """Give a tensor of the device, such as one for a result, the shape and memory of another."""
    new = _away(found.contiguous())
    set_ = torch.ops.aten.set_.source_Storage_storage_offset
    set_.redispatch(_CPU, tensor, new.untyped_storage(), 0, list(new.shape), list(new.stride()))


def _copy(tensor: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    del non_blocking
    with torch._C.DisableTorchFunction():
        if tensor.device.type != NAME:
            frames = [each for each in traceback.extract_stack() if "/waterfill/" in each.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
            COPIED.append((source.nbytes, where))
        _here(tensor).copy_(_here(source))
        return tensor


def _copy_from(source: Tensor, tensor: Tensor, non_blocking: bool = False) -> Tensor:
    return _copy(tensor, source, non_blocking)


def _convolution(*args: Any) -> Any:
    return _computed(torch.ops.aten.convolution.default, *args)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *args: Any) -> Any:
    *options, mask = args
    given = (grad, x, weight, [weight.shape[0]], *options, mask)
    return _computed(torch.ops.aten.convolution_backward.default, *given)


def _lstm_cell(
    of_input: Tensor, of_hidden: Tensor, c: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A step of an LSTM, and its gates for the way back; gates in the order input, forget, cell, output."""
    with torch._C.DisableTorchFunction():
        gates = sum((each for each in (of_hidden, b_ih, b_hh) if each is not None), of_input)
        i, f, g, o = gates.chunk(4, 1)
        after = (i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid())
        new = after[1] * c + after[0] * after[2]
        return after[3] * new.tanh(), new, torch.cat(after, 1)


def _lstm_cell_backward(
    of_h: Tensor | None, of_c: Tensor | None, c: Tensor, new: Tensor, gates: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients at the gates before their functions, at the old state of the cell, and at each bias."""
    with torch._C.DisableTorchFunction():
        i, f, g, o = gates.chunk(4, 1)
        bent = new.tanh()
        at_h = torch.zeros_like(new) if of_h is None else of_h
        at_c = at_h * o * (1 - bent * bent) + (0 if of_c is None else of_c)
        parts = at_c * g * i * (1 - i), at_c * c * f * (1 - f), at_c * i * (1 - g * g), at_h * bent * o * (1 - o)
        found = torch.cat(parts, 1)
        return found, at_c * f, found.sum(0) if has_bias else None


_KERNELS = {
    "_thnn_fused_lstm_cell": _lstm_cell,
    "_thnn_fused_lstm_cell_backward_impl": _lstm_cell_backward,
    "copy_": _copy,
    "_copy_from": _copy_from,
    "convolution_overrideable": _convolution,
    "convolution_backward_overrideable": _convolution_backward,
}
