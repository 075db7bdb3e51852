"""Compile kernels with numba, and keep what was compiled for later processes wherever there is a place for it."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from numba import njit


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function without the interpreter, which other threads may use meanwhile.

    Compiled code is kept beside the source or in the cache of the user, as numba does it; where neither can be written,
    as in a read-only installation without a home, in a temporary folder of this user, and without one nowhere.
    """
    try:
        return _cached(function)
    except RuntimeError:  # numba has found no place
        folder = _private_folder()
    if folder is not None:
        try:
            with _cache_at(folder):
                return _cached(function)
        except RuntimeError:
            pass
    return njit(nogil=True)(function)


def _cached(function: Callable[..., Any]) -> Any:
    return njit(cache=True, nogil=True)(function)


def _private_folder() -> Path | None:
    """A temporary folder that nobody but this user can write: compiled code that is read from it is run."""
    number = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"waterfill-{number}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    mine = not hasattr(os, "getuid") or found.st_uid == number
    return folder if private and mine else None


@contextmanager
def _cache_at(folder: Path) -> Iterator[None]:
    """Let numba keep what is declared meanwhile in a folder; other people's kernels stay where they are."""
    settings: Any = numba.config
    before = settings.CACHE_DIR
    settings.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        settings.CACHE_DIR = before
