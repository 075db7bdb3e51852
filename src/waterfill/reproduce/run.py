"""Run an experiment of the paper: every objective at every ratio, with the searches, from files that decode."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from waterfill._version import PRODUCER
from waterfill.atomic import write_atomically
from waterfill.errors import UsageError
from waterfill.evaluation import outputs_of
from waterfill.models.state_dict import load_tensors, save_tensors
from waterfill.models.torch_module import fill
from waterfill.protocols import Progress, Quantizer
from waterfill.quantize import KMeans, Prune
from waterfill.records import Quantized
from waterfill.reproduce.experiments import Experiment, Sweep, Task
from waterfill.reproduce.importances import Importances, Setting
from waterfill.reproduce.ledger import Ledger, claim_folder
from waterfill.reproduce.subject import LADDER, Samples, Subject, measure, paper_ratio, state_digest
from waterfill.zoo import Batches, data_folder
from waterfill.zoo.batches import Labelled
from waterfill.zoo.training import train

Variant = Literal["paper", "exact", "one level"]


@dataclass(frozen=True)
class Options:
    """What a run may choose.

    Attributes:
        width: of the network; None for the default.
        weights: a file of trained weights; None for those in the data folder, or to train.
        samples: training samples that importances are estimated on.
        test_samples: of the test set; None for all.
        seed: of everything that is drawn.
    """

    width: int | None = None
    weights: Path | None = None
    samples: int = 1024
    test_samples: int | None = None
    seed: int = 0


def reproduce(
    experiment: Experiment, folder: Path, options: Options | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Run an experiment, or go on with one that was stopped.

    Every point is a file that was decoded again: matrices as the paper compresses them, all other tensors as they are.
    The network is trained where there are no weights. T and mu are chosen for every point on training samples behind
    those of the importances, T first: by the KL divergence to the original for the objective that knows no labels,
    by the cross-entropy for the others.

    Args:
        experiment: which one.
        folder: where weights, importances, measurements and the results are kept.
        options: how.
        progress: called with (stage, done, total).

    Returns:
        What is in `results.json` in the folder: facts of the run, the original, a row for every point and sweep.

    Raises:
        UsageError: an option is out of its range.
        WaterfillError: data or weights are missing, or the folder holds another run.
    """
    options = options or Options()
    lab = open_lab(experiment, folder, options, progress)
    lab.importances.estimate_all(experiment.temperatures, progress)
    rows: dict[str, list[dict[str, Any]]] = {"points": [], **{sweep.option: [] for sweep in experiment.sweeps}}
    plan = list(planned(experiment))
    for done, step in enumerate(plan, 1):
        rows[step.sweep or "points"].append(lab.row(step))
        if progress is not None:
            progress("points", done, len(plan))
    results = {**lab.facts, "original": lab.original(), **rows}
    write_atomically(folder / "results.json", [json.dumps(results, indent=1).encode() + b"\n"])
    return results


@dataclass(frozen=True)
class Step:
    """One row to measure.

    Attributes:
        task: what compresses.
        amount: the fraction that is kept, or the number of centroids.
        objective: its name.
        variant: `paper`, `exact` (k-means at its optimum) or `one level` (the same for the whole model, as many bytes).
        sweep: the option that is set instead of chosen, or empty.
        value: of that option.
    """

    task: Task
    amount: float
    objective: str
    variant: Variant = "paper"
    sweep: str = ""
    value: float = 0.0


def planned(experiment: Experiment) -> Iterator[Step]:
    """All rows: those of the paper, then what it does not have."""
    names = [objective.name for objective in experiment.objectives]
    yield from (Step("prune", keep, name) for name in names for keep in experiment.keeps)
    yield from (Step("quantize", k, name) for name in names for k in experiment.codebooks)
    for sweep in experiment.sweeps:
        yield from _sweep(sweep, experiment)
    yield from (Step("quantize", k, name, "exact") for name in names for k in experiment.codebooks)
    yield from (Step("prune", keep, name, "one level") for name in names for keep in experiment.keeps[::2])
    yield from (Step("quantize", k, name, "one level") for name in names for k in experiment.codebooks[::2])


def _sweep(sweep: Sweep, experiment: Experiment) -> Iterator[Step]:
    for name in sweep.objectives:
        objective = experiment.objective(name)
        tried = experiment.temperatures if sweep.option == "temperature" else objective.regularisers
        values = sorted({*tried, *sweep.axis})
        for keep in sweep.keeps:
            for value in values:
                yield Step("prune", keep, name, sweep=sweep.option, value=value)


@dataclass(frozen=True, eq=False)
class Lab:
    """Everything that the points of an experiment share.

    Attributes:
        experiment: which one.
        facts: of the run.
        subject: the network.
        importances: of it.
        validation: samples that choose T and mu.
        test: samples that are reported.
        ledger: what was measured.
        ladders: all matrices at rising numbers of centroids, under the last setting.
    """

    experiment: Experiment
    facts: dict[str, Any]
    subject: Subject
    importances: Importances
    validation: Samples
    test: Samples
    ledger: Ledger
    ladders: dict[Setting, list[dict[str, Quantized]]] = field(default_factory=dict)

    def original(self) -> dict[str, float]:
        """Qualities of the original on the test set."""
        key = f"test {state_digest(self.subject.model)}"
        return dict(self.ledger.once(key, lambda: measure(self.subject.model, self.test)))

    def row(self, step: Step) -> dict[str, Any]:
        """Measure a point, unless that was done."""
        return dict(self.ledger.once(f"row {json.dumps(dataclasses.astuple(step))}", lambda: self._measured(step)))

    def _measured(self, step: Step) -> dict[str, Any]:
        setting = self._setting(step)
        quantized, data = self._compressed(step, setting)
        self.subject.load(data)
        return {
            "task": step.task,
            "amount": step.amount,
            "objective": step.objective,
            "variant": step.variant,
            "temperature": setting.temperature,
            "mu": setting.mu,
            "paper_ratio": float(f"{paper_ratio(step.task, quantized):.6g}"),
            "size_bytes": len(data),
            "file_ratio": float(f"{len(data) / self.facts['original_bytes']:.6g}"),
            **self._quality("test", self.test),
        }

    def _compressed(self, step: Step, setting: Setting) -> tuple[Any, bytes]:
        """The file of a step."""
        forms = self.importances(setting)
        if step.variant == "one level":
            size = self.row(dataclasses.replace(step, variant="paper"))["size_bytes"]
            if step.task == "prune":
                return self.subject.prune_to_size(forms, size)
            return self.subject.cluster_to_size(self._ladder(setting), size)
        quantized = self.subject.quantize(_quantizer(step), forms)
        return quantized, self.subject.pack(quantized)

    def _ladder(self, setting: Setting) -> list[dict[str, Quantized]]:
        """All matrices at rising numbers of centroids, each at its optimum."""
        if setting not in self.ladders:
            self.ladders.clear()
            self.ladders[setting] = [self.subject.quantize(KMeans(k), self.importances(setting)) for k in LADDER]
        return self.ladders[setting]

    def _quality(self, name: str, samples: Samples) -> dict[str, float]:
        """Qualities of the copy; of the same weights they are measured once."""
        key = f"{name} {self.subject.digest()}"
        return dict(self.ledger.once(key, lambda: measure(self.subject.copy, samples)))

    def _setting(self, step: Step) -> Setting:
        """T and mu of a step: chosen for the compressor of the paper, but for the option that is swept."""
        chosen = self._chosen(Step(step.task, step.amount, step.objective))
        if step.sweep == "temperature":
            return dataclasses.replace(chosen, temperature=step.value)
        return dataclasses.replace(chosen, mu=step.value) if step.sweep else chosen

    def know(self, step: Step, setting: Setting) -> None:
        """Take the T and mu of a step as chosen, as an earlier run did, unless they are known."""
        self.ledger.once(_choice(step), lambda: [setting.temperature, setting.mu])

    def _chosen(self, step: Step) -> Setting:
        """The best T, then the best mu, unless that was found out."""
        objective = self.experiment.objective(step.objective)
        if objective.estimator is None:
            return Setting(step.objective)

        def choice() -> list[float]:
            settings = [Setting(step.objective, temperature) for temperature in self.experiment.temperatures]
            best = self._best(step, settings)
            if objective.regularisers:
                best = self._best(step, [dataclasses.replace(best, mu=mu) for mu in objective.regularisers])
            return [best.temperature, best.mu]

        found = self.ledger.once(_choice(step), choice)
        return Setting(step.objective, *found)

    def _best(self, step: Step, settings: Sequence[Setting]) -> Setting:
        """The first setting of least loss on the samples that choose."""
        loss = "cross_entropy" if self.experiment.objective(step.objective).supervised else "kl"
        losses = []
        for setting in settings:
            self.subject.fill(self.subject.quantize(_quantizer(step), self.importances(setting)))
            losses.append(self._quality("validation", self.validation)[loss])
        return settings[losses.index(min(losses))]


def _choice(step: Step) -> str:
    """What the ledger calls the choice of a step."""
    return f"choice {json.dumps(dataclasses.astuple(step))}"


def _quantizer(step: Step) -> Quantizer:
    if step.task == "prune":
        return Prune(step.amount)
    return KMeans(int(step.amount), start="exact" if step.variant == "exact" else "quantile")


# Before the first point


def open_lab(experiment: Experiment, folder: Path, options: Options, progress: Progress | None) -> Lab:
    """Find data and weights, train where there are none, and take the folder.

    Args:
        experiment: which one.
        folder: of the run.
        options: how.
        progress: called with ("train", done, total).

    Raises:
        UsageError: an option is out of its range.
        WaterfillError: data or weights are missing, or the folder holds another run.
    """
    _check(experiment, options)
    width = experiment.width if options.width is None else options.width
    training = experiment.training(samples=options.samples + experiment.validation)
    test = experiment.test(samples=options.test_samples)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = experiment.network(width)
    weights = _weights(experiment, width, options)
    facts: dict[str, Any] = {
        "producer": PRODUCER,
        "experiment": experiment.name,
        "width": width,
        "seed": options.seed,
        "samples": options.samples,
        "validation_samples": experiment.validation,
        "test_samples": len(test.samples.labels),
        "data_sha256": _data_digest(training, test),
        "temperatures": list(experiment.temperatures),
        "regularisers": {o.name: list(o.regularisers) for o in experiment.objectives if o.regularisers},
        "weights": "trained here" if weights is None else weights.name,
    }
    if weights is None:
        claim_folder(folder, facts)
        weights = _trained(experiment, model, folder, options.seed, progress)
    fill(model, load_tensors(weights), missing_ok=("*num_batches_tracked",))
    model.eval()
    facts["sha256"] = state_digest(model)
    claim_folder(folder, facts)
    subject = Subject.of(model)
    facts["matrix_values"] = sum(weight.matrix.size for weight in subject.inventory.weights.values())
    facts["original_bytes"] = 4 * subject.inventory.floating_values
    calibration, validation = _split(training, options.samples)
    importances = Importances(experiment, subject, list(calibration), options.seed, folder / "importance")
    return Lab(
        experiment, facts, subject, importances, _samples(model, validation), _samples(model, test),
        Ledger(folder / "measured.jsonl"),
    )  # fmt: skip


def _check(experiment: Experiment, options: Options) -> None:
    """Check the options.

    Raises:
        UsageError: one is out of its range.
    """
    if options.width is not None and not (experiment.width and options.width >= 1):
        raise UsageError(
            f"Width {options.width} is out of range; expected at least 1 for the convolutional networks, none for "
            "MNIST's."
        )
    if options.samples < 1 or not 0 <= options.seed < 2**63:
        raise UsageError(
            f"samples={options.samples}, seed={options.seed} is out of range; expected at least 1 sample, and a seed "
            "from 0 to 2^63 - 1."
        )


def _weights(experiment: Experiment, width: int, options: Options) -> Path | None:
    """The file of trained weights; None to train."""
    if options.weights is not None:
        return options.weights
    path = data_folder() / "models" / experiment.weights.format(width=width)
    return path if experiment.weights and path.is_file() else None


def _trained(experiment: Experiment, model: nn.Module, folder: Path, seed: int, progress: Progress | None) -> Path:
    """Train on all training samples, once for a folder."""
    path = folder / "weights.safetensors"
    if not path.exists():
        train(model, experiment.training(samples=None), experiment.recipe, seed, progress)
        save_tensors(path, model.state_dict())
    return path


def _data_digest(*parts: Batches) -> str:
    """SHA-256 of samples and labels, hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part.samples.inputs).data)
        digest.update(np.ascontiguousarray(part.samples.labels).data)
    return digest.hexdigest()


def _split(batches: Batches, count: int) -> tuple[Batches, Batches]:
    """The first samples, and the others."""
    every = batches.samples
    parts = (slice(None, count), slice(count, None))
    first, others = (Labelled(every.inputs[part], every.labels[part], every.source) for part in parts)
    return dataclasses.replace(batches, samples=first), dataclasses.replace(batches, samples=others)


def _samples(model: nn.Module, batches: Batches) -> Samples:
    """Batches in memory with what the original says."""
    every = [(images.contiguous(memory_format=torch.channels_last), labels) for images, labels in batches]
    return Samples(every, outputs_of(model, every))
