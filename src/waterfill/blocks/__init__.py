"""Models that do not fit into memory: compressed block by block, as directories."""

from waterfill.blocks.directory import compress_directory
from waterfill.blocks.memory import Memory, estimate_memory

__all__ = ["Memory", "compress_directory", "estimate_memory"]
