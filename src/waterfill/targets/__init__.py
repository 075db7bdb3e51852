"""Where decoded pieces of a tensor go."""

from waterfill.targets.device import OnDevice, Stream
from waterfill.targets.matrices import Target, empty, rectangles, target_of

__all__ = ["OnDevice", "Stream", "Target", "empty", "rectangles", "target_of"]
