"""The version of the package, and how the files that it writes name their producer."""

__version__ = "0.1.0"

PRODUCER = f"waterfill {__version__}"
"""The producer that is written into files, directories and results."""
