"""A weight that is quantized at several levels: what does not depend on the level is kept, and bits are forecast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

from waterfill.codec.scales import side_bits
from waterfill.errors import UsageError
from waterfill.protocols import QuadraticForm, Quantizer
from waterfill.records import NO_SCALES, Layout, Quantized, Uniform, Weight

SAMPLE, FEWEST_ROWS = 1 << 16, 128
"""Bits are forecast from about so many weights, and from so many rows where there are more, for columns go together."""


@runtime_checkable
class Preparing(Protocol):
    """A quantizer that can keep what it works out for a weight, and has a quicker one for drafts."""

    def prepared(self, weight: Weight, form: QuadraticForm | None) -> Quantizer:
        """A quantizer of this weight under this form alone, with the same results, which may be used again and again.

        Args:
            weight: matrix [out, in].
            form: what an error costs; None for 1 everywhere.
        """
        ...

    def draft(self) -> Quantizer:
        """A quicker quantizer that takes nearly the same bits."""
        ...


def draft_of(quantizer: Quantizer) -> Quantizer:
    """A quicker quantizer that takes nearly the same bits; the quantizer itself where it has none."""
    return quantizer.draft() if isinstance(quantizer, Preparing) else quantizer


@dataclass(frozen=True, eq=False)
class Prepared:
    """A weight under a form, ready to be quantized at any level.

    The results are those of the quantizer, whatever levels were asked for before.

    Attributes:
        quantizer: of the weight.
        weight: matrix [out, in].
        form: what an error costs; None for 1 everywhere.
    """

    quantizer: Quantizer
    weight: Weight
    form: QuadraticForm | None

    def quantize(self, water_level: float) -> Quantized:
        """Quantize the weight.

        Args:
            water_level: mean cost of an error per weight.
        """
        return self._of_weight.quantize(self.weight, self.form, water_level)

    def estimate_bits(self, water_level: float) -> float:
        """Forecast the bits of `quantize` from some of the rows, within a few per cent.

        Args:
            water_level: mean cost of an error per weight.
        """
        draft, weight, form = self._sample
        item = draft.quantize(weight, form, water_level)
        of_columns = _bits_of_columns(item)
        return len(self.weight.matrix) / max(1, len(weight.matrix)) * (item.bits - of_columns) + of_columns

    @cached_property
    def _of_weight(self) -> Quantizer:
        return _prepared(self.quantizer, self.weight, self.form)

    @cached_property
    def _sample(self) -> tuple[Quantizer, Weight, QuadraticForm | None]:
        """A draft of the quantizer, and some rows of the weight with their form."""
        draft = draft_of(self.quantizer)
        weight, form = _some_rows(self.weight, self.form)
        return _prepared(draft, weight, form), weight, form


def _prepared(quantizer: Quantizer, weight: Weight, form: QuadraticForm | None) -> Quantizer:
    return quantizer.prepared(weight, form) if isinstance(quantizer, Preparing) else quantizer


def _some_rows(weight: Weight, form: QuadraticForm | None) -> tuple[Weight, QuadraticForm | None]:
    """Rows at equal distances; all of them where a form cannot do with some, or they are not alike."""
    _, channels, taps = weight.layout.axes
    every = int(len(weight.matrix) / max(FEWEST_ROWS, SAMPLE // max(1, channels * taps)))
    if every < 2 or not weight.are_rows_alike:
        return weight, form
    rows = slice(None, None, every)
    try:
        form = None if form is None else form.rows_of(rows)
    except UsageError:  # groups of rows that have columns of their own
        return weight, form
    matrix = weight.matrix[rows].copy()
    return replace(weight, matrix=matrix, layout=Layout((len(matrix), channels, taps))), form


def _bits_of_columns(item: Quantized) -> float:
    """What the scales of columns take, however many rows there are."""
    steps = item.rule.scales if isinstance(item.rule, Uniform) else NO_SCALES
    of_steps, of_tables = (None, *steps[1:]), (None, *item.spread.scales[1:])
    return side_bits(of_steps) + side_bits(of_tables, of_steps)
