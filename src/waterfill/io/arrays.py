"""Tensors of every type as arrays of NumPy, which has no bfloat16 and no floats of 8 bits: their bits are there."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waterfill.errors import FormatError
from waterfill.records import Entry, Floats

STORAGE: dict[str, np.dtype[Any]] = {
    **{
        name: np.dtype(name)
        for name in (
            "float64", "float32", "float16", "complex64", "complex128", "int8", "int16", "int32", "int64", "uint8",
            "uint16", "uint32", "uint64", "bool",
        )
    },
    "bfloat16": np.dtype("uint16"),
    "complex32": np.dtype("uint32"),
    **dict.fromkeys(
        ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), np.dtype("uint8")
    ),
}  # fmt: skip
"""What holds the elements of a type, by the name that PyTorch has for it: of one that NumPy lacks, their bits."""

LARGEST = {
    "float64": float(np.finfo(np.float32).max),
    "float32": float(np.finfo(np.float32).max),
    "float16": float(np.finfo(np.float16).max),
    "bfloat16": (2 - 2**-7) * 2.0**127,
}
"""The largest value that a decoded tensor has, of every type with coded values; what is beyond becomes it."""

MAPPED = 1 << 20
"""Bytes from which on an array is a mapping of its own."""

BAND = 1 << 15
"""Values that are rounded at a time, so that they stay in the cache."""


@dataclass(frozen=True, eq=False)
class TypedArray:
    """A tensor: its type, and an array of its shape with what `STORAGE` has for that.

    Attributes:
        dtype: the type, by the name that PyTorch has for it.
        array: the elements, or their bits.
    """

    dtype: str
    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.array.shape

    def __getitem__(self, key: int | slice) -> TypedArray:
        """A view of some rows."""
        return TypedArray(self.dtype, np.asarray(self.array[key]))

    def numbers(self) -> NDArray[Any]:
        """The values in a type of NumPy: of bfloat16 and of floats of 8 bits as float32, of complex32 as complex64."""
        if self.dtype == "bfloat16":
            wide: Floats = (self.array.astype(np.uint32) << 16).view(np.float32)
            return wide
        if self.dtype == "complex32":
            halves = np.ascontiguousarray(self.array)[..., None].view(np.float16)
            pairs: NDArray[Any] = halves.astype(np.float32).view(np.complex64)[..., 0]
            return pairs
        if self.dtype.startswith("float8"):
            found: Floats = _eight_bits(self.dtype)[self.array]
            return found
        return self.array

    def elements(self) -> memoryview:
        """The bytes of the elements in row-major order, little-endian, without a copy where they lie so."""
        ordered = np.ascontiguousarray(self.array, self.array.dtype.newbyteorder("<"))
        return ordered.reshape(-1).view(np.uint8).data


def _eight_bits(dtype: str) -> Floats:
    """The values of all 256 patterns of a type of 8 bits."""
    pattern = np.arange(256)
    if dtype == "float8_e8m0fnu":
        return np.where(pattern == 255, np.nan, np.ldexp(1.0, pattern - 127)).astype(np.float32)
    mantissa = 3 if "e4m3" in dtype else 2
    bias = (1 << (6 - mantissa)) - 1 + dtype.endswith("uz")
    exponent, rest = (pattern & 127) >> mantissa, pattern & ((1 << mantissa) - 1)
    size = np.where(
        exponent == 0, np.ldexp(rest, 1 - bias - mantissa), np.ldexp(rest + (1 << mantissa), exponent - bias - mantissa)
    )
    values: Floats = np.where(pattern < 128, size, -size).astype(np.float32)
    if dtype.endswith("uz"):  # there is one NaN in the place of -0
        values[128] = np.nan
    elif dtype == "float8_e4m3fn":
        values[[127, 255]] = np.nan
    else:
        top = exponent == (1 << (7 - mantissa)) - 1
        values[top & (rest == 0)] *= np.inf
        values[top & (rest > 0)] = np.nan
    return values


def empty(shape: tuple[int, ...], dtype: str) -> TypedArray:
    """An array without values; a large one is a mapping of its own.

    The system has that back as soon as nobody has the array. What is freed on a heap stays with the process: blocks
    that come and go would leave there several times what they take.

    Raises:
        MemoryError: it does not fit into memory.
    """
    storage = STORAGE[dtype]
    size = math.prod(shape) * storage.itemsize
    if size < MAPPED:
        return TypedArray(dtype, np.empty(shape, storage))
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    try:
        mapping = mmap.mmap(-1, size, **private)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"a tensor {list(shape)} of {size} bytes does not fit into memory") from error
    with contextlib.suppress(AttributeError, OSError):  # large pages are of Linux, and may be turned off
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return TypedArray(dtype, np.frombuffer(mapping, storage).reshape(shape))


def exact_array(entry: Entry, data: bytes) -> TypedArray:
    """A tensor that is stored without loss.

    Args:
        entry: says its type and shape.
        data: its elements in row-major order, little-endian.

    Raises:
        FormatError: bytes of a bool tensor are neither 0 nor 1.
    """
    storage = STORAGE[entry.dtype]
    if entry.dtype == "bool" and (np.frombuffer(data, np.uint8) > 1).any():
        raise FormatError(f"tensor {entry.name!r} of type bool has other bytes than 0 and 1")
    found = np.frombuffer(bytearray(data), storage.newbyteorder("<")).astype(storage, copy=False)
    return TypedArray(entry.dtype, found.reshape(entry.shape))


# Rounding


def rounded(values: NDArray[np.float64] | Floats, entry: Entry) -> TypedArray:
    """Values rounded to float32 and then to the type of an entry; what is too large becomes the largest value.

    An array of float32 that needs no rounding may be the values themselves.
    """
    limit = LARGEST[entry.dtype]
    small = values.size and values.flags.writeable and -limit <= values.min() and values.max() <= limit
    clipped = np.asarray(values if small else np.clip(values, -limit, limit), np.float32).reshape(entry.shape)
    if entry.dtype == "float32":
        return TypedArray("float32", clipped)
    found = empty(entry.shape, entry.dtype)
    round_into(clipped, found.array, entry.dtype)
    return found


def round_into(values: Floats, out: NDArray[Any], dtype: str) -> None:
    """Round values of any shape to the nearest of a type, to even; none is too large for it.

    Args:
        values: float32, in any order of axes.
        out: of the same shape and order, with the storage of the type.
        dtype: one with coded values.
    """
    if dtype != "bfloat16":
        out[...] = values
        return
    if values.ndim == 2 and values.strides[0] < values.strides[1]:  # the lines are columns
        values, out = values.T, out.T
    lines, places = (values.reshape(1, -1), out.reshape(1, -1)) if values.ndim < 2 else (values, out)
    step = max(1, BAND // max(1, math.prod(lines.shape[1:])))
    for at in range(0, len(lines), step):
        _to_bfloat16(lines[at : at + step], places[at : at + step])


def _to_bfloat16(values: Floats, out: NDArray[np.uint16]) -> None:
    bits = values.view(np.uint32) if values.flags.c_contiguous else np.ascontiguousarray(values).view(np.uint32)
    found = bits >> 16
    found &= 1
    found += 0x7FFF
    found += bits
    found >>= 16
    out[...] = found
    missing = np.isnan(values)
    if missing.any():
        out[missing] = 0x7FC0
