"""Make `from_pretrained` of transformers read compressed directories, whichever of the two is imported first."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Sequence
from types import ModuleType

REGISTRY = "transformers.quantizers.auto"
"""The module of transformers in which quantizers are registered."""


_LOCK = threading.RLock()


def install() -> None:
    """Register with transformers: at once where it is loaded, otherwise when it is; nothing is imported here.

    It may be called any number of times, from any thread.
    """
    with _LOCK:
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
    if REGISTRY in sys.modules:
        _register(importlib.import_module(REGISTRY))  # which waits, where another thread is importing it


def register() -> None:
    """Register with transformers, which is imported for it; a second time nothing happens.

    Raises:
        ImportError: transformers is not installed, or too old.
    """
    if not _register(importlib.import_module(REGISTRY)):
        raise ImportError("transformers is too old; expected version 5")


def _register(registry: ModuleType) -> bool:
    """Register unless it is done; False with a version of transformers that loads weights in another way."""
    from waterfill.models.conversion import RULES  # with torch, which transformers imports as well

    with _LOCK:
        if importlib.util.find_spec(RULES) is None:
            return False
        if "waterfill" in registry.AUTO_QUANTIZER_MAPPING:
            return True
        from waterfill.integrations.quantizer import config_class, quantizer_class

        registry.register_quantization_config("waterfill")(config_class())
        registry.register_quantizer("waterfill")(quantizer_class())
        return True


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the registry as others do, with a loader that registers after it has run."""

    def __init__(self) -> None:
        self._thread = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec that other finders have for the registry; None for all other modules."""
        del path, target
        if fullname != REGISTRY or getattr(self._thread, "searching", False):
            return None
        self._thread.searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._thread.searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """A loader that registers waterfill after the module has run."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """As the other loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As the other loader does; then register."""
        self._loader.exec_module(module)
        _register(module)
