"""A tensor of a checkpoint as the matrices that are coded: experts apart, large tables cut between rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from waterfill.allocate import Job
from waterfill.bundle import part_name
from waterfill.importance.factored import KroneckerForm
from waterfill.importance.forms import DiagonalForm
from waterfill.models.state_dict import dtype_name, origin_of, weight_of
from waterfill.protocols import QuadraticForm, Quantizer
from waterfill.records import Coded, Entry, Exact, Layout, Weight

LARGEST_PART = 1 << 23
"""Values of a matrix that is coded in one piece, about."""


@dataclass(frozen=True)
class Part:
    """One matrix of a tensor.

    Attributes:
        name: of its entry in the file.
        tensor: name of the whole tensor.
        rows: which rows of the tensor, along its first axis; or which index of that axis.
    """

    name: str
    tensor: str
    rows: slice | int


def parts_of(name: str, shape: tuple[int, ...], layout: Layout | None = None) -> list[Part]:
    """The parts of a tensor.

    Args:
        name: its name.
        shape: its shape.
        layout: how it is read; None for its rows as they are.
    """
    if len(shape) == 3 and layout is None:
        return [Part(part_name(name, index), name, index) for index in range(shape[0])]
    size = int(np.prod(shape))
    if len(shape) != 2 or size <= LARGEST_PART or (layout is not None and layout.transposed):
        return [Part(name, name, slice(0, shape[0] if shape else 1))]
    step = -(-shape[0] // -(-size // LARGEST_PART))
    cuts = [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
    return [Part(part_name(name, start, stop), name, slice(start, stop)) for start, stop in cuts]


def entry_of(part: Part, tensor: torch.Tensor, layout: Layout, exclude: str = "") -> Entry:
    """The entry of a part.

    Args:
        part: which.
        tensor: the values of the part.
        layout: of the part.
        exclude: why it is stored without loss; empty where it need not be.
    """
    origin = origin_of(part.name, tensor, layout)
    if exclude and isinstance(origin, Coded):
        origin = Exact(exclude)
    return Entry(part.name, tuple(tensor.shape), dtype_name(tensor.dtype), origin)


def of_part(tensor: torch.Tensor, part: Part) -> torch.Tensor:
    """The values of a part of a tensor."""
    return tensor if tensor.ndim < 2 else tensor[part.rows]


def rows_of(form: QuadraticForm | None, part: Part) -> QuadraticForm | None:
    """The form of some rows of a matrix; transposed ones are never cut."""
    if not isinstance(part.rows, slice) or part.name == part.tensor:
        return form
    if isinstance(form, KroneckerForm):
        return replace(form, rows=form.rows[part.rows])
    return form if form is None else DiagonalForm(form.diagonal()[part.rows])


def weights_of(entries: Mapping[str, Entry], tensors: Mapping[str, torch.Tensor]) -> Iterator[Weight]:
    """The normal forms of all coded entries."""
    for name, entry in entries.items():
        if isinstance(entry.origin, Coded):
            yield weight_of(name, tensors[name], entry.origin.layout)


def jobs_of(weights: Mapping[str, Weight], forms: Mapping[str, QuadraticForm | None], quantizer: Quantizer, vectors: Quantizer) -> dict[str, Job]:
    """What quantizes every weight, and what its errors cost."""
    return {
        name: Job(weight, vectors if weight.is_vector else quantizer, forms.get(name))
        for name, weight in weights.items()
    }
