"""Results as bytes and back: a closed set of records, arrays and plain values, with a checksum; never a pickle."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from waterfill.errors import UsageError
from waterfill.importance.factored import KroneckerForm, UnfactoredForm
from waterfill.importance.forms import DiagonalForm, DrawnForm, DrawnQuarticForm, QuarticForm
from waterfill.records import (
    Adaptive,
    Codebook,
    Cosines,
    Flips,
    Lanes,
    Layout,
    Paths,
    Quantized,
    Relative,
    Rotations,
    Spread,
    Table,
    Uniform,
    Weight,
)

RECORDS: Mapping[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *(Quantized, Uniform, Relative, Codebook, Spread, Paths, Lanes, Table, Adaptive, Weight, Layout),
        *(Cosines, Flips, Rotations),
        *(DiagonalForm, DrawnForm, QuarticForm, DrawnQuarticForm, KroneckerForm, UnfactoredForm),
    )
}
"""Every class whose objects can be kept, by name."""

LEVEL = 1
"""Of zstandard: how hard it tries."""

CHECK_BYTES = 32
_ARRAY, _RECORD = 1, 2
_LARGEST = 2**32 - 2**20


class Unstorable(UsageError):
    """A result has something in it that cannot be kept."""


def pack(value: Any) -> bytes:
    """Bytes of a value: compressed MessagePack, arrays and records as its extensions.

    Args:
        value: plain values, arrays, records of `RECORDS`, and dicts with texts as keys, lists and tuples of these.

    Raises:
        Unstorable: it is something else.
    """
    return zstandard.ZstdCompressor(level=LEVEL).compress(_encode(value))


def unpack(data: bytes) -> Any:
    """The value again; lists and tuples are tuples, whole numbers as wide as they were.

    Raises:
        ValueError: the bytes are no such value.
    """
    try:
        return _decode(zstandard.ZstdDecompressor().decompress(data))
    except (zstandard.ZstdError, msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def seal(data: bytes, key: str) -> list[bytes]:
    """Parts of a file: a checksum of key and data, then the data."""
    return [_checksum(data, key), data]


def unseal(file: bytes, key: str) -> bytes | None:
    """The data of a file; None where it is damaged or of another key."""
    check, data = file[:CHECK_BYTES], file[CHECK_BYTES:]
    return data if check == _checksum(data, key) else None


def _checksum(data: bytes, key: str) -> bytes:
    return hashlib.sha256(key.encode() + data).digest()


def _encode(value: Any) -> bytes:
    return msgspec.msgpack.encode(_plain(value))


def _decode(data: bytes) -> Any:
    return _tuples(msgspec.msgpack.decode(data, ext_hook=_extension))


def _plain(value: Any) -> Any:
    """What MessagePack can say."""
    if isinstance(value, np.generic):
        return _plain(value.item())
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, np.ndarray):
        return msgspec.msgpack.Ext(_ARRAY, _array(value))
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [_plain(item) for item in value]
    if RECORDS.get(type(value).__name__) is type(value):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return msgspec.msgpack.Ext(_RECORD, _encode([type(value).__name__, *fields]))
    raise Unstorable(
        f"A result of type {type(value).__name__} cannot be kept in a work folder; expected numbers, texts, "
        f"NumPy arrays, dicts and lists of these, or {', '.join(RECORDS)}."
    )


def _array(values: NDArray[Any]) -> bytes:
    """Type, order of the axes in memory, shape, narrowest type that holds the values, and these."""
    if values.dtype.kind not in "biufc" or values.nbytes > _LARGEST:
        raise Unstorable(
            f"An array of {values.nbytes} bytes of type {values.dtype} cannot be kept in a work folder; expected "
            "numbers, less than 4 GiB."
        )
    axes = sorted(range(values.ndim), key=lambda axis: -abs(values.strides[axis]))
    dense = np.ascontiguousarray(_narrow(values).transpose(axes)).reshape([values.shape[axis] for axis in axes])
    return _encode([values.dtype.str, axes, list(dense.shape), dense.dtype.str, dense.tobytes()])


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers in the narrowest type that holds them all: symbols are small."""
    if values.dtype.kind == "i" and values.size:
        low, high = int(values.min()), int(values.max())
        for kind in (np.int8, np.int16, np.int32):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return values.astype(kind)
    return values


def _extension(code: int, data: memoryview) -> Any:
    fields = _decode(bytes(data))
    if code == _RECORD:
        name, *values = fields
        names = [field.name for field in dataclasses.fields(RECORDS[name])]
        return RECORDS[name](**dict(zip(names, values, strict=True)))
    if code != _ARRAY:
        raise ValueError(f"unknown extension {code}")
    kind, axes, shape, stored, values = fields
    dense = np.frombuffer(values, np.dtype(stored)).astype(np.dtype(kind)).reshape(shape)
    return dense.transpose(np.argsort(axes)) if len(axes) else dense


def _tuples(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
