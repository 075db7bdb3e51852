"""Importances at every temperature, estimated once and kept in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from waterfill.errors import FormatError
from waterfill.importance.forms import DiagonalForm, QuarticForm
from waterfill.models.state_dict import load_tensors, save_tensors
from waterfill.protocols import Progress, QuadraticForm, Quartic
from waterfill.reproduce.experiments import Experiment, Objective
from waterfill.reproduce.subject import Forms, Subject

IN_MEMORY = 10
"""Importances that are kept in memory."""


@dataclass(frozen=True)
class Setting:
    """Options of an objective.

    Attributes:
        objective: its name.
        temperature: T.
        mu: of the regulariser.
    """

    objective: str
    temperature: float = 1.0
    mu: float = 0.0


class Importances:
    """What errors cost under every setting of the objectives of an experiment."""

    def __init__(
        self, experiment: Experiment, subject: Subject, batches: Sequence[Any], seed: int, folder: Path
    ) -> None:
        """Take what they are estimated from.

        Args:
            experiment: with the objectives.
            subject: the network.
            batches: of (input, target).
            seed: of what is drawn.
            folder: where they are kept.
        """
        self._experiment, self._model, self._batches = experiment, subject.model, batches
        self._weights = subject.inventory.weights
        self._seed, self._folder = seed, folder
        self._at = lru_cache(IN_MEMORY)(self._read_or_estimate)

    def __call__(self, setting: Setting) -> Forms:
        """Forms of all matrices by name; empty for 1 everywhere."""
        objective = self._experiment.objective(setting.objective)
        forms = self._at(objective, setting.temperature)
        return {name: form.regularised(setting.mu) for name, form in forms.items()} if setting.mu else forms

    def estimate_all(self, temperatures: Sequence[float], progress: Progress | None) -> None:
        """Make every file that is missing."""
        own = [o for o in self._experiment.objectives if o.estimator is not None and not o.normalises]
        wanted = [(objective, temperature) for objective in own for temperature in temperatures]
        for done, (objective, temperature) in enumerate(wanted, 1):
            self._at(objective, temperature)
            if progress is not None:
                progress("importance", done, len(wanted))

    def _read_or_estimate(self, objective: Objective, temperature: float) -> dict[str, DiagonalForm | QuarticForm]:
        if objective.estimator is None:
            return {}
        path = self._folder / f"{objective.normalises or objective.name}-{temperature:g}.safetensors"
        if not path.exists():
            estimator = objective.estimator(temperature, self._seed)
            estimated = estimator.estimate(self._model, self._batches, "logits", fold_norms=False)
            path.parent.mkdir(exist_ok=True)
            save_tensors(path, _tensors(path.stem, estimated))
        forms = self._forms(path)
        return {name: _normalised(form) for name, form in forms.items()} if objective.normalises else forms

    def _forms(self, path: Path) -> dict[str, DiagonalForm | QuarticForm]:
        """Forms of a file.

        Raises:
            FormatError: it is damaged, or of another network, objective or temperature.
        """
        found = {name: tensor.numpy() for name, tensor in load_tensors(path).items()}
        forms: dict[str, DiagonalForm | QuarticForm] = {}
        for name, weight in self._weights.items():
            parts = [found.get(f"{path.stem}|{name}|{power}") for power in (2, 4)]
            values, fourth = (None if part is None or part.shape != weight.matrix.shape else part for part in parts)
            if values is None:
                raise FormatError(
                    f"{path} has no {path.stem} importance of {name!r} {list(weight.matrix.shape)}; expected what this "
                    "run wrote. Remove the file to estimate it again."
                )
            forms[name] = DiagonalForm(values) if fourth is None else QuarticForm(values, fourth)
        return forms


def _normalised(form: DiagonalForm | QuarticForm) -> DiagonalForm | QuarticForm:
    """Divide the coefficients of each power by their mean, as the authors' code does."""
    if isinstance(form, DiagonalForm):
        return DiagonalForm(_with_mean_one(form.values))
    return QuarticForm(_with_mean_one(form.values), _with_mean_one(form.fourth))


def _with_mean_one(values: NDArray[np.float32]) -> NDArray[np.float32]:
    mean = float(np.abs(values).mean(dtype=np.float64))
    return (values / mean).astype(np.float32) if mean > 0 else values


def _tensors(label: str, forms: Mapping[str, QuadraticForm]) -> dict[str, torch.Tensor]:
    """Everything in some forms by name, with what it is."""
    tensors = {f"{label}|{name}|2": torch.from_numpy(form.diagonal()) for name, form in forms.items()}
    fourth = {name: form.quartic() for name, form in forms.items() if isinstance(form, Quartic)}
    return tensors | {f"{label}|{name}|4": torch.from_numpy(values) for name, values in fourth.items()}
