"""Devices that PyTorch computes on, and the kernels of this package for them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch

from waterfill.errors import WaterfillError, first_line

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


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Launch kernels on a device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def side_by_side(device: torch.device) -> Iterator[None]:
    """Launch kernels on a device beside those of other threads: tensors are made and let go inside.

    Raises:
        WaterfillError: the device has no memory for it.
    """
    if device.type != "cuda":
        yield
        return
    try:
        with torch.cuda.device(device), torch.cuda.stream(_own_stream(device)):
            yield
    except torch.cuda.OutOfMemoryError as error:
        raise WaterfillError(
            f"Device {str(device)!r} has no memory left for a search ({first_line(error)}); free some, or leave device "
            "out."
        ) from error


_own = threading.local()


def _own_stream(device: torch.device) -> Any:
    """The stream of this thread on a device."""
    streams = _own.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Launch a kernel, the first time in one thread alone: it is compiled then, which all would do at once otherwise.

    Products are not fused with sums, which would round otherwise than the processor does.

    Args:
        kernel: whose arguments are not specialized, so that constants alone tell its programs.
        grid: how many programs there are on each axis.
        args: its arguments; the first one tells the device.
        constants: its constants, and options of the compiler.

    Raises:
        WaterfillError: it cannot be compiled or run.
    """
    key = id(kernel), args[0].device, *constants.values()
    if key in _compiled:
        kernel[grid](*args, **constants, enable_fp_fusion=False)
        return
    with _COMPILING, _first_launch(args[0].device):
        kernel[grid](*args, **constants, enable_fp_fusion=False)
        _compiled.add(key)


@contextmanager
def _first_launch(device: torch.device) -> Iterator[None]:
    """Say what is missing where a GPU cannot be compiled for: Triton needs a compiler of C, and a GPU that it knows."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        if device.type != "cuda":
            raise
        raise WaterfillError(
            f"Kernels for device {str(device)!r} cannot be compiled ({first_line(error)}); expected a compiler of C "
            "(gcc) and the Triton of this PyTorch. Install them, or leave device out."
        ) from error
