"""A tensor of a checkpoint as the matrices that are coded: experts apart, large tables cut between rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from waterfill.bundle import part_name
from waterfill.models.state_dict import dtype_name, origin_of, weight_of
from waterfill.protocols import QuadraticForm
from waterfill.records import Coded, Entry, Exact, Layout, Weight

LARGEST_PART = 1 << 22
"""Values of a matrix that is coded in one piece, about."""


@dataclass(frozen=True, eq=False)
class Part:
    """One entry of a file: a tensor, or some of its rows.

    Attributes:
        entry: what it is.
        tensor: name of the tensor, or of a matrix of it, of which it is a part.
        weight: its values in normal form; None where it is stored without loss.
        rows: which rows of the tensor it is.
        form: what errors cost; None where that is not known.
    """

    entry: Entry
    tensor: str
    weight: Weight | None
    rows: slice
    form: QuadraticForm | None


def parts_of(name: str, tensor: Tensor, layout: Layout, form: QuadraticForm | None, why: str = "") -> Iterator[Part]:
    """The parts of a tensor, or of a matrix of one, made one by one.

    Args:
        name: its name.
        tensor: its values.
        layout: how it is read.
        form: what errors cost.
        why: reason for storing it without loss; empty for none.

    Raises:
        WaterfillError: a value is NaN or infinite.
    """
    cuts = [(0, len(tensor) if tensor.ndim else 1)]
    if tensor.ndim == 2 and not layout.transposed and tensor.numel() > LARGEST_PART:
        step = -(-len(tensor) // -(-tensor.numel() // LARGEST_PART))
        cuts = [(start, min(start + step, len(tensor))) for start in range(0, len(tensor), step)]
    for cut in cuts:
        yield _part(name, tensor, layout, form, why, slice(*cut) if len(cuts) > 1 else None)


def _part(whole: str, tensor: Tensor, layout: Layout, form: QuadraticForm | None, why: str, rows: slice | None) -> Part:
    name = whole
    if rows is not None:
        name, tensor = part_name(whole, rows.start, rows.stop), tensor[rows]
        form = None if form is None else form.rows_of(rows)
        layout = Layout(tuple(tensor.shape))
    origin = origin_of(name, tensor, layout)
    origin = Exact(why) if why and isinstance(origin, Coded) else origin
    entry = Entry(name, tuple(tensor.shape), dtype_name(tensor.dtype), origin)
    weight = weight_of(name, tensor, layout) if isinstance(origin, Coded) else None
    return Part(entry, whole, weight, rows or slice(None), form)
