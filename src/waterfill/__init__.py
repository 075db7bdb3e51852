"""Compress trained PyTorch networks to the smallest file at a given loss, by rate-distortion theory."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "compress": "waterfill.compress",
    "decompress": "waterfill.files",
    "load": "waterfill.files",
    "open": "waterfill.files",
    "evaluate": "waterfill.evaluate",
}
_MODULES = ("calibrate", "codec", "errors", "importance", "models", "quantize", "records", "zoo")

__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import waterfill` stays fast (PEP 562)."""
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"waterfill.{name}")
    else:
        raise AttributeError(f"module 'waterfill' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
