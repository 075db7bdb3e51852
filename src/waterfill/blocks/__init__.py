"""Models that do not fit into memory: compressed block by block, as directories."""

from waterfill.blocks.directory import compress_directory

__all__ = ["compress_directory"]
