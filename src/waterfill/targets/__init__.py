"""Where decoded pieces of a tensor go."""

from waterfill.targets.device import LaneStream, OnDevice
from waterfill.targets.matrices import Target, empty, rectangles, target_of

__all__ = ["LaneStream", "OnDevice", "Target", "empty", "rectangles", "target_of"]
