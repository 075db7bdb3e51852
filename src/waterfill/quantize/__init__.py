"""Searches for symbols, one method a file; every result is one of the reconstructions of the format."""

from waterfill.quantize.codebook import KMeans
from waterfill.quantize.feedback import Feedback
from waterfill.quantize.prune import Prune, Threshold
from waterfill.quantize.scalar import Scalar
from waterfill.quantize.trellis import Trellis
from waterfill.quantize.vector import Vector

__all__ = ["Feedback", "KMeans", "Prune", "Scalar", "Threshold", "Trellis", "Vector"]
