"""Results as `CompressionResult.to_json` wrote them, those of older versions too, read again and checked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from waterfill.errors import FormatError
from waterfill.results import TensorReport, percent_above

Count = Annotated[int, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0)]

MEASURED_UNITS = ("nats of KL", "squared output")
"""Units in which a prediction can be held against what was measured."""

COMPARABLE = ("kl", "kronecker", "regression")
"""Importances of those units, for results that do not name one."""


class SavedResult(Struct, frozen=True):
    """What a JSON file says about a compressed file; the fields are those of `CompressionResult`."""

    size_bytes: Annotated[int, Meta(ge=1)]
    floating_values: Count
    original_bytes: Count
    tensors: tuple[TensorReport, ...]
    overhead_bytes: float
    water_level: float
    distortion: float | None
    target: dict[str, float]
    importance: str
    importance_power: float = 1.0
    limit: float | None = None
    limit_error: float | None = None
    limit_measure: str = ""
    distortion_unit: str = ""
    limit_distortion: float | None = None
    predicted_distortion: float | None = None
    held_out_distortion: float | None = None
    untuned_distortion: float | None = None
    importance_error: float | None = None
    limit_curve: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """Bits of the whole file per floating-point value."""
        return 8 * self.size_bytes / max(1, self.floating_values)

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than the tensors were."""
        return self.original_bytes / self.size_bytes

    @property
    def gap(self) -> float | None:
        """Bits per value above the limit."""
        return None if self.limit is None else self.rate - self.limit

    @property
    def gap_percent(self) -> float | None:
        """The gap in percent of the limit."""
        return None if self.limit is None else percent_above(self.rate, self.limit)

    @property
    def sum_of_tensors(self) -> float | None:
        """Sum of the distortions of the tensors; None where no tensor has one."""
        known = [row.distortion for row in self.tensors if row.distortion is not None]
        return math.fsum(known) if known and all(map(math.isfinite, known)) else None

    @property
    def predicted(self) -> float | None:
        """The distortion that was predicted, with what curves measured; the sum where the file does not say."""
        if self.predicted_distortion is None:
            return self.sum_of_tensors
        return self.predicted_distortion if math.isfinite(self.predicted_distortion) else None

    @property
    def held_out(self) -> float | None:
        """Distortion on batches that nothing was fitted to; None where all were used, or the file does not say."""
        return None if self.held_out_distortion == self.distortion else self.held_out_distortion

    @property
    def comparable(self) -> bool:
        """Whether the prediction is of what was measured."""
        if self.distortion_unit:
            return self.distortion_unit in MEASURED_UNITS
        return self.importance.partition("(")[0] in COMPARABLE

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """Rate against distortion as a share of that without any bits; empty when the file does not say."""
        most = self.limit_curve[0][1] if self.limit_curve else 0.0
        finite = all(math.isfinite(each) for point in self.limit_curve for each in point)
        if not (finite and math.isfinite(most) and most > 0 and self.curve_distortion > 0):
            return ()
        return tuple((rate, least / most) for rate, least in self.limit_curve if least > 0)

    @property
    def curve_distortion(self) -> float:
        """Where the file lies on the second axis of `curve`; 0 when it does not say."""
        most = self.limit_curve[0][1] if self.limit_curve else 0.0
        known = self.limit_distortion is not None and math.isfinite(self.limit_distortion) and most > 0
        return (self.limit_distortion or 0.0) / most if known else 0.0


def read(path: Path) -> SavedResult:
    """Read a JSON file of `waterfill compress --json`.

    Raises:
        FormatError: it cannot be read, is no JSON, or is that of another command.
    """
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise FormatError(
            f"{path} cannot be read ({error.strerror}); expected a JSON file that compress --json wrote."
        ) from error
    except ValueError as error:
        raise FormatError(
            f"{path} is no result of a compression: expected the JSON that compress --json writes, found: {error}. "
            "Compress again with --json, and give that file."
        ) from error


def parse(text: str | bytes) -> SavedResult:
    """Undo `CompressionResult.to_json`, but for the bytes of the file.

    Raises:
        ValueError: the text is no JSON, or the JSON of something else; the text says where.
    """
    try:
        result = msgspec.convert(json.loads(text), SavedResult)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    except OverflowError as error:
        raise ValueError("a number that is too large") from error
    for row in result.tensors:
        if not (math.isfinite(row.rate) and math.isfinite(row.size_bytes)):
            raise ValueError(f"tensor {row.name!r} has a size or rate that is not finite")
        if min(row.numel, row.size_bytes, row.rate, *row.shape) < 0:
            raise ValueError(f"tensor {row.name!r} has a size, rate or shape below zero")
    return result
