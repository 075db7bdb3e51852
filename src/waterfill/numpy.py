"""Read what waterfill wrote into arrays of NumPy; neither PyTorch nor a compiler is needed.

Types that NumPy lacks become those that have all their values: bfloat16 and floats of 8 bits float32, complex32
complex64.

Example:
    >>> from waterfill.numpy import load_file
    >>> weights = load_file("model.wf")  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from waterfill.file_system import is_folder
from waterfill.io.arrays import TypedArray
from waterfill.io.directory import ArrayDirectory
from waterfill.io.file import ArrayFile

__all__ = ["load", "load_file"]


def load_file(path: str | Path, *, threads: int | None = None, max_bytes: int | None = None) -> dict[str, NDArray[Any]]:
    """All tensors of a file or of a compressed directory by name; tied ones are one array.

    Everything is checked before anything is decoded.

    Args:
        path: the file or the directory.
        threads: how many threads decode; by default as many as there are processors.
        max_bytes: most bytes that the tensors may take when decoded; by default any number.

    Raises:
        FormatError: it cannot be read, is damaged, is nothing that waterfill wrote, or takes too many bytes.
    """
    if is_folder(Path(path)):
        with ArrayDirectory(path, threads=threads, max_bytes=max_bytes) as directory:
            directory.fetch()
            return _numbers(dict(directory.tensors()))
    with ArrayFile(path, threads=threads, max_bytes=max_bytes) as file:
        file.fetch()
        return _numbers(dict(file.tensors()))


def load(data: bytes, *, threads: int | None = None, max_bytes: int | None = None) -> dict[str, NDArray[Any]]:
    """The same of the bytes of a file.

    Raises:
        FormatError: they are damaged, no such file, or take too many bytes.
    """
    with ArrayFile(data, threads=threads, max_bytes=max_bytes) as file:
        file.fetch()
        return _numbers(dict(file.tensors()))


def _numbers(tensors: dict[str, TypedArray]) -> dict[str, NDArray[Any]]:
    """The values of arrays; those of tied ones are one."""
    found = {id(values): values.numbers() for values in tensors.values()}
    return {name: found[id(values)] for name, values in tensors.items()}
