"""A tensor of a checkpoint as the matrices that are coded: experts apart, large tables cut between rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from waterfill.bundle import part_name
from waterfill.models.arrays import dtype_name
from waterfill.models.state_dict import origin_of, weight_of
from waterfill.protocols import QuadraticForm
from waterfill.records import Coded, Entry, Exact, Layout, Weight

LARGEST_SLICE = 1 << 22
"""Values of a matrix that is coded in one piece, about."""


@dataclass(frozen=True, eq=False)
class TensorSlice:
    """One entry of a file: a tensor, or some of its rows.

    Attributes:
        entry: what it is.
        tensor: name of the tensor, or of a matrix of it, of which it is a part.
        weight: its values in normal form; None where it is not coded.
        form: what errors cost; None where that is not known.
        exact: its values where it is stored without loss; None otherwise.
        rows: which rows of the tensor it is.
        reason: why the form is coarser than it could be; usually empty.
        before: the values in the original, where statistics have moved them since; None where they are the same.
    """

    entry: Entry
    tensor: str
    weight: Weight | None = None
    form: QuadraticForm | None = None
    exact: Tensor | None = None
    rows: slice = field(default_factory=lambda: slice(None))
    reason: str = ""
    before: Weight | None = None

    @property
    def original(self) -> Weight | None:
        """The values in the original, of which the source is told; None where the tensor is not coded."""
        return self.before or self.weight


def rows_of_slice(layout: Layout) -> int:
    """How many rows of a matrix are coded in one piece: all of those that are small, transposed, or have taps."""
    rows = layout.shape[0] if layout.shape else 1
    if len(layout.shape) != 2 or layout.transposed or layout.numel <= LARGEST_SLICE:
        return rows
    return -(-rows // -(-layout.numel // LARGEST_SLICE))


@dataclass(frozen=True, eq=False)
class WholeTensor:
    """A tensor of a checkpoint, or a matrix of one, with what is known of it.

    Attributes:
        name: its name.
        values: its values.
        layout: how it is read as a matrix.
        form: what errors cost; None where that is not known.
        kept: why it is stored without loss; empty where it is coded.
        reason: why the form is coarser than it could be; usually empty.
    """

    name: str
    values: Tensor
    layout: Layout
    form: QuadraticForm | None = None
    kept: str = ""
    reason: str = ""

    def slices(self) -> Iterator[TensorSlice]:
        """Cut it into entries, made one by one.

        Raises:
            WaterfillError: a value is NaN or infinite.
        """
        rows = len(self.values) if self.values.ndim else 1
        step = rows_of_slice(self.layout)
        if step >= rows:
            yield self._slice(self.name, self.values, self.layout, slice(None))
            return
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            some = self.values[start:stop]
            yield self._slice(part_name(self.name, start, stop), some, Layout(tuple(some.shape)), slice(start, stop))

    def _slice(self, name: str, values: Tensor, layout: Layout, rows: slice) -> TensorSlice:
        origin = origin_of(name, values, layout)
        if self.kept and isinstance(origin, Coded):
            origin = Exact(self.kept)
        entry = Entry(name, tuple(values.shape), dtype_name(values.dtype), origin)
        if isinstance(origin, Exact):
            return TensorSlice(entry, self.name, exact=values, rows=rows)
        form = self.form if self.form is None or rows == slice(None) else self.form.rows_of(rows)
        weight = weight_of(name, values, layout)
        return TensorSlice(entry, self.name, weight, form, rows=rows, reason=self.reason)
