"""Tensors as arrays of NumPy and back, without a copy; types that NumPy lacks as their bits."""

from __future__ import annotations

import torch
from torch import Tensor

from waterfill.io.arrays import STORAGE, TypedArray


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a type without its prefix, such as `float32`."""
    return str(dtype).removeprefix("torch.")


def tensor_of(values: TypedArray) -> Tensor:
    """A tensor with the memory of an array."""
    return torch.from_numpy(values.array).view(getattr(torch, values.dtype))


def array_of(tensor: Tensor) -> TypedArray:
    """An array with the memory of a tensor on the processor."""
    dtype = dtype_name(tensor.dtype)
    bits = getattr(torch, STORAGE[dtype].name)
    return TypedArray(dtype, tensor.detach().view(bits).numpy())


def exact_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor on any device: its elements in row-major order, little-endian."""
    return bytes(array_of(tensor.detach().cpu().contiguous()).elements())
