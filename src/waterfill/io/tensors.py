"""Safetensors files from arrays, which may have types that NumPy lacks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from waterfill.atomic import check_destination, write_atomically
from waterfill.errors import WaterfillError
from waterfill.io.arrays import TypedArray
from waterfill.io.shards import FRAMEWORK, NAMES, Planned, file_head, widest_first


def save_arrays(path: str | Path, arrays: Mapping[str, TypedArray], *, force: bool = True) -> None:
    """Write a safetensors file, whole or not at all; arrays that share memory are written each on its own.

    Args:
        path: where to write.
        arrays: by name.
        force: replace a file that exists; otherwise it is refused.

    Raises:
        WaterfillError: one has a type that safetensors does not know, or the file cannot be written.
    """
    path = Path(path)
    check_destination(path, force=force)
    planned = [Planned(name, values.shape, values.dtype) for name, values in arrays.items()]
    for each in planned:
        if each.dtype not in NAMES:
            raise WaterfillError(
                f"Tensor {each.name!r} has the type {each.dtype}, which safetensors does not know; expected "
                "float, integer, boolean or complex64 values. Convert or leave out the tensor."
            )
    ordered = widest_first(planned)
    head, _ = file_head(ordered, FRAMEWORK)
    elements = (arrays[each.name].elements() for each in ordered)
    write_atomically(path, itertools.chain([head], elements), force=force)
