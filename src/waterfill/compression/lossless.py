"""Tensors that are stored without loss, as symbols where that is shorter: masks, small tables, whole numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import zstandard
from torch import Tensor

from waterfill._version import PRODUCER
from waterfill.codec import container
from waterfill.compression.encoder import decoded_matrix
from waterfill.models.arrays import exact_bytes
from waterfill.models.state_dict import CODED_DTYPES, assemble_one
from waterfill.quantize import spread as spreads
from waterfill.quantize.scalar import finish
from waterfill.records import (
    Codebook,
    Coded,
    Entry,
    Exact,
    Floats,
    Inventory,
    Layout,
    Quantized,
    Rule,
    Symbols,
    Uniform,
    Weight,
)

FEWEST_VALUES = 64
"""Smaller tensors are bytes."""

MOST_LEVELS = 256
"""Distinct values of a tensor that has a codebook, at most."""

LOOKED_AT = 1 << 12
"""Values of a tensor that are looked at before all of them are."""

LARGEST_INTEGER = 1 << 24
"""Whole numbers below this are exact in single precision."""

LINE_BYTES = 30
"""What the directory says about a tensor of symbols, about."""


@dataclass(frozen=True, eq=False)
class LosslessTensors:
    """What a file says about the tensors that are stored without loss.

    Attributes:
        entries: of the whole model, as the file has them.
        symbols: of those that are shorter as symbols, by name.
        data: bytes of the others, by name.
        plain: whether files have these bytes as they are, not compressed.
    """

    entries: tuple[Entry, ...]
    symbols: Mapping[str, Quantized]
    data: Mapping[str, bytes]
    plain: bool = False

    @classmethod
    def of(cls, inventory: Inventory, *, plain: bool = False) -> LosslessTensors:
        """Decide for every exact tensor of a model."""
        entries = {entry.name: entry for entry in inventory.entries}
        found = {name: shorter_symbols(entries[name], tensor, plain=plain) for name, tensor in inventory.exact.items()}
        symbols = {name: each for name, each in found.items() if each is not None}
        data = {name: exact_bytes(tensor) for name, tensor in inventory.exact.items() if name not in symbols}
        coded = {name: replace(entries[name], origin=Coded(Layout(entries[name].shape))) for name in symbols}
        return cls(tuple((entries | coded).values()), symbols, data, plain)

    @cached_property
    def packed(self) -> container.Packed:
        """A file of these tensors alone, for their sizes."""
        some = tuple(entry for entry in self.entries if entry.name in self.symbols or entry.name in self.data)
        return container.pack(some, self.symbols, self.data, PRODUCER, plain=self.plain)


def shorter_symbols(entry: Entry, tensor: Tensor, *, plain: bool = False) -> Quantized | None:
    """A tensor as symbols from which every bit of it comes back; None where its bytes in a file are shorter.

    Args:
        entry: of the tensor, with the origin `Exact`.
        tensor: its values, on the CPU.
        plain: whether its bytes would be in the file as they are, not compressed.
    """
    assert isinstance(entry.origin, Exact)
    if tensor.dtype not in CODED_DTYPES or tensor.numel() < FEWEST_VALUES or not bool(tensor.float().isfinite().all()):
        return None
    layout = Layout(entry.shape)
    matrix = layout.to_matrix(tensor.to(torch.float32).numpy())
    weight = Weight(entry.name, matrix, layout)
    candidates = [_coded(weight, symbols, rule) for symbols, rule in _rules(matrix)]
    best = min(candidates, key=lambda each: each.bits, default=None)
    if best is None or not _comes_back(replace(entry, origin=Coded(layout)), tensor, best):
        return None
    data = exact_bytes(tensor)
    if not plain:
        data = zstandard.ZstdCompressor(level=19).compress(data)
    return best if best.bits / 8 + LINE_BYTES < len(data) else None


def _rules(matrix: Floats) -> Iterator[tuple[Symbols, Rule]]:
    """Ways to say the values of a matrix: by a table of them, or as whole numbers."""
    if np.unique(matrix.reshape(-1)[:LOOKED_AT]).size <= MOST_LEVELS:
        values, index = np.unique(matrix, return_inverse=True)
        if values.size <= MOST_LEVELS:
            nearest = int(np.abs(values).argmin())
            yield (index.reshape(matrix.shape) - nearest).astype(np.int32), Codebook(values, -nearest)
    if np.abs(matrix).max() < LARGEST_INTEGER and not (matrix % 1).any():
        offset = int(np.median(matrix))
        yield (matrix - offset).astype(np.int32), Uniform(0, offset)


def _coded(weight: Weight, symbols: Symbols, rule: Rule) -> Quantized:
    return finish(weight, None, symbols, rule, spreads.fit(symbols, weight.layout))


def _comes_back(entry: Entry, tensor: Tensor, quantized: Quantized) -> bool:
    """Whether every bit of a tensor is decoded from symbols."""
    layout = Layout(entry.shape)
    decoded = assemble_one(entry.name, [entry], {entry.name: decoded_matrix(layout, quantized)}, {})
    return exact_bytes(decoded) == exact_bytes(tensor)
