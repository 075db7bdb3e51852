"""Prepare a model in memory for compressing or bounding: its weights, its data, and the cost of errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import waterfill.importance as importances
from waterfill.compression.joined_samples import activation_bytes
from waterfill.compression.memory import model_memory
from waterfill.compression.settings import Settings
from waterfill.compression.statistics_correction import Observed, observe
from waterfill.distortion import Distortion, distortion_for
from waterfill.errors import CalibrationError, UsageError
from waterfill.evaluation import Evaluation, evaluate_batches, reference_outputs, summarize
from waterfill.models import state_dict, torch_module
from waterfill.models.batches import as_batches, output_kind
from waterfill.processes import ALONE, Processes
from waterfill.protocols import DataFree, Estimator, ModuleDriven, Output, Progress, QuadraticForm, Quartic, traits_of
from waterfill.records import Floats, Inventory, Weight
from waterfill.resume.facts import fingerprint

FEWEST_BATCHES = 4
"""From so many batches on, some are held out."""

WEIGHTS_ALONE = "No data were given, and no module: errors are priced by the sizes of rows and tensors."
"""Said where only weights are known."""

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
class BatchSubset(Iterable[Any]):
    """Some of the batches, to be read again and again.

    Attributes:
        batches: all of them.
        outputs: of the original, on all of them.
        chosen: which, by index.
    """

    batches: Iterable[Any]
    outputs: Sequence[torch.Tensor]
    chosen: frozenset[int]

    def __iter__(self) -> Iterator[Any]:
        return (batch for index, batch in enumerate(self.batches) if index in self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def references(self) -> list[torch.Tensor]:
        """Outputs of the original on these."""
        return [each for index, each in enumerate(self.outputs) if index in self.chosen]


@dataclass(frozen=True, eq=False)
class CalibratedModel:
    """A module with calibration data: what correcting and measuring need.

    Choices between ways to compress are made on batches that nothing is fitted to, see `held_out`; where there are few
    batches, all serve both ends.

    Attributes:
        model: the original, which is never changed.
        copy: a copy to fill with trial weights.
        batches: calibration data, to be read again and again.
        references: outputs of the original on each batch.
        distortion: of what the model returns.
        options: `fold_norms`, `include` and `exclude` of its inventory.
        keep: names of tensors that are stored without loss.
        processes: share the measuring.
    """

    model: torch.nn.Module
    copy: torch.nn.Module
    batches: Iterable[Any]
    references: Sequence[torch.Tensor]
    distortion: Distortion
    options: Mapping[str, Any]
    keep: Sequence[str]
    processes: Processes = ALONE

    @cached_property
    def observed(self) -> Observed:
        """Activations of the original on the batches to fit to."""
        names = [name for name, each in self.model.named_parameters(remove_duplicate=False) if each.ndim > 1]
        return observe(self.model, self.copy, self.fitting, keep=self.keep, names=names)

    def measure(self, copy: torch.nn.Module) -> tuple[Evaluation, NDArray[np.float64]]:
        """Measure a copy on all data, and the distances of its outputs on the data to choose by."""
        found = list(evaluate_batches(copy, self.batches, self.references, self.distortion, processes=self.processes))
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
    def choosing(self) -> BatchSubset:
        """The batches to choose by: those held out, or all of them."""
        return BatchSubset(self.batches, self.references, chosen_by(len(self.references)))


def _calibrated(
    model: torch.nn.Module,
    batches: Iterable[Any],
    distortion: Distortion,
    options: Mapping[str, Any],
    keep: Sequence[str],
    processes: Processes,
) -> CalibratedModel:
    """Prepare a module for measuring.

    Raises:
        CalibrationError: a batch is empty, or the model returns NaN or infinities on it.
    """
    references = reference_outputs(model, batches, processes)
    for index, reference in enumerate(references):
        if not len(reference):
            raise CalibrationError(f"Batch {index} has no samples; expected at least one. Leave out empty batches.")
        bad = int((~distortion.allowed(reference)).sum())
        if bad:
            raise CalibrationError(
                f"Batch {index} makes the model return {bad} values that are NaN or infinite; expected finite outputs. "
                "Check the batch and the weights."
            )
    copy = torch_module.clone(model)
    return CalibratedModel(model, copy, batches, references, distortion, options, keep, processes)


@dataclass(frozen=True, eq=False)
class PreparedModel:
    """A model in memory that is ready to be compressed or bounded.

    Attributes:
        inventory: its tensors.
        estimator: what estimated the importances.
        forms: what errors cost, by name.
        model: the module with its data; None without data.
    """

    inventory: Inventory
    estimator: Estimator
    forms: Mapping[str, QuadraticForm]
    model: CalibratedModel | None


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
        output: what the model returns; None to tell from the targets.
        options: `fold_norms`, `include` and `exclude`.
        settings: of the compression. Without an importance it is `random_inputs()` without data, with data
            `kronecker()` for quantizers that use cross terms, and for others `kl()` of logits and `regression()` of
            values.

    Raises:
        UsageError: results that are kept are of another compression.
        CalibrationError: the data do not fit the model, or an importance needs data and there are none.
        WaterfillError: the model cannot be read.
    """
    if isinstance(model, torch.nn.Module):
        inventory = torch_module.inventory(model, **options)
    else:
        inventory = state_dict.read(Path(model), include=options["include"], exclude=options["exclude"])
    batches = None if data is None else as_batches(data)
    _check_agreement(model, batches, settings.processes)
    known = None
    if batches is not None:
        known = _with_data(model, batches, output, options, list(inventory.exact), settings.processes)
    module = model if isinstance(model, torch.nn.Module) else None
    estimator = settings.importance or _default_importance(module, known, settings)
    if settings.memory is not None:
        flow = None if known is None else activation_bytes(known.model, known.fitting)
        estimate = model_memory(inventory, flow)
        settings.processes.all_made(lambda: estimate.check("this model", settings.memory))
    facts = {"output": known and known.distortion.name, "importance": estimator, **options, "seed": settings.seed}
    outputs = known.references if known else ()
    settings.memo.claim(lambda others: fingerprint(model, batches or (), outputs, {**others, **facts}))
    compute: Callable[[], Mapping[str, QuadraticForm]]
    if isinstance(estimator, ModuleDriven):
        compute = _on_module(estimator, module, inventory, settings)
    else:
        compute = partial(_forms, estimator, inventory, known, settings.progress)
    forms = settings.memo.forms(compute, settings.processes)
    return PreparedModel(inventory, estimator, forms, known)


def _check_agreement(model: torch.nn.Module | str | Path, batches: Iterable[Any] | None, processes: Processes) -> None:
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


def _with_data(
    model: torch.nn.Module | str | Path,
    batches: Iterable[Any],
    output: Output | None,
    options: Mapping[str, Any],
    keep: Sequence[str],
    processes: Processes,
) -> CalibratedModel:
    """The module with its batches, which can be read again and again."""
    if not isinstance(model, torch.nn.Module):
        raise CalibrationError(
            f"Data cannot be used with the bare file {model}; pass a module filled with its weights."
        )
    return _calibrated(model, batches, distortion_for(output_kind(batches, output)), options, keep, processes)


def _default_importance(module: torch.nn.Module | None, model: CalibratedModel | None, settings: Settings) -> Estimator:
    if module is None:
        return without_module(settings)
    if model is None:
        return importances.random_inputs(seed=settings.seed)
    if traits_of(settings.quantizer).uses_cross_terms:
        return importances.kronecker(seed=settings.seed)
    return importances.of_distortion(model.distortion, settings.seed)


def _forms(
    estimator: Estimator, inventory: Inventory, model: CalibratedModel | None, progress: Progress | None
) -> Mapping[str, QuadraticForm]:
    """Estimate the forms of all weights.

    Raises:
        CalibrationError: the estimator needs data and there are none, or its gradients are not finite.
    """
    if isinstance(estimator, DataFree):
        return data_free_forms(estimator, inventory.weights)
    if model is None:
        raise CalibrationError(f"Importance {estimator.name} is estimated on data, but there are none; pass data.")
    fold_norms = model.options["fold_norms"]
    output = model.distortion.name
    found = estimator.estimate(model.model, model.fitting, output, fold_norms=fold_norms, progress=progress)
    return checked_forms(estimator, found)


def _on_module(
    estimator: ModuleDriven, model: torch.nn.Module | None, inventory: Inventory, settings: Settings
) -> Callable[[], Mapping[str, QuadraticForm]]:
    """Make what gives the forms by running a module without data; a note says what they go by."""
    if model is None:
        settings.notes.add(WEIGHTS_ALONE)
        return lambda: data_free_forms(estimator, inventory.weights)
    trial = estimator.trial(model)
    settings.notes.add(trial.note)
    return lambda: trial.forms(inventory.weights)


def without_module(settings: Settings) -> DataFree:
    """An estimator that needs weights alone; the default where none is given, which a note says.

    Raises:
        CalibrationError: it needs data.
    """
    if settings.importance is None:
        settings.notes.add(WEIGHTS_ALONE)
    found = settings.importance or importances.row_scale()
    if not isinstance(found, DataFree):
        raise CalibrationError(f"Importance {found.name} is estimated on data, but there are none; pass data.")
    return found


def data_free_forms(estimator: DataFree, weights: Mapping[str, Weight]) -> dict[str, QuadraticForm]:
    """Estimate the forms of some weights by an estimator that looks at them alone."""
    return {name: importances.completed(form) for name, form in estimator.forms(weights).items()}


def checked_forms(estimator: Estimator, found: Mapping[str, QuadraticForm]) -> dict[str, QuadraticForm]:
    """Check the forms of an estimator, and give them as more positions would show them.

    Raises:
        CalibrationError: a coefficient is not finite, or negative.
        UsageError: they are in several units.
    """
    forms = {name: importances.completed(form) for name, form in found.items()}
    _check_units(estimator, forms)
    for name, form in forms.items():
        _check(form.diagonal(), f"Importance {estimator.name} of tensor {name!r}")
        if isinstance(form, Quartic):
            _check(form.quartic(), f"The fourth power of importance {estimator.name} of tensor {name!r}")
    return {name: form.shrunk() for name, form in forms.items()}


def _check_units(estimator: Estimator, forms: Mapping[str, QuadraticForm]) -> None:
    """Check that all forms price errors in one unit, for they are added up.

    Raises:
        UsageError: they do not.
    """
    units = list(dict.fromkeys((form.unit, form.factor) for form in forms.values()))
    if len(units) > 1:
        (unit, factor), (other, another) = units[:2]
        raise UsageError(
            f"Forms of the importance {estimator.name} are in {unit!r} (factor {factor:g}) and {other!r} (factor "
            f"{another:g}); expected one unit, in which errors of all tensors add up. Give all of them the same."
        )


def _check(values: Floats, what: str) -> None:
    """Check the coefficients of a form.

    Raises:
        CalibrationError: some are not finite, or negative.
    """
    if not np.isfinite(values).all():
        raise CalibrationError(
            f"{what} is NaN or infinite on the data; expected finite gradients. Check the range of the data and of the "
            "weights, or use weight_scale()."
        )
    negative = int((values < 0).sum())
    if negative:
        raise CalibrationError(
            f"{what} is negative for {negative} of {values.size} weights; expected none, or the search would seek "
            "errors there. Use kl() or gradient(), or outweigh them by hessian(mu=...) or gradient_hessian(mu=...)."
        )
