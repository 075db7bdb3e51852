"""Compress trained PyTorch networks to the smallest file at a given loss, by rate-distortion theory."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from waterfill import errors
from waterfill._version import __version__ as __version__
from waterfill.integrations import hook as _hook

if TYPE_CHECKING:
    from waterfill import bundle, importance, quantize, reproduce, resident, theory, zoo
    from waterfill.compression.api import compress, compress_directory
    from waterfill.compression.bound import bound
    from waterfill.compression.tune import Tune
    from waterfill.evaluation import evaluate
    from waterfill.reading import decompress, load, open
    from waterfill.text import sentence_batches, text_batches

__all__ = [
    "Tune",
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

_FUNCTIONS = {
    "Tune": "waterfill.compression.tune",
    "bound": "waterfill.compression.bound",
    "compress": "waterfill.compression.api",
    "compress_directory": "waterfill.compression.api",
    "decompress": "waterfill.reading",
    "evaluate": "waterfill.evaluation",
    "load": "waterfill.reading",
    "open": "waterfill.reading",
    "sentence_batches": "waterfill.text",
    "text_batches": "waterfill.text",
}
"""The module of every public function and class; all other public names are modules.

No module of this package has the name of a function: its import would put it in the place of the function.
"""


if not TYPE_CHECKING:  # a type checker sees the names above, and reports all others

    def __getattr__(name: str) -> object:
        """Import what a public name stands for when it is first used (PEP 562): `import waterfill` stays light."""
        if name not in __all__:
            raise AttributeError(f"module 'waterfill' has no attribute {name!r}")
        try:
            module = importlib.import_module(_FUNCTIONS.get(name, f"waterfill.{name}"))
        except ModuleNotFoundError as error:
            raise errors.missing_package(error, f"waterfill.{name}") from error
        found = getattr(module, name) if name in _FUNCTIONS else module
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return __all__


_hook.install()
