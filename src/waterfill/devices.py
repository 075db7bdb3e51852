"""Devices that PyTorch computes on, and the kernels of this package for them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def active(device: torch.device) -> AbstractContextManager[object]:
    """Launch kernels on a device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
