"""Readers of NumPy files, plain and xz-compressed, that check what they read and read no more than is asked for."""

from __future__ import annotations

import io
import lzma
import math
import tokenize
import zipfile
import zlib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from waterfill.errors import FormatError

Bytes: TypeAlias = NDArray[np.uint8]

_BLOCK_BYTES = 1 << 20
_KEPT_ARRAYS = 8

# What the decompressors raise, and what NumPy raises where it parses a damaged header as Python.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    tokenize.TokenError,
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


@cache
def read_npz(path: Path, key: str) -> NDArray[Any]:
    """Read one array of a `.npz` file, once in a process.

    Args:
        path: the file.
        key: name of the array.

    Returns:
        The array, read-only.

    Raises:
        FormatError: the file is damaged, no `.npz` file, or has no such array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            keys = sorted(name.removesuffix(".npy") for name in archive.namelist())
            if key not in keys:
                raise FormatError(f"{path} has no array '{key}': expected it beside {keys}.")
            content = io.BytesIO(archive.read(f"{key}.npy"))
        return frozen(npy_format.read_array(content, allow_pickle=False))
    except _DAMAGE as error:
        raise FormatError(f"{path} is damaged or no .npz file ({error}); copy the file again.") from error


@lru_cache(maxsize=_KEPT_ARRAYS)
def read_npy_xz(path: Path, rows: int | None, row_shape: tuple[int, ...]) -> Bytes:
    """Decompress the first rows of an uint8 `.npy.xz` file, once in a process.

    Args:
        path: the file.
        rows: how many rows of the first axis to decompress; None is all.
        row_shape: the shape that one row must have.

    Returns:
        uint8 `[rows, *row_shape]`, read-only; fewer rows where the file has fewer.

    Raises:
        FormatError: the file is damaged, truncated, or holds another kind of array.
    """
    try:
        with lzma.open(path) as stream:
            shape = _uint8_shape(path, cast(BinaryIO, stream))
            if shape[1:] != row_shape:
                raise FormatError(f"{path} has rows of shape {shape[1:]}: expected {row_shape}.")
            wanted = (shape[0] if rows is None else min(rows, shape[0]), *row_shape)
            content = read_at_most(cast(BinaryIO, stream), math.prod(wanted))
    except _DAMAGE as error:
        raise FormatError(f"{path} is damaged or truncated ({error}); copy the file again.") from error
    check_size(path, "bytes of pixels", expected=math.prod(wanted), found=len(content))
    return frozen(np.frombuffer(content, np.uint8).reshape(wanted))


def read_at_most(stream: BinaryIO, size: int) -> bytes:
    """Read from a stream without believing that it has as much as its header says.

    Args:
        stream: where to read.
        size: bytes to read, of any magnitude.

    Returns:
        `size` bytes, or fewer where the stream ends before.
    """
    blocks = []
    while size > 0 and (block := stream.read(min(size, _BLOCK_BYTES))):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


def check_size(path: Path, what: str, expected: int, found: int) -> None:
    """Compare a size with the one that a file should have.

    Args:
        path: the file, for the message.
        what: what was counted, in the plural.
        expected: the right count.
        found: the actual count.

    Raises:
        FormatError: the two differ.
    """
    if found != expected:
        raise FormatError(f"{path} is damaged or truncated: expected {expected} {what}, found {found}; copy it again.")


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array, made read-only because a cache hands it out more than once."""
    array.setflags(write=False)
    return array


def _uint8_shape(path: Path, stream: BinaryIO) -> tuple[int, ...]:
    version = npy_format.read_magic(stream)
    if version != (1, 0):
        raise FormatError(f"{path} has npy version {version}: expected (1, 0); save it again with numpy.save.")
    shape, column_major, dtype = npy_format.read_array_header_1_0(stream)
    if column_major or dtype != np.uint8 or not shape or min(shape) < 0:
        order = "column-major" if column_major else "row-major"
        raise FormatError(f"{path} holds {order} {dtype} of shape {shape}: expected row-major uint8 rows.")
    return shape
