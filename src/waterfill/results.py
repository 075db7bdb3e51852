"""What the user gets: the file, a row for every tensor, the limits beside them."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from waterfill.atomic import check_suffix, write_atomically
from waterfill.records import Codebook, Constant, Entry, Exact, NormMean, NormVariance, Quantized, Relative, Tied

LEAST_LIMIT = 0.05
"""Bits per value from which a limit has a percentage: the gap to one near zero is a matter of bits."""


def percent_above(rate: float, limit: float) -> float | None:
    """How many percent a rate lies above a limit; None where the limit is near zero."""
    return 100 * (rate / limit - 1) if limit >= LEAST_LIMIT else None


@dataclass(frozen=True)
class TensorReport:
    """One row of the table: a tensor of the model and what it costs in the file.

    Attributes:
        name: name in the state dict.
        shape: its shape.
        numel: number of values.
        size_bytes: its share of the file, without the directory.
        rate: bits per value.
        distortion: quadratic form of its error: half of `e^T I_w e` in nats under a KL importance, `e^T I_w e` in
            squared output under a regression importance, the squared error without data; None when it has none.
        reconstruction: how symbols become values: `uniform`, `relative`, `codebook`, `exact`, `tied`, `constant`.
        reason: why a tensor is not quantized, or is quantized in a special way; else empty.
        limit: lower bound on the rate at the distortion that was reached, bits per value, under the source model; None
            for a tensor without one. The distortion is the one of `CompressionResult.limit_measure`.
        limit_error: standard error of the limit, from the fitted entropy.
        source_model: what the weights are taken to be drawn from; empty without a limit.
        source_note: why a tensor lies below its limit, and structure of the weights that the source model lacks, with
            the bits a value that a better one would save at least; empty for none.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    size_bytes: float
    rate: float
    distortion: float | None
    reconstruction: str
    reason: str = ""
    limit: float | None = None
    limit_error: float | None = None
    source_model: str = ""
    source_note: str = ""

    @property
    def gap(self) -> float | None:
        """Bits per value above the limit."""
        return None if self.limit is None else self.rate - self.limit

    @property
    def gap_percent(self) -> float | None:
        """The gap in percent of the limit; None without a limit, and for one near zero."""
        return None if self.limit is None else percent_above(self.rate, self.limit)

    def to_dict(self) -> dict[str, Any]:
        """All fields and the gap, by name."""
        return dataclasses.asdict(self) | {"gap": self.gap, "gap_percent": self.gap_percent}


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome(ABC):
    """What is known about a compressed model, wherever its bytes are.

    Attributes:
        floating_values: number of floating-point values of the model, tied ones once.
        original_bytes: bytes of all tensors before, tied ones once.
        tensors: a row for every entry of the state dict.
        overhead_bytes: bytes that belong to no tensor (header, directory, checksums, stream ends).
        water_level: distortion per weight at which every weight is filled; of a directory, in its last group with
            matrices.
        distortion: mean distortion on the calibration data, measured: D(original || compressed) in nats for logits,
            squared error for values; None without data.
        target: what was asked, for example `{"rate": 3.0}`; empty for quantizers of a fixed rate without a target.
        importance: name of the importance that was used.
        importance_power: to which power the importances of the matrices were taken when steps were chosen.
        importance_error: relative standard error that random signals leave in the prices of rows, root mean square over
            all weights of matrices; None where prices are exact or it is not known. It is rather too large, for it has
            also what samples differ by; an error e is worth about `0.36 e^2` bits per weight.
        limit: lower bound on the rate of the whole file at the distortion that was reached, bits per value, under the
            source models of its tensors; tensors without one count as they are stored. It holds on average over
            networks drawn from these sources; it is no converse for this one network.
        limit_error: standard error of the limit, from the fitted entropies.
        limit_measure: the distortion of the limit: the quadratic form of this importance, to the power kept.
        distortion_unit: of the distortions of the tensors.
        limit_distortion: sum of the distortions for which the limit holds, by its measure; None where none does.
        predicted_distortion: sum of the distortions of the tensors, each times the ratio that curves measured;
            None where no cost is known.
        held_out_distortion: the distortion on the batches that nothing was fitted to, on all where there are few; None
            without data.
        untuned_distortion: the distortion before tuning; None where nothing was tuned.
        limit_curve: (rate, least distortion by the measure of the limit) from the lowest rate on; empty for none.
        notes: what was assumed, and what the target did not get, a sentence each.
    """

    floating_values: int
    original_bytes: int
    tensors: tuple[TensorReport, ...] = field(repr=False)
    overhead_bytes: float
    water_level: float
    distortion: float | None
    target: Mapping[str, float]
    importance: str
    importance_power: float
    limit: float
    limit_error: float
    limit_measure: str
    distortion_unit: str = ""
    limit_distortion: float | None = None
    predicted_distortion: float | None = None
    held_out_distortion: float | None = None
    untuned_distortion: float | None = None
    importance_error: float | None = None
    limit_curve: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Size of the whole file, or of all files of weights in a directory."""

    @property
    def rate(self) -> float:
        """Bits of the whole file per floating-point value of the model."""
        return 8 * self.size_bytes / max(1, self.floating_values)

    @property
    def gap(self) -> float:
        """Bits per value of the whole file above its limit."""
        return self.rate - self.limit

    @property
    def gap_percent(self) -> float | None:
        """The gap in percent of the limit; None where that is near zero."""
        return percent_above(self.rate, self.limit)

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than the tensors were."""
        return self.original_bytes / self.size_bytes

    def to_json(self) -> str:
        """Everything but the bytes, as JSON text."""
        fields = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("data", "directory", "written_bytes", "tensors")
        }
        fields |= {name: getattr(self, name) for name in ("size_bytes", "rate", "ratio", "gap", "gap_percent")}
        fields |= {"target": dict(self.target), "tensors": [row.to_dict() for row in self.tensors]}
        return json.dumps(fields, indent=1)


@dataclass(frozen=True, eq=False, kw_only=True)
class CompressionResult(Outcome):
    """A compressed model: the bytes of the file and what is known about it.

    Attributes:
        data: the whole file.
    """

    data: bytes = field(repr=False)

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        return len(self.data)

    def save(self, path: str | Path, *, force: bool = True) -> None:
        """Write the file; a reader sees the old file or the whole new one, never a part.

        Args:
            path: where to write.
            force: replace a file that exists; otherwise it is refused.

        Raises:
            UsageError: the suffix is that of a model file of another kind, such as `.onnx`.
            WaterfillError: the folder is missing or not writable, or the file exists and `force` is False.
        """
        check_suffix(Path(path), ".wf")
        write_atomically(Path(path), [self.data], force=force)


@dataclass(frozen=True, eq=False, kw_only=True)
class DirectoryResult(Outcome):
    """A compressed model directory: where it is and what is known about it.

    Attributes:
        directory: which was written.
        written_bytes: of its safetensors files and their index.
    """

    directory: Path
    written_bytes: int

    @property
    def size_bytes(self) -> int:
        """Size of its safetensors files and their index."""
        return self.written_bytes


def reconstruction(entry: Entry, quantized: Quantized | None) -> tuple[str, str]:
    """How an entry comes back, and why so."""
    match entry.origin:
        case Exact(reason):
            return "exact", reason
        case Tied(to):
            return "tied", f"the same tensor as {to}"
        case Constant():
            return "constant", "folded into scale and shift of its norm"
        case NormVariance():
            return "uniform", "stored as the scale of its norm"
        case NormMean():
            return "uniform", "stored as the shift of its norm"
    if quantized is not None and isinstance(quantized.rule, Relative):
        return "relative", "sensitivity unknown: a short floating-point number"
    if quantized is not None and isinstance(quantized.rule, Codebook):
        return "codebook", ""
    return "uniform" if quantized is None else quantized.spread.levels, ""
