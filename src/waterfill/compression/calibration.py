"""Prepare a model in memory for compressing or bounding: its weights, its data, and the cost of errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import waterfill.importance as importances
from waterfill.compression.contract import FewSamples, check_copies, check_repeatable
from waterfill.compression.estimated_forms import (
    checked_forms,
    data_free_forms,
    forms_by_running,
    free_form,
    without_module,
)
from waterfill.compression.joined_samples import GRADIENT_WORK, WORK, activation_bytes
from waterfill.compression.least_prices import priced_like_the_least
from waterfill.compression.lossless import LosslessTensors
from waterfill.compression.memory import model_memory
from waterfill.compression.moved_tensors import CheckedForms, checked_by_moving
from waterfill.compression.regrouped import RegroupedBatches
from waterfill.compression.settings import Settings
from waterfill.compression.statistics_correction import Observed, observe
from waterfill.distortion import Distortion, distortion_for
from waterfill.errors import CalibrationError, UnsupportedModelError, UsageError
from waterfill.evaluation import Evaluation, evaluate_batches, outputs_of, summarize
from waterfill.importance.backward import NoGradientError
from waterfill.models import state_dict, torch_module
from waterfill.models.arrangement import arranged
from waterfill.models.batches import num_samples, split
from waterfill.models.cloning import clone
from waterfill.models.kept_batches import RepeatableBatches, as_batches, of_first_process, without_empty
from waterfill.models.output_reading import OutputReading
from waterfill.models.output_rules import reading_of
from waterfill.models.placement import model_on
from waterfill.models.predictions import prediction_rows
from waterfill.models.work import WorkBudget, sample_work
from waterfill.processes import ALONE, Processes
from waterfill.protocols import DataFree, Estimator, ModuleDriven, Output, QuadraticForm, traits_of
from waterfill.records import Inventory
from waterfill.resume.facts import fingerprint

FEWEST_BATCHES = 4
"""From so many batches on, some are held out."""

UNFOLDED = (
    "Norms are stored unfolded: with a scale and a shift in their place the model answers differently, so it uses "
    "their vectors in a way of its own."
)

DEAR = 1 << 13
"""Work of a pass, in values for every weight, from which a model is dear."""

HOLD_OUT = 8
"""One batch in so many is held out; with fewer batches the last one."""


def held_out(count: int) -> frozenset[int]:
    """Numbers of the batches that nothing is fitted to: every eighth, or the last of four to seven; none of fewer."""
    if count < FEWEST_BATCHES:
        return frozenset()
    return frozenset(range(HOLD_OUT - 1, count, HOLD_OUT) or [count - 1])


def chosen_by(count: int) -> frozenset[int]:
    """Numbers of the batches to choose by: those that are held out, or all of them."""
    return held_out(count) or frozenset(range(count))


@dataclass(frozen=True, eq=False)
class BatchSubset(RepeatableBatches):
    """Some of the batches, to be read again and again.

    Attributes:
        batches: all of them.
        outputs: of the original, on all of them.
        chosen: which, by index.
    """

    batches: Sequence[Any]
    outputs: Sequence[torch.Tensor]
    chosen: frozenset[int]

    def __iter__(self) -> Iterator[Any]:
        return (self.batches[index] for index in sorted(self.chosen))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        found = sorted(self.chosen)[index]
        return [self.batches[each] for each in found] if isinstance(found, list) else self.batches[found]

    @property
    def references(self) -> list[torch.Tensor]:
        """Outputs of the original on these."""
        return [each for index, each in enumerate(self.outputs) if index in self.chosen]


def _samples_of(batches: Iterable[Any]) -> int:
    return sum(num_samples(split(batch)[0]) for batch in batches)


@dataclass(frozen=True, eq=False)
class CalibratedModel:
    """A module with calibration data: what correcting and measuring need.

    Choices between ways to compress are made on batches that nothing is fitted to, see `held_out`; where there are few
    batches, all serve both ends.

    Attributes:
        model: the original, which is never changed.
        copy: a copy to fill with trial weights.
        data: calibration data as they were given, to be read again and again.
        references: outputs of the original on each batch, as they are read.
        reading: how outputs are read.
        options: `fold_norms`, `include` and `exclude` of its inventory.
        keep: names of tensors that are stored without loss.
        processes: share the measuring.
    """

    model: torch.nn.Module
    copy: torch.nn.Module
    data: Sequence[Any]
    references: Sequence[torch.Tensor]
    reading: OutputReading
    options: Mapping[str, Any]
    keep: Sequence[str]
    processes: Processes = ALONE

    @property
    def batches(self) -> Sequence[Any]:
        """The data with targets as they are read."""
        return self.reading.batches(self.data)

    @property
    def distortion(self) -> Distortion:
        """Of what the model returns."""
        return distortion_for(self.reading.kind)

    def prediction_rows(self) -> Iterator[torch.Tensor]:
        """Logits of the original, a row for every prediction, of every batch."""
        for batch, reference in zip(self.batches, self.references, strict=True):
            yield prediction_rows(reference, split(batch)[1])[0]

    @cached_property
    def observed(self) -> Observed:
        """Activations of the original on the batches to fit to."""
        names = [name for name, each in self.model.named_parameters(remove_duplicate=False) if each.ndim > 1]
        some = RegroupedBatches(self.fitting, self.samples_within(WORK))
        return observe(self.model, self.copy, some, keep=self.keep, names=names)

    def distances(self, copy: torch.nn.Module) -> NDArray[np.float64]:
        """Distances of the outputs of a copy on some of the data to choose by, from those of the original."""
        some = self._compared
        with self.reading.of(copy):
            found = list(evaluate_batches(copy, some, some.references, self.distortion, processes=self.processes))
        return np.concatenate([each.distances for each in found])

    def measure(self, copy: torch.nn.Module) -> tuple[Evaluation, NDArray[np.float64]]:
        """Measure a copy on all data, and the distances of its outputs on the data to choose by."""
        with self.reading.of(copy):
            measured = evaluate_batches(copy, self.batches, self.references, self.distortion, processes=self.processes)
            found = list(measured)
        chosen = self.choosing.chosen
        return summarize(found), np.concatenate([found[index].distances for index in sorted(chosen)])

    @property
    def held(self) -> frozenset[int]:
        """Numbers of the batches that are held out; none where there are few."""
        return held_out(len(self.references))

    @property
    def fitting(self) -> BatchSubset:
        """The batches to fit to, and the outputs of the original on them."""
        return BatchSubset(self.batches, self.references, frozenset(range(len(self.references))) - self.held)

    @property
    def estimating(self) -> RegroupedBatches:
        """The same in larger groups, with as many samples as are within `GRADIENT_WORK`, for estimating importances."""
        return RegroupedBatches(self.fitting, self.samples_within(GRADIENT_WORK))

    @property
    def choosing(self) -> BatchSubset:
        """The batches to choose by: those held out, or all of them."""
        return BatchSubset(self.batches, self.references, chosen_by(len(self.references)))

    @cached_property
    def is_dear(self) -> bool:
        """Whether passes of the data to fit to take so much work, for so few weights, that few can be made."""
        samples = min(_samples_of(self.fitting), self.samples_within(WORK))
        return samples * self._sample_work > WorkBudget(WORK.values / 2, DEAR).of(self.model)

    @cached_property
    def _compared(self) -> BatchSubset | RegroupedBatches:
        """The batches to choose by, or as many of their samples as are within `WORK`."""
        every, most = self.choosing, self.samples_within(WORK)
        return every if _samples_of(every) <= most else RegroupedBatches(every, most, every.references)

    def samples_within(self, budget: WorkBudget) -> int:
        """How many samples are within a budget of work."""
        return budget.samples(self.model, self._sample_work)

    @cached_property
    def _sample_work(self) -> float:
        return sample_work(self.model, split(self.batches[0])[0])


def _calibrated(
    model: torch.nn.Module,
    data: Sequence[Any],
    reading: OutputReading,
    options: Mapping[str, Any],
    keep: Sequence[str],
    processes: Processes,
) -> CalibratedModel:
    """Prepare a module for measuring.

    Raises:
        CalibrationError: a batch is empty, or the model returns NaN or infinities on it.
    """
    with reading.of(model):
        references = outputs_of(model, data, processes)
    distortion = distortion_for(reading.kind)
    for index, reference in enumerate(references):
        if not len(reference):
            raise CalibrationError(f"Batch {index} has no samples; expected at least one. Leave out empty batches.")
        bad = int((~distortion.allowed(reference)).sum())
        if bad:
            raise CalibrationError(
                f"Batch {index} makes the model return {bad} values that are NaN or infinite; expected finite outputs. "
                "Check the batch and the weights."
            )
    return CalibratedModel(model, clone(model), data, references, reading, options, keep, processes)


@dataclass(frozen=True, eq=False)
class PreparedModel:
    """A model in memory that is ready to be compressed or bounded.

    Attributes:
        inventory: its tensors.
        estimator: what estimated the importances.
        forms: what errors cost, by name.
        model: the module with its data; None without data.
        reasons: why some tensors are priced in a special way, by name.
        plain: whether the file is written without zstandard.
    """

    inventory: Inventory
    estimator: Estimator
    forms: Mapping[str, QuadraticForm]
    model: CalibratedModel | None
    reasons: Mapping[str, str] = field(default_factory=dict)
    plain: bool = False

    @cached_property
    def lossless(self) -> LosslessTensors:
        """How the file has the tensors that are stored without loss."""
        return LosslessTensors.of(self.inventory, plain=self.plain)


def prepare(
    model: torch.nn.Module | str | Path,
    data: Iterable[Any] | None,
    output: Output | None,
    options: Mapping[str, Any],
    settings: Settings,
) -> PreparedModel:
    """Take stock of a model, look at its data, estimate what errors cost.

    Args:
        model: a module, or the path of a safetensors file.
        data: calibration batches, or None.
        output: what the model returns; None to tell from the targets and outputs.
        options: `fold_norms`, `include` and `exclude`.
        settings: of the compression. Without an importance it is `random_inputs()` without data, with data
            `kronecker()` for quantizers that use cross terms, and for others `kl()` of logits and `regression()` of
            values.

    Raises:
        UsageError: results that are kept are of another compression.
        CalibrationError: the data do not fit the model, or an importance needs data and there are none.
        WaterfillError: the model cannot be read.
    """
    _check_kind(model)
    if isinstance(model, torch.nn.Module):
        inventory = torch_module.inventory(model, **options)
    else:
        inventory = state_dict.read(Path(model), include=options["include"], exclude=options["exclude"])
    batches = None if data is None else _batches_for(model, data, settings)
    _check_agreement(model, batches, settings.processes)
    if isinstance(model, torch.nn.Module):
        model = model_on(model, settings.device)
    known = None
    if batches is not None:
        known = _with_data(model, batches, output, options, list(inventory.exact), settings)
        known, inventory = _held_to_contract(known, inventory, settings)
        options = known.options
    module = model if isinstance(model, torch.nn.Module) else None
    estimator = settings.importance or _default_importance(module, known, settings)
    if settings.memory is not None:
        flow = None if known is None else activation_bytes(known.model, known.fitting)
        estimate = model_memory(inventory, flow)
        settings.processes.all_made(lambda: estimate.check("this model", settings.memory))
    facts = {"output": known and known.reading.kind, "importance": estimator, **options, "seed": settings.seed}
    outputs = known.references if known else ()
    settings.memo.claim(lambda others: fingerprint(model, batches or (), outputs, {**others, **facts}))
    driven = forms_by_running(estimator, module, inventory, settings) if isinstance(estimator, ModuleDriven) else None
    compute = driven or (lambda: _forms(estimator, inventory, known, settings))
    forms = settings.memo.forms(compute, settings.processes)
    checked = _checked_by_moving(estimator, inventory, known, forms, settings)
    priced, reasons = priced_like_the_least(inventory.weights, checked.forms, checked.unreached)
    return PreparedModel(inventory, estimator, priced, known, {**checked.reasons, **reasons}, settings.plain)


def _held_to_contract(
    model: CalibratedModel, inventory: Inventory, settings: Settings
) -> tuple[CalibratedModel, Inventory]:
    """Check what compressing a model relies on; where its norms cannot be folded, both come back with them unfolded.

    Raises:
        CalibrationError: its answers differ from pass to pass.
        UnsupportedModelError: a copy of it does not stand for it.
    """
    samples = FewSamples.of(model.model, next(iter(model.data)), model.reading.tensor_in)
    check_repeatable(model.model, samples)
    if check_copies(model.model, samples, inventory):
        return model, inventory
    settings.notes.add(UNFOLDED)
    unfolded = replace(model, options={**model.options, "fold_norms": False})
    inventory = torch_module.inventory(unfolded.model, **unfolded.options)
    check_copies(unfolded.model, samples, inventory)
    return unfolded, inventory


def _check_kind(model: object) -> None:
    """Check that a model is a module or a path, and that its tensors can be had.

    Raises:
        UsageError: it is something else.
        UnsupportedModelError: it was frozen.
    """
    if isinstance(model, torch.export.ExportedProgram):
        raise UsageError("The model is an ExportedProgram; expected a module. Give its module: exported.module().")
    if not isinstance(model, torch.nn.Module | str | Path):
        raise UsageError(
            f"The model is a {type(model).__name__}; expected a torch.nn.Module or the path of a safetensors file. "
            "Give the module itself, not its weights or its class."
        )
    if isinstance(model, torch.jit.ScriptModule) and not hasattr(model, "training"):
        raise UnsupportedModelError(
            "The scripted model was frozen (torch.jit.freeze), so that its weights are constants of its code; expected "
            "parameters. Compress it before it is frozen."
        )


def _checked_by_moving(
    estimator: Estimator,
    inventory: Inventory,
    model: CalibratedModel | None,
    forms: Mapping[str, QuadraticForm],
    settings: Settings,
) -> CheckedForms:
    """The forms, of which those that gradients do not tell are made by moving the tensors; of all processes alike."""
    if model is None or isinstance(estimator, DataFree):
        return CheckedForms(forms)
    with model.reading.of(model.copy):
        checked = checked_by_moving(model.copy, model.fitting, model.distortion, inventory, forms)
    return settings.processes.broadcast(checked)


def _check_agreement(model: torch.nn.Module | str | Path, batches: Sequence[Any] | None, processes: Processes) -> None:
    """Check that all processes have the same model and data, or their decisions would part.

    Raises:
        UsageError: one has others; the text says what differs.
    """
    if processes.count == 1:
        return
    own = fingerprint(model, batches or (), (), {})
    for rank, differences in enumerate(processes.all_gather(own.differences(processes.broadcast(own)))):
        if differences:
            raise UsageError(
                f"Process {rank} has another model or other data than the first: {'; '.join(differences)}. Give all "
                "the same: load weights, or seed what is drawn."
            )


def _batches_for(model: torch.nn.Module | str | Path, data: Iterable[Any], settings: Settings) -> Sequence[Any]:
    """Data that can be read again and again, as the model takes them; without batches of no samples."""
    batches = without_empty(of_first_process(as_batches(data, settings.progress), settings.processes))
    return arranged(model, batches, settings.notes.add) if isinstance(model, torch.nn.Module) else batches


def _with_data(
    model: torch.nn.Module | str | Path,
    batches: Sequence[Any],
    output: Output | None,
    options: Mapping[str, Any],
    keep: Sequence[str],
    settings: Settings,
) -> CalibratedModel:
    """The module with its batches, which can be read again and again."""
    if not isinstance(model, torch.nn.Module):
        raise CalibrationError(
            f"Data cannot be used with the bare file {model}; pass a module filled with its weights."
        )
    try:
        reading = reading_of(model, batches, output)
    except CalibrationError as error:
        raise CalibrationError(" ".join([str(error), *settings.notes.texts])) from error
    for note in reading.notes:
        settings.notes.add(note)
    return _calibrated(model, batches, reading, options, keep, settings.processes)


def _default_importance(module: torch.nn.Module | None, model: CalibratedModel | None, settings: Settings) -> Estimator:
    if module is None:
        return without_module(settings)
    if model is None:
        return importances.random_inputs(seed=settings.seed)
    if traits_of(settings.quantizer).uses_cross_terms:
        return importances.kronecker(seed=settings.seed)
    return importances.of_distortion(model.distortion, settings.seed)


def _forms(
    estimator: Estimator, inventory: Inventory, model: CalibratedModel | None, settings: Settings
) -> Mapping[str, QuadraticForm]:
    """Estimate the forms of all weights; no error costs anything where gradients cannot be had.

    Raises:
        CalibrationError: the estimator needs data and there are none, or its gradients are not finite.
    """
    if isinstance(estimator, DataFree):
        return data_free_forms(estimator, inventory.weights)
    if model is None:
        raise CalibrationError(f"Importance {estimator.name} is estimated on data, but there are none; pass data.")
    fold_norms = model.options["fold_norms"]
    data = model.fitting if settings.importance is not None else model.estimating
    output = model.reading.form
    try:
        with model.reading.of(model.model):
            found = estimator.estimate(model.model, data, output, fold_norms=fold_norms, progress=settings.progress)
    except NoGradientError as error:
        settings.notes.add(f"No gradients were had, so that tensors are priced by moving them. {error}")
        return {name: free_form(weight, model.distortion) for name, weight in inventory.weights.items()}
    return checked_forms(estimator, found)
