"""The limit before anything is compressed: rate against distortion of a whole model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from waterfill.bundle import Checkpoint
from waterfill.codec import container
from waterfill.codec.directory import original_bytes
from waterfill.compression.block_by_block import BlockWalk
from waterfill.compression.calibration import PreparedModel, prepare
from waterfill.compression.checkpoint_source import CheckpointSource
from waterfill.compression.estimated_forms import without_module
from waterfill.compression.limit_components import Components
from waterfill.compression.limits import FEWEST, SourceModels, TensorModel
from waterfill.compression.sensitivity import survey_forms
from waterfill.compression.settings import Settings
from waterfill.compression.whole_model_forms import form_finder
from waterfill.errors import TargetError, UsageError
from waterfill.importance import COST_UNIT
from waterfill.models.arrangement import masked_text
from waterfill.models.kept_batches import as_batches, without_empty
from waterfill.models.placement import device_name
from waterfill.models.surroundings import in_ordinary_surroundings
from waterfill.protocols import Estimator, Output, Progress
from waterfill.quantize import Feedback
from waterfill.threads import one_thread

GRID = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Rates at which a curve is told, and the one at which tensors are shown."""

USUAL = 4.0


@dataclass(frozen=True)
class BoundRow:
    """One tensor at one point of the curve.

    Attributes:
        name: name in the state dict.
        shape: its shape.
        numel: number of values.
        rate: bits per value at the common water level; None for a tensor that is left out.
        distortion: its share, in the unit of the bound.
        source_model: what the weights are taken to be drawn from; empty for a tensor that is left out.
        standard_error: of the fitted entropy, bits per value.
        reason: why a tensor is left out.
        source_note: structure of the weights that the source model lacks; empty for none.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    rate: float | None
    distortion: float | None
    source_model: str = ""
    standard_error: float | None = None
    reason: str = ""
    source_note: str = ""


@dataclass(frozen=True, eq=False)
class ModelBound:
    """Rate against distortion of a model, under a source model of every tensor: a lower bound for any code.

    It holds on average over networks whose weights are drawn from these sources, for distortions that are the quadratic
    form of the importance; it is no converse for one fixed network, and no measurement of the KL divergence.

    Attributes:
        floating_values: number of floating-point values of the model, tied ones once.
        original_bytes: bytes of all tensors, tied ones once.
        importance: name of the importance.
        unit: of the distortion.
        exact_bits: what tensors that are stored without loss take in a file of ours; part of every rate.
        factor: what `e^T I_w e` is multiplied by to be a distortion.
        shapes: of every coded tensor.
        models: source and components of those that are not left out: variances `I_i N_i`, with cross terms eigenvalues
            of `N^{1/2} I N^{1/2}`.
        notes: what was assumed, a sentence each.
    """

    floating_values: int
    original_bytes: int
    importance: str
    unit: str
    exact_bits: float
    factor: float
    shapes: Mapping[str, tuple[int, ...]]
    models: Mapping[str, TensorModel]
    notes: tuple[str, ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Tensors of unknown sensitivity or without spread; they cost nothing here."""
        return tuple(name for name in self.shapes if name not in self.models)

    @cached_property
    def _whole(self) -> Components:
        return sum((model.components for model in self.models.values()), Components())

    @property
    def largest_distortion(self) -> float:
        """Distortion at which no tensor takes a bit."""
        return self.factor * self._whole.total

    @property
    def lowest_rate(self) -> float:
        """Bits per value where every tensor is zero bits: what is stored without loss."""
        return self.exact_bits / self.floating_values

    def rate(self, distortion: float) -> float:
        """Fewest bits of the whole file per floating-point value at a distortion.

        Raises:
            UsageError: the distortion is not above zero.
        """
        if not (math.isfinite(distortion) and distortion > 0):
            raise UsageError(f"Distortion {distortion} is out of range; expected a number above zero.")
        bits = self._whole.rate_at_distortion(distortion / self.factor)
        return (bits + self.exact_bits) / self.floating_values

    def distortion(self, rate: float) -> float:
        """Least distortion at a rate in bits of the whole file per floating-point value.

        Raises:
            TargetError: the rate is not above `lowest_rate`.
        """
        return self.factor * self._whole.distortion(self._level(rate))

    def _level(self, rate: float) -> float:
        if not (math.isfinite(rate) and rate > 0):
            raise UsageError(f"Rate {rate} is out of range; expected a number above zero.")
        bits = rate * self.floating_values - self.exact_bits
        if bits < -1e-9 * self.exact_bits:
            raise TargetError(
                f"Rate {rate:.3g} is below the {self.lowest_rate:.3g} bit/value of the tensors that are stored without "
                "loss; ask for more."
            )
        return self._whole.level_at_rate(max(0.0, bits))

    def usual_rates(self, grid: Sequence[float] = GRID) -> list[float]:
        """Bits per value that spend those of a grid on every weight that is not known to be zero.

        They are the grid itself, unless most of the weights are zero or much is stored without loss.
        """
        live = self._whole.spread_number / self.floating_values
        plain = self.lowest_rate < GRID[0] and (live > 0.5 or not live)
        return list(grid) if plain else [self.lowest_rate + rate * live for rate in grid]

    def curve(self, rates: Sequence[float] | None = None) -> list[tuple[float, float]]:
        """(rate, distortion) at rates, by default the usual ones; those below `lowest_rate` are left out."""
        wanted = self.usual_rates() if rates is None else rates
        return [(rate, self.distortion(rate)) for rate in wanted if rate >= self.lowest_rate]

    def tensors(self, rate: float) -> list[BoundRow]:
        """How the least distortion at a rate is shared: a row for every coded tensor.

        Raises:
            TargetError: the rate is not above `lowest_rate`.
        """
        level = self._level(rate)
        return [self._row(name, shape, level) for name, shape in self.shapes.items()]

    def _row(self, name: str, shape: tuple[int, ...], level: float) -> BoundRow:
        numel, model = math.prod(shape), self.models.get(name)
        if model is None:
            reason = (
                "sensitivity unknown" if numel >= FEWEST and len(shape) < 2 else "no spread, or fewer than 8 values"
            )
            return BoundRow(name, shape, numel, None, None, reason=reason)
        rate, loss = model.components.rate(level) / numel, self.factor * model.components.distortion(level)
        source = model.source
        return BoundRow(name, shape, numel, rate, loss, source.name, source.standard_error, "", source.note)

    def to_json(self, rate: float) -> str:
        """The curve, and the tensors at a rate, as JSON text."""
        fields = {
            "floating_values": self.floating_values,
            "original_bytes": self.original_bytes,
            "importance": self.importance,
            "unit": self.unit,
            "exact_bits": self.exact_bits,
            "left_out": self.left_out,
            "notes": self.notes,
            "lowest_rate": self.lowest_rate,
            "largest_distortion": self.largest_distortion,
            "curve": [{"rate": r, "distortion": d} for r, d in self.curve()],
            "rate": rate,
            "distortion": self.distortion(rate),
            "tensors": [asdict(row) for row in self.tensors(rate)],
        }
        return json.dumps(fields, indent=1)


@in_ordinary_surroundings
@one_thread()
def bound(
    model: torch.nn.Module | str | Path,
    data: Iterable[Any] | None = None,
    *,
    output: Output | None = None,
    importance: Estimator | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    fold_norms: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    device: str | torch.device | None = None,
) -> ModelBound:
    """Bound the size of a compressed model at every distortion, before it is compressed.

    Args:
        model: a module, a path to a safetensors file (then without data), or a Hugging Face model directory.
        data: calibration batches as in `compress`, of a directory as in `compress_directory`; None for none.
        output: `"logits"`, `"values"` or `"probabilities"` (behind a softmax or sigmoid), what the model returns; by
            default told from integer targets and the outputs on the first batch.
        importance: an estimator; by default that of `compress`.
        include: name patterns; when given, only tensors that match one are coded.
        exclude: name patterns of tensors that are stored without loss.
        fold_norms: count a batch norm as one scale and one shift.
        seed: of everything that is sampled.
        progress: called with (stage, done, total).
        device: as in `compress` and `compress_directory`.

    Returns:
        The curve and what it is made of.

    Raises:
        UsageError: the device is not there.
        CalibrationError: the data do not fit the model, or the importance needs data and there are none.
        TargetError: the model has no floating-point values.
        WaterfillError: the model cannot be read, or has a tensor with NaN.

    Source:
        Lemma 1 of the paper for independent weights, with weighted water-filling (Theorem 2); with cross terms reverse
        water-filling over eigenvalues (`waterfill.theory.spectra`); docs/theory.md.

    Example:
        >>> limit = waterfill.bound(model, data)  # doctest: +SKIP
        >>> limit.rate(0.01)  # bits per value that 0.01 nats need at least  # doctest: +SKIP
    """
    settings = Settings(Feedback(), importance, seed, progress, device=device_name(device))
    if not isinstance(model, torch.nn.Module) and Path(model).is_dir():
        if output is not None:
            raise UsageError(
                f"Got output={output!r} for {model}; a directory says itself what it returns. Leave it out."
            )
        source = CheckpointSource.of(Checkpoint(model), include, exclude, ties=True)
        batches = None if data is None else masked_text(without_empty(as_batches(data, progress)), settings.notes.add)
        return _directory_bound(source, settings, batches)
    options = {"fold_norms": fold_norms, "include": include, "exclude": exclude}
    return _model_bound(prepare(model, data, output, options, settings), settings)


def _model_bound(ready: PreparedModel, settings: Settings) -> ModelBound:
    inventory, exact = ready.inventory, ready.lossless
    _check_values(inventory.floating_values)
    form = next(iter(ready.forms.values()), None)
    return ModelBound(
        floating_values=inventory.floating_values,
        original_bytes=original_bytes(inventory.entries),
        importance=ready.estimator.name,
        unit=COST_UNIT if form is None else form.unit,
        exact_bits=8.0 * container.exact_size(exact.entries, exact.data) + sum(e.bits for e in exact.symbols.values()),
        factor=1.0 if form is None else form.factor,
        shapes={name: weight.layout.shape for name, weight in inventory.weights.items()},
        models=SourceModels().models(inventory.weights, ready.forms),
        notes=settings.notes.texts,
    )


def _directory_bound(source: CheckpointSource, settings: Settings, data: Sequence[Any] | None) -> ModelBound:
    _check_values(source.floating_values)
    priced = _without_data(source, settings) if data is None else _with_data(source, settings, data)
    return ModelBound(
        floating_values=source.floating_values,
        original_bytes=original_bytes(source.entries),
        importance=priced.importance,
        unit=priced.unit,
        exact_bits=sum(map(source.exact_bits, source.groups)),
        factor=priced.factor,
        shapes=source.coded_shapes,
        models=priced.models,
        notes=settings.notes.texts,
    )


@dataclass(frozen=True, eq=False)
class _PricedModels:
    """Models of the tensors of a directory, and the importance by which their errors have a price."""

    importance: str
    unit: str
    factor: float
    models: Mapping[str, TensorModel]


def _without_data(source: CheckpointSource, settings: Settings) -> _PricedModels:
    estimator = without_module(settings)
    finder = form_finder(estimator, source, (), settings)
    known = survey_forms(source, 1.0, finder, settings, exactly=True)
    form = next(iter(known.pilot.values()), (None, None))[1]
    factor, unit = (1.0, COST_UNIT) if form is None else (form.factor, form.unit)
    return _PricedModels(estimator.name, unit, factor, known.models)


def _with_data(source: CheckpointSource, settings: Settings, data: Sequence[Any]) -> _PricedModels:
    walk = BlockWalk(source, settings, data, power=1.0, exactly=True)
    distortion = walk.forward.distortion
    return _PricedModels(walk.importance, distortion.unit, distortion.factor, walk.statistics.models)


def _check_values(count: int) -> None:
    if not count:
        raise TargetError("The model has no floating-point values; expected at least one, to which a rate applies.")
