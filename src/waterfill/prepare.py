"""What compressing and bounding need to know about a model: its weights, its data, and what errors cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import waterfill.importance as importances
from waterfill.calibrate import Observed, observe
from waterfill.errors import CalibrationError, UsageError
from waterfill.evaluate import reference_outputs
from waterfill.models import state_dict, torch_module
from waterfill.models.batches import as_batches, output_kind
from waterfill.protocols import DataFree, Estimator, Output, Progress, QuadraticForm, Quartic
from waterfill.records import Floats, Inventory
from waterfill.resume.facts import fingerprint
from waterfill.resume.folder import NOTHING_KEPT, Memo

FEWEST_BATCHES = 4
"""From so many batches on, some are held out."""

HOLD_OUT = 8
"""One batch in so many is held out; with fewer batches the last one."""


@dataclass(frozen=True, eq=False)
class Part(Iterable[Any]):
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
class Live:
    """A module with calibration data: what correcting and measuring need.

    Choices between ways to compress are made on batches that nothing is fitted to: every eighth, or the last of four to
    seven; with fewer all batches serve both ends.

    Attributes:
        model: the original, which is never changed.
        copy: a copy to fill with trial weights.
        batches: calibration data, to be read again and again.
        references: outputs of the original on each batch.
        output: what the model returns.
        options: `fold_norms`, `include` and `exclude` of its inventory.
        keep: names of tensors that are stored without loss.
    """

    model: torch.nn.Module
    copy: torch.nn.Module
    batches: Iterable[Any]
    references: Sequence[torch.Tensor]
    output: Output
    options: Mapping[str, Any]
    keep: Sequence[str]

    @cached_property
    def observed(self) -> Observed:
        """What the original does on the batches to fit to."""
        names = [name for name, each in self.model.named_parameters(remove_duplicate=False) if each.ndim > 1]
        return observe(self.model, self.copy, self.fitting, keep=self.keep, names=names)

    @property
    def held(self) -> frozenset[int]:
        """Which batches are held out; none where there are few."""
        count = len(self.references)
        return (
            frozenset(range(HOLD_OUT - 1, count, HOLD_OUT) or [count - 1]) if count >= FEWEST_BATCHES else frozenset()
        )

    @property
    def fitting(self) -> Part:
        """The batches to fit to, and the outputs of the original on them."""
        return Part(self.batches, self.references, frozenset(range(len(self.references))) - self.held)

    @property
    def choosing(self) -> Part:
        """The batches to choose by: those held out, or all of them."""
        return Part(self.batches, self.references, self.held or frozenset(range(len(self.references))))


def _live(
    model: torch.nn.Module, batches: Iterable[Any], output: Output, options: Mapping[str, Any], keep: Sequence[str]
) -> Live:
    """Prepare a module for measuring.

    Raises:
        CalibrationError: a batch is empty, or the model returns NaN or infinities on it.
    """
    references = reference_outputs(model, batches)
    for index, reference in enumerate(references):
        if not len(reference):
            raise CalibrationError(f"Batch {index} has no samples; expected at least one. Leave out empty batches.")
        finite = reference.isfinite()
        bad = int((~(finite | (reference == -torch.inf) if output == "logits" else finite)).sum())
        if bad:
            raise CalibrationError(
                f"Batch {index} makes the model return {bad} values that are NaN or infinite; expected finite outputs. "
                "Check the batch and the weights."
            )
    return Live(model, torch_module.clone(model), batches, references, output, options, keep)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model that is ready to be compressed or bounded.

    Attributes:
        inventory: its tensors.
        estimator: what estimated the importances.
        forms: what errors cost, by name.
        live: the module with its data; None without data.
        memo: of results that are there already.
    """

    inventory: Inventory
    estimator: Estimator
    forms: Mapping[str, QuadraticForm]
    live: Live | None
    memo: Memo = NOTHING_KEPT

    @property
    def factor(self) -> float:
        """By what `e^T I_w e` is multiplied to be a distortion: that of the forms, which have one in common."""
        return next((form.factor for form in self.forms.values()), 1.0)

    @property
    def unit(self) -> str:
        """Of the distortion."""
        return next((form.unit for form in self.forms.values()), importances.COST_UNIT)


def prepare(
    model: torch.nn.Module | str | Path,
    data: Iterable[Any] | None,
    output: Output | None,
    importance: Estimator | None,
    options: Mapping[str, Any],
    seed: int,
    progress: Progress | None,
    *,
    crossed: bool = False,
    memo: Memo = NOTHING_KEPT,
) -> Prepared:
    """Take stock of a model, look at its data, estimate what errors cost.

    Args:
        model: a module, or the path of a safetensors file.
        data: calibration batches, or None.
        output: what the model returns; None to tell from the targets.
        importance: an estimator; None for the default: `kl()`, `regression()`, or `weight_scale()` without data.
        options: `fold_norms`, `include` and `exclude`.
        seed: of the default estimators.
        progress: called as work goes on.
        crossed: whether the default with data is `kronecker()`.
        memo: of results that are there already.

    Raises:
        UsageError: these are of another compression.
        CalibrationError: the data do not fit the model, or an importance needs data and there are none.
        WaterfillError: the model cannot be read.
    """
    if isinstance(model, torch.nn.Module):
        inventory = torch_module.inventory(model, **options)
    else:
        inventory = state_dict.read(Path(model), include=options["include"], exclude=options["exclude"])
    live = None if data is None else _with_data(model, data, output, options, list(inventory.exact))
    estimator = importance or _default_importance(live, seed, crossed)
    facts = {"output": live and live.output, "importance": estimator, **options, "seed": seed}
    batches, outputs = (live.batches, live.references) if live else ((), ())
    memo.claim(lambda options: fingerprint(model, batches, outputs, {**options, **facts}))
    forms = memo.forms(lambda: _forms(estimator, inventory, live, progress))
    return Prepared(inventory, estimator, forms, live, memo)


def _with_data(
    model: torch.nn.Module | str | Path,
    data: Iterable[Any],
    output: Output | None,
    options: Mapping[str, Any],
    keep: Sequence[str],
) -> Live:
    """The module with its batches, which can be read again and again."""
    if not isinstance(model, torch.nn.Module):
        raise CalibrationError(
            f"Data cannot be used with the bare file {model}; pass a module filled with its weights."
        )
    batches = as_batches(data)
    return _live(model, batches, output_kind(batches, output), options, keep)


def _default_importance(live: Live | None, seed: int, crossed: bool) -> Estimator:
    if live is None:
        return importances.weight_scale()
    if crossed:
        return importances.kronecker(seed=seed)
    return importances.kl(seed=seed) if live.output == "logits" else importances.regression(seed=seed)


def _forms(
    estimator: Estimator, inventory: Inventory, live: Live | None, progress: Progress | None
) -> Mapping[str, QuadraticForm]:
    """What errors cost in every weight.

    Raises:
        CalibrationError: the estimator needs data and there are none, or its gradients are not finite.
        UsageError: its forms are not in one unit.
    """
    if isinstance(estimator, DataFree):
        return _completed(estimator, estimator.forms(inventory.weights))
    if live is None:
        raise CalibrationError(f"Importance {estimator.name} is estimated on data, but there are none; pass data.")
    fold_norms = live.options["fold_norms"]
    found = estimator.estimate(live.model, live.fitting, live.output, fold_norms=fold_norms, progress=progress)
    forms = _completed(estimator, found)
    for name, form in forms.items():
        _check(form.diagonal(), f"Importance {estimator.name} of tensor {name!r}")
        if isinstance(form, Quartic):
            _check(form.quartic(), f"The fourth power of importance {estimator.name} of tensor {name!r}")
    return {name: form.shrunk() for name, form in forms.items()}


def _completed(estimator: Estimator, found: Mapping[str, QuadraticForm]) -> dict[str, QuadraticForm]:
    """The forms with all methods.

    Raises:
        UsageError: they are not in one unit.
    """
    forms = {name: importances.completed(form) for name, form in found.items()}
    units = sorted({(form.factor, form.unit) for form in forms.values()})
    if len(units) > 1:
        (first, one), (second, other), *_ = units
        raise UsageError(
            f"Forms of importance {estimator.name} are in {one!r} (factor {first:g}) and {other!r} (factor "
            f"{second:g}); expected one unit, for one water level compares them. Give all forms the same."
        )
    return forms


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
