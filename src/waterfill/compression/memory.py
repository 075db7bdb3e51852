"""How much memory a compression takes, before it begins."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waterfill.bundle import Checkpoint
from waterfill.compression.block_forward import as_keywords
from waterfill.compression.checkpoint_groups import TensorGroup, groups_of
from waterfill.compression.resumed_pass import BUDGET_BYTES as RESULTS_BYTES
from waterfill.compression.target_correction import BUDGET_BYTES, MOST_POSITIONS
from waterfill.compression.tensor_slices import LARGEST_SLICE
from waterfill.errors import WaterfillError
from waterfill.records import Inventory

DENSE = 7
"""Matrices of a block without experts: query, key, value, output, gate, up and down."""

PROGRAM_BYTES = 500 << 20
"""Of the program and its libraries."""

KERNEL_BYTES = 320 << 20
"""Of kernels, where they are compiled, and libraries that are loaded, beside what there is before a compression."""

CODING_BYTES = 72
"""Of a weight that is being coded, in all arrays of a search together."""

COPIES = 5
"""Of a model in memory in single precision: original, copy, normal form, and symbols of two files."""

PRODUCTS_KEPT = 3
"""Products of the inputs of a matrix that are kept at once: as they were estimated, damped, and to a power."""

PRODUCTS_AT_WORK = 5
"""Further ones of a matrix that is worked on."""

LARGEST_PRODUCT = 16384
"""Inputs of a matrix up to which products are kept."""


@dataclass(frozen=True)
class Memory:
    """Estimated peak of memory, in bytes.

    Attributes:
        program: of the program and its libraries.
        weights: of the weights that are in memory at once, and their compressed twins.
        products: of products of inputs, and what is made of them.
        activations: of hidden states, of all batches of a process; of a model in memory, of what flows through it and
            what is kept of that.
        coding: of the search in the largest tensors.
    """

    program: int
    weights: int
    products: int
    activations: int
    coding: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.program + self.weights + self.products + self.activations + self.coding

    def __str__(self) -> str:
        parts = ("weights", "products", "activations", "coding")
        each = ", ".join(f"{name} {getattr(self, name) / 2**30:.2f}" for name in parts if getattr(self, name))
        return f"about {self.total / 2**30:.2f} GiB of memory ({each})"

    def check(self, what: str, most: int | None) -> None:
        """Check that the estimate is not above what may be used.

        Args:
            what: is compressed.
            most: bytes that may be used; None for any.

        Raises:
            WaterfillError: it is; the text says what takes how much.
        """
        if most is not None and self.total > most:
            raise WaterfillError(
                f"Compressing {what} takes {self}; expected at most {most / 2**30:.2f} GiB (memory). Give more, fewer "
                "or shorter batches, or more processes."
            )


def estimate_memory(directory: str | os.PathLike[str], data: Sequence[Any] | None = None) -> Memory:
    """Estimate the peak of memory of `compress_directory` in one process.

    Args:
        directory: the original.
        data: the calibration batches of that process; None without.
    """
    return directory_memory(Checkpoint(str(directory)), data)


def model_memory(inventory: Inventory, activations: int | None) -> Memory:
    """Estimate the peak of memory of `compress`.

    Args:
        inventory: the tensors of the model.
        activations: bytes of what flows through the model at once, and of gradients there; None without data.
    """
    program = max(PROGRAM_BYTES, held_bytes() + KERNEL_BYTES)
    sizes = [weight.matrix.size for weight in inventory.weights.values()]
    cores = os.cpu_count() or 1
    coding = CODING_BYTES * sum(sorted(sizes)[-cores:])
    weights = 4 * COPIES * sum(sizes)
    if activations is None:
        return Memory(program, weights, 0, 0, coding)
    matrices = [weight.matrix.shape[1] for weight in inventory.weights.values() if not weight.is_vector]
    squares = sorted(size**2 for size in matrices if size <= LARGEST_PRODUCT)
    products = 8 * (PRODUCTS_KEPT * sum(squares) + PRODUCTS_AT_WORK * sum(squares[-cores:]))
    kept = min(BUDGET_BYTES, 4 * MOST_POSITIONS * sum(matrices))
    return Memory(program, weights, products, activations + kept, coding)


def held_bytes() -> int:
    """Bytes of memory that this process has now, with the model and the data; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _experts(checkpoint: Checkpoint, groups: Sequence[TensorGroup]) -> int:
    """About how many matrices of a block read inputs of their own beside those of a dense one."""
    blocks = [group for group in groups if group.block is not None]
    counts = [sum(len(checkpoint.shapes[name]) > 1 for name in group.tensors) for group in blocks]
    shapes = [checkpoint.shapes[name] for group in blocks[:1] for name in group.tensors]
    stacked = [shape[0] for shape in shapes if len(shape) == 3]
    return max(0, max(counts, default=0) - DENSE) + sum(stacked)


def _sides(checkpoint: Checkpoint, group: TensorGroup) -> tuple[int, int]:
    """Rows and columns of all matrices of a group: what comes out of them and goes in at a position."""
    shapes = [shape for name in group.tensors if len(shape := checkpoint.shapes[name]) == 2]
    return sum(shape[0] for shape in shapes), sum(shape[1] for shape in shapes)


def directory_memory(checkpoint: Checkpoint, data: Sequence[Any] | None) -> Memory:
    """Estimate the same of a checkpoint."""
    groups = groups_of(checkpoint.shapes)
    sizes = {group.name: sum(math.prod(checkpoint.shapes[name]) for name in group.tensors) for group in groups}
    blocks = [sizes[group.name] for group in groups if group.block is not None]
    outside = [sizes[group.name] for group in groups if group.block is None]
    cores = os.cpu_count() or 1
    largest = max((math.prod(shape) for shape in checkpoint.shapes.values()), default=0)
    coding = CODING_BYTES * min(cores * min(LARGEST_SLICE, largest), max([*blocks, *outside], default=0))
    symbols = 8 * max([*blocks, *outside], default=0)
    if data is None:
        return Memory(PROGRAM_BYTES, 0, 0, 0, coding + symbols)
    inputs = max(
        (shape[1] for shape in checkpoint.shapes.values() if len(shape) == 2 and shape[1] < 1 << 15), default=0
    )
    width = int(checkpoint.config.get("hidden_size") or checkpoint.config.get("n_embd") or inputs)
    tokens = sum(next(iter(as_keywords(batch).values())).numel() for batch in data)
    sides = [_sides(checkpoint, group) for group in groups if group.block is not None]
    results = min(RESULTS_BYTES, 4 * tokens * max((out for out, _ in sides), default=0))
    recorded = 4 * tokens * max((each for _, each in sides), default=0)
    return Memory(
        PROGRAM_BYTES,
        weights=4 * 3 * (max(blocks, default=0) + sum(outside)) + 16 * max(outside, default=0),
        products=8 * inputs**2 * (5 + cores + 2 * _experts(checkpoint, groups)),
        activations=4 * (len(blocks) + 4) * tokens * width + results + recorded,
        coding=coding + symbols,
    )
