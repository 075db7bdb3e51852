"""Devices that are asked for by name, and models on them."""

from __future__ import annotations

import os

import torch
from torch import nn

from waterfill.errors import UsageError, first_line
from waterfill.models.cloning import clone

SHARE = 0.5
"""Of the free memory of a device, how much data may take that are kept there while blocks run."""

_ACCELERATORS = ("cuda", "xpu")


def device_name(device: str | torch.device | None) -> str | None:
    """Check a device that was asked for.

    Args:
        device: such as `"cuda"` or `"cuda:1"`; None for none. Without a number it is the current one, or under
            `torchrun` each process on a machine has one of its own, as long as there are as many.

    Returns:
        Its name with its number, such as `"cuda:0"`; None for none.

    Raises:
        UsageError: there is no such device here, or it holds no values.
    """
    if device is None:
        return None
    expected = f"expected one of {', '.join(_devices())}. Name one of these, or leave device out."
    try:
        there = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"Device {str(device)!r} is none that PyTorch knows; {expected}") from error
    try:
        found = torch.empty(1, dtype=torch.float64, device=_of_process(there)).device  # in which sums are
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UsageError(f"Device {str(device)!r} cannot be used ({first_line(error)}); {expected}") from error
    if found.type == "meta":
        raise UsageError(f"Device {str(device)!r} holds no values; {expected}")
    return str(found)


def _of_process(device: torch.device) -> torch.device:
    """A device without a number as that of this process, of those that `torchrun` has started on a machine."""
    rank, module = os.environ.get("LOCAL_RANK"), getattr(torch, device.type, None)
    count = getattr(module, "device_count", None)
    if device.index is not None or rank is None or device.type == "cpu" or count is None or not count():
        return device
    return torch.device(device.type, int(rank) % count())


def _devices() -> list[str]:
    """Names of all devices that there are."""
    found = ["cpu"]
    for kind in dict.fromkeys((*_ACCELERATORS, torch._C._get_privateuse1_backend_name())):
        module = getattr(torch, kind, None)
        if module is not None and module.is_available():
            found += [f"{kind}:{number}" for number in range(module.device_count())]
    return found


def name_of(tensor: torch.Tensor) -> str | None:
    """Name of the device of a tensor; None for the CPU."""
    return None if tensor.device.type == "cpu" else str(tensor.device)


def has_room(device: torch.device, size_bytes: int) -> bool:
    """Whether data that stay for long take no more than their share of the memory that is free on a device.

    Args:
        device: the CPU, and a device that does not tell, have room for everything.
        size_bytes: of the data.
    """
    ask = getattr(getattr(torch, device.type, None), "mem_get_info", None)
    return ask is None or size_bytes <= SHARE * ask(device)[0]


def model_on(model: nn.Module, device: str | None) -> nn.Module:
    """The model where it is to compute.

    Args:
        model: the network; it is left where it is.
        device: a name by `device_name`; None for where the model is.

    Returns:
        The model itself where all of it is there, or a copy there.

    Raises:
        UnsupportedModelError: the model cannot be copied.
    """
    if device is None:
        return model
    there = torch.device(device)
    if all(tensor.device == there for tensor in (*model.parameters(), *model.buffers())):
        return model
    return clone(model, there)
