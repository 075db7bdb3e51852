"""What `lane_vectors` does, for a reader without numba: lanes are decoded one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH = 8
"""Lanes of a vector."""


def supported() -> bool:
    """Whether eight lanes are decoded at once."""
    return False


def look_up(entries: NDArray[Any], sums: NDArray[Any], part: int, now: NDArray[Any], start: int) -> None:
    """Read `entries[sums[l] + part]` of the lanes from `start` on into `now`."""
    lanes = slice(start, start + WIDTH)
    now[lanes] = entries[sums[lanes] + np.int32(part)]


def decode_group(*_: object) -> tuple[int, bool]:
    """Is not called."""
    raise AssertionError("there are no vectors")


def fill_square(*_: object) -> bool:
    """Leave a square to be filled value by value."""
    return True
