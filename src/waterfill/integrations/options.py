"""How a directory is loaded, beyond what `from_pretrained` of transformers takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Options:
    """How a directory is loaded, beyond what `from_pretrained` takes.

    Attributes:
        resident: leave the weights of blocks compressed.
        cache_bytes: how many bytes of their decoded weights may stay; None for the default.
        device: where parameters go as they are decoded; None where `from_pretrained` says it.
        threads: how many threads decode; None for as many as there are processors.
    """

    resident: bool = False
    cache_bytes: int | None = None
    device: torch.device | None = None
    threads: int | None = None


_OPTIONS: ContextVar[Options | None] = ContextVar("waterfill_options", default=None)


@contextlib.contextmanager
def options(chosen: Options) -> Iterator[None]:
    """Load so within the block, in this thread."""
    token = _OPTIONS.set(chosen)
    try:
        yield
    finally:
        _OPTIONS.reset(token)


def current() -> Options:
    """How this thread loads at the moment."""
    return _OPTIONS.get() or Options()
