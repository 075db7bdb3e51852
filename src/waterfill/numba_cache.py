"""Compile kernels with numba, and keep what was compiled for later processes wherever there is a place for it."""

from __future__ import annotations

import functools
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from numba import njit as njit
from numba.core.caching import FunctionCache, IndexDataCacheFile


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
    compiled: Any = njit(nogil=True)(function)
    compiled._cache = KernelCache(function)
    return compiled


class KernelCache(FunctionCache):
    """Compiled code of a kernel, as old as the youngest of all files with kernels.

    Kernels call those of other files, whose code is part of theirs; numba looks only at the file of each.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Look for a place; a RuntimeError where there is none."""
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp(), sources_stamp()
        self._cache_file = _Index(self._cache_path, self._impl.filename_base, stamp)


class _Index(IndexDataCacheFile):
    """Which code of a kernel is kept where."""

    def _load_index(self) -> Any:
        try:
            return super()._load_index()
        except Exception:  # noqa: BLE001 (what an older version kept names classes that are no more)
            return {}


@functools.cache
def sources_stamp() -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of all files of the package that have kernels."""
    root = Path(__file__).parent
    found = sorted(root.rglob("*kernels.py")) + sorted(root.rglob("*vectors.py"))
    return tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in found)


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
