"""Searches for symbols, one method a file; every result is one of the reconstructions of the format."""

from waterfill.quantize.scalar import Scalar
from waterfill.quantize.vector import Vector

__all__ = ["Scalar", "Vector"]
