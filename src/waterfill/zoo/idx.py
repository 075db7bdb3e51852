"""Reader of idx files, the format in which MNIST and Fashion-MNIST are published.

An idx file is a big-endian header (two zero bytes, the type 8 for unsigned bytes, the number of axes, one uint32 for
each axis) and the bytes of the array in row-major order; often the whole is gzipped.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from waterfill.errors import FormatError
from waterfill.zoo.arrays import Bytes, check_size, frozen, read_at_most

_UNSIGNED_BYTE = 8


@cache
def read_idx(path: Path, axes: int) -> Bytes:
    """Read an idx file of unsigned bytes, gzipped if its name ends in `.gz`, once in a process.

    Args:
        path: the file.
        axes: the number of axes that the array must have: 3 for images, 1 for labels.

    Returns:
        uint8 array of `axes` axes, read-only.

    Raises:
        FormatError: the header is wrong, or the file is longer or shorter than its header says.
    """
    try:
        with _open(path) as stream:
            shape = _read_header(path, stream, axes)
            expected = math.prod(shape)
            content = read_at_most(stream, expected + 1)
    except (EOFError, zlib.error, OSError) as error:
        raise FormatError(f"{path} is damaged or truncated ({error}); download it again.") from error
    check_size(path, f"bytes after the header for shape {shape}", expected, len(content))
    return cast(Bytes, frozen(np.frombuffer(content, np.uint8).reshape(shape)))


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _read_header(path: Path, stream: BinaryIO, axes: int) -> tuple[int, ...]:
    size = 4 + 4 * axes
    header = stream.read(size)
    expected = bytes([0, 0, _UNSIGNED_BYTE, axes])
    if header[:4] != expected:
        raise FormatError(
            f"{path} is no idx file of unsigned bytes with {axes} axes:"
            f" expected the magic {expected.hex()}, found {header[:4].hex() or 'an empty file'}."
        )
    check_size(path, "bytes of header", size, len(header))
    return struct.unpack(f">{axes}I", header[4:])
