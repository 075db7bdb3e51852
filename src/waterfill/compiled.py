"""Kernels: compiled by numba, and where it is not installed as they are.

Those that read files have the same bits either way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from waterfill.numba_cache import kernel, njit

    HAS_NUMBA = True
except ModuleNotFoundError as missing:
    if missing.name != "numba":
        raise
    HAS_NUMBA = False

    def kernel(function: Callable[..., Any]) -> Any:
        """A function as it is."""
        return function

    def njit(function: Any = None, **_: object) -> Any:  # type: ignore[no-redef]
        """A function as it is, also of a decorator with options."""
        return kernel if function is None else function


__all__ = ["HAS_NUMBA", "kernel", "njit"]
