"""Devices that PyTorch computes on, and the kernels of this package for them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch

_COMPILING = threading.Lock()
_compiled: set[tuple[object, ...]] = set()


def has_kernels(device: str | torch.device | None) -> bool:
    """Whether paths are searched and decoded on a device: on GPUs of CUDA, with the Triton that their PyTorch brings.

    Elsewhere the processor does it, with the same results.
    """
    return device is not None and torch.device(device).type == "cuda" and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def active(device: torch.device) -> AbstractContextManager[object]:
    """Launch kernels on a device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def side_by_side(device: torch.device) -> Iterator[None]:
    """Launch kernels on a device beside those of other threads: tensors are made and let go inside."""
    if device.type != "cuda":
        yield
        return
    own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.device(device), torch.cuda.stream(own):
        yield


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Launch a kernel, the first time in one thread alone: it is compiled then, which all would do at once otherwise.

    Products are not fused with sums, which would round otherwise than the processor does.

    Args:
        kernel: whose arguments are not specialized, so that constants alone tell its programs.
        grid: how many programs there are on each axis.
        args: its arguments; the first one tells the device.
        constants: its constants, and options of the compiler.
    """
    key = id(kernel), args[0].device, *constants.values()
    if key in _compiled:
        kernel[grid](*args, **constants, enable_fp_fusion=False)
        return
    with _COMPILING:
        kernel[grid](*args, **constants, enable_fp_fusion=False)
        _compiled.add(key)
