"""Tensors that are kept on disk: mapped into memory, read when they are used, and gone with the last reference."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from waterfill.errors import WaterfillError

SHARE = 0.25
"""Of the memory that is available, how much kept data may take."""

USUAL_BYTES = 4 << 30
"""Memory that is taken to be available where the system does not tell."""

SMALLEST = 1 << 16
"""Bytes from which a tensor is worth a file."""

_LIMITS = (("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),)


def budget_bytes() -> int:
    """Bytes of memory that kept data may take now."""
    found = [_available_memory(), *(_room(*files) for files in _LIMITS)]
    return int(SHARE * min((each for each in found if each is not None), default=USUAL_BYTES))


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)


def _room(limit: str, used: str) -> int | None:
    """Bytes that a control group has left; None where it has no limit."""
    try:
        return max(0, int(Path(limit).read_text()) - int(Path(used).read_text()))
    except (OSError, ValueError):
        return None


def spilled(tensor: Tensor) -> Tensor:
    """Write a tensor to a temporary file without a name and map it, of which nothing is left after a kill.

    Small tensors and those that are no plain memory are copied instead.

    Raises:
        WaterfillError: the file cannot be written.
    """
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.nbytes < SMALLEST:
        return tensor.detach().clone()
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(flat.view(torch.uint8).numpy().data)
            file.flush()
            name = f"/dev/fd/{file.fileno()}"  # for PyTorch maps by name
            mapped = torch.from_file(name, shared=False, size=math.prod(tensor.shape), dtype=tensor.dtype)
    except OSError as error:
        raise WaterfillError(
            f"Data that are read once and kept do not fit into memory, nor into {tempfile.gettempdir()} ({error}); "
            "give fewer or smaller batches, or set TMPDIR to a folder with more room."
        ) from error
    return mapped.view(tensor.shape)
