"""Importances at every temperature, estimated once and kept in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from waterfill.importance.forms import DiagonalForm, QuarticForm
from waterfill.models.state_dict import load_tensors, save_tensors
from waterfill.protocols import Progress
from waterfill.reproduce.experiments import Experiment, Objective
from waterfill.reproduce.subject import Forms

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
        self, experiment: Experiment, model: nn.Module, batches: Sequence[Any], seed: int, folder: Path
    ) -> None:
        """Take what they are estimated from.

        Args:
            experiment: with the objectives.
            model: the network.
            batches: of (input, target).
            seed: of what is drawn.
            folder: where they are kept.
        """
        self._experiment, self._model, self._batches = experiment, model, batches
        self._seed, self._folder = seed, folder
        self._at = lru_cache(IN_MEMORY)(self._read_or_estimate)

    def __call__(self, setting: Setting) -> Forms:
        """Forms of all matrices by name; empty for 1 everywhere."""
        objective = self._experiment.objective(setting.objective)
        forms = self._at(objective, setting.temperature)
        return {name: form.regularised(setting.mu) for name, form in forms.items()} if setting.mu else forms

    def estimate_all(self, temperatures: Sequence[float], progress: Progress | None) -> None:
        """Make every file that is missing."""
        wanted = [(o, t) for o in self._experiment.objectives if o.estimator is not None for t in temperatures]
        for done, (objective, temperature) in enumerate(wanted, 1):
            self._at(objective, temperature)
            if progress is not None:
                progress("importance", done, len(wanted))

    def _read_or_estimate(self, objective: Objective, temperature: float) -> dict[str, DiagonalForm | QuarticForm]:
        if objective.estimator is None:
            return {}
        path = self._folder / f"{objective.name}-{temperature:g}.safetensors"
        if not path.exists():
            estimator = objective.estimator(temperature, self._seed)
            forms = estimator.estimate(self._model, self._batches, "logits", fold_norms=False)
            tensors = {}
            for name, form in forms.items():
                tensors[f"{name}|2"] = torch.from_numpy(form.diagonal())
                if isinstance(form, QuarticForm):
                    tensors[f"{name}|4"] = torch.from_numpy(form.quartic())
            path.parent.mkdir(exist_ok=True)
            save_tensors(path, tensors)
        return _forms({name: tensor.numpy() for name, tensor in load_tensors(path).items()})


def _forms(arrays: dict[str, Any]) -> dict[str, DiagonalForm | QuarticForm]:
    names = [name.removesuffix("|2") for name in arrays if name.endswith("|2")]
    return {
        name: QuarticForm(arrays[f"{name}|2"], arrays[f"{name}|4"])
        if f"{name}|4" in arrays
        else DiagonalForm(arrays[f"{name}|2"])
        for name in names
    }
