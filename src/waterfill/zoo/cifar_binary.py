"""Reader of the binary versions of CIFAR-10 and CIFAR-100.

A file is a row of records: one label byte (CIFAR-10) or a coarse and a fine label byte (CIFAR-100), then 3,072 pixels,
1,024 of each of red, green and blue, each plane in row-major order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from waterfill.errors import FormatError
from waterfill.zoo.arrays import Bytes, frozen
from waterfill.zoo.batches import Labelled

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class RecordLayout:
    """What precedes the pixels of a record.

    Attributes:
        label_bytes: number of label bytes; the last of them is the label.
        classes: number of classes; a label is less.
    """

    label_bytes: int
    classes: int

    @property
    def size_bytes(self) -> int:
        """Bytes of a record."""
        return self.label_bytes + _PIXELS


CIFAR10_LAYOUT = RecordLayout(label_bytes=1, classes=10)
CIFAR100_LAYOUT = RecordLayout(label_bytes=2, classes=100)


def read_cifar_binary(paths: Sequence[Path], layout: RecordLayout, samples: int | None = None) -> Labelled:
    """Read consecutive files of records, and no more files than needed.

    Args:
        paths: the files in order, at least one.
        layout: layout of their records.
        samples: how many records are wanted; None is all.

    Returns:
        Images uint8 `[n, 32, 32, 3]`, RGB, and labels uint8 `[n]`; n is at least `samples` where there are that many.

    Raises:
        FormatError: a file is truncated or holds something else.
        OSError: a file cannot be read.
    """
    parts: list[Bytes] = []
    for path in paths:
        if samples is not None and sum(map(len, parts)) >= samples:
            break
        parts.append(_read_records(path, layout))
    records = np.concatenate(parts)
    planes = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
    return Labelled(planes.transpose(0, 2, 3, 1), records[:, layout.label_bytes - 1], str(paths[0].parent))


@cache
def _read_records(path: Path, layout: RecordLayout) -> Bytes:
    """Read one file into uint8 `[records, size_bytes]`."""
    content = path.read_bytes()
    records, rest = divmod(len(content), layout.size_bytes)
    if rest or not records:
        raise FormatError(
            f"{path} is damaged or truncated: expected whole records of {layout.size_bytes} bytes,"
            f" found {len(content)} bytes, {records} records and {rest} bytes; download it again."
        )
    table = np.frombuffer(content, np.uint8).reshape(records, layout.size_bytes)
    largest = table[:, layout.label_bytes - 1].max()
    if largest >= layout.classes:
        raise FormatError(
            f"{path} has the label {largest}: expected labels below {layout.classes};"
            " it is no binary batch of this data set."
        )
    return frozen(table)
