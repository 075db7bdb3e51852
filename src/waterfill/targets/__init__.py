"""Tensors on a device, which are decoded there."""

from waterfill.targets.device import LaneStream, OnDevice

__all__ = ["LaneStream", "OnDevice"]
