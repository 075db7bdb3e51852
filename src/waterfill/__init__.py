"""Compress trained PyTorch networks to the smallest file at a given loss, by rate-distortion theory."""

from __future__ import annotations

import importlib
from typing import Any

from waterfill import errors
from waterfill._version import __version__ as __version__
from waterfill.compression.api import compress
from waterfill.compression.bound import bound
from waterfill.compression.directory import compress_directory
from waterfill.evaluate import evaluate
from waterfill.integrations import hook as _hook
from waterfill.reading import decompress, load, open
from waterfill.text import sentence_batches, text_batches

__all__ = [
    "bound",
    "bundle",
    "compress",
    "compress_directory",
    "decompress",
    "errors",
    "evaluate",
    "importance",
    "load",
    "open",
    "quantize",
    "reproduce",
    "resident",
    "sentence_batches",
    "text_batches",
    "theory",
    "zoo",
]


def __getattr__(name: str) -> Any:
    """Import a subpackage on first use, so that `import waterfill` stays fast (PEP 562)."""
    if name in __all__:
        return importlib.import_module(f"waterfill.{name}")
    raise AttributeError(f"module 'waterfill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


_hook.install()
