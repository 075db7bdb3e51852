"""Compress a network: one in memory to a file, a model directory to another one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from waterfill.bundle import Checkpoint
from waterfill.compression.block_by_block import BlockWalk, DirectoryWalk, StoredWalk
from waterfill.compression.calibration import PreparedModel, prepare
from waterfill.compression.checkpoint_source import CheckpointSource
from waterfill.compression.directory_search import DirectoryCandidate, DirectorySearch, Staging
from waterfill.compression.encoder import only_quantizer
from waterfill.compression.estimated_forms import without_module
from waterfill.compression.in_memory import FileCandidate, InMemoryWalk
from waterfill.compression.level_search import fixed_candidate, search
from waterfill.compression.limits import SourceModels
from waterfill.compression.memory import directory_memory
from waterfill.compression.presets import POWERS, STATES, Effort, check_effort
from waterfill.compression.settings import Settings
from waterfill.compression.target import DEFAULT_TARGET, Target, target_of
from waterfill.compression.tune import Tune
from waterfill.compression.tune_directory import tuned_directory
from waterfill.devices import has_kernels
from waterfill.errors import CalibrationError, UsageError
from waterfill.importance.factored import price_error
from waterfill.models.arrangement import masked_text
from waterfill.models.kept_batches import as_batches, of_first_process, without_empty
from waterfill.models.placement import device_name
from waterfill.models.surroundings import in_ordinary_surroundings
from waterfill.processes import Processes, joined_processes
from waterfill.protocols import DataFree, Estimator, Metric, Output, Progress, Quantizer, traits_of
from waterfill.quantize import Feedback, Trellis
from waterfill.results import CompressionResult, DirectoryResult
from waterfill.resume import Memo, of_tensors, work_folder
from waterfill.threads import one_thread


@in_ordinary_surroundings
@one_thread()
def compress(
    model: torch.nn.Module | str | Path,
    data: Iterable[Any] | None = None,
    *,
    rate: float | None = None,
    size_bytes: int | None = None,
    distortion: float | None = None,
    tolerance: float | None = None,
    metric: Metric | None = None,
    output: Output | None = None,
    importance: Estimator | None = None,
    quantizers: Sequence[Quantizer] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    effort: Effort = "default",
    tune: bool | Tune = False,
    fold_norms: bool = True,
    plain: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    work: str | Path | None = None,
    memory: int | None = None,
    device: str | torch.device | None = None,
) -> CompressionResult:
    """Compress a trained network to the smallest file at a given loss.

    Without a target the rate is 4, unless the quantizers have a fixed rate of their own.

    Under `torchrun` all processes call this with the same model and data, share the work, and return the same result.

    Args:
        model: a module, or a path to a safetensors file (then without data). A module is left as it is: weights,
            modes, hooks and gradients.
        data: calibration batches, each `(input, target)` or only inputs (a tensor, a tuple of other length than two,
            or a dict of keyword arguments); where the model takes the parts of a tuple otherwise, they are read so,
            which a note says. None to work without data. A list is gone through again and again; what a loader, a
            generator or a stream gives is read once and kept.
        rate: bits of the whole file per floating-point value of the model.
        size_bytes: size of the whole file.
        distortion: mean distortion on the data: KL divergence in nats for logits, squared error for values.
        tolerance: largest loss of the metric: of top-1 accuracy as a fraction (0.005 is half a point).
        metric: what a tolerance is about, called with a model and `data`, larger for a better model; by default top-1
            accuracy on the data. It may measure on data of its own.
        output: `"logits"`, `"values"` or `"probabilities"` (behind a softmax or sigmoid), what the model returns; by
            default told from integer targets and the outputs on the first batch.
        importance: an estimator; by default `random_inputs()` without data (`row_scale()` for a file), with data
            `kronecker()` for quantizers that use cross terms, and for others `kl()` of logits and `regression()` of
            values.
        quantizers: quantizer of the matrices; by default `Feedback()` with as many states as the effort says. One of a
            fixed rate, such as `KMeans(16)` or `Prune(0.1)`, makes one file, which meets a target or does not.
        include: name patterns; when given, only tensors that match one are quantized.
        exclude: name patterns of tensors that are stored without loss.
        effort: `"fast"`, `"default"`, `"best"` or `"max"`: trellises of 8, 64, 256 or 2048 states, and more powers of
            the importances that are tried.
        tune: distil biases and norms on the data at the end, without labels; the result reports it apart.
        fold_norms: store batch norms as one scale and one shift.
        plain: write a file whose directory and exact bytes are not compressed: less than 1 % larger, for small devices,
            whose reader then has no zstandard.
        seed: of everything that is sampled.
        progress: called with (stage, done, total).
        work: folder to keep what is finished in: the same call goes on there after it was killed, and makes the same
            file; with another target it uses what fits. It stays. Each of several processes has a folder in it.
        memory: bytes of memory that may be used, about; see `compression.memory.estimate_memory`.
        device: where the model runs, and statistics and factors of matrices are computed, such as `"cuda"`; the model
            stays where it is, and a copy of it goes there. None for where the model is.

    Returns:
        The file with a report of every tensor.

    Raises:
        UsageError: several targets, or one out of its range, a metric without tolerance, an unknown effort, a device
            that is not there, or the work folder is that of another model, other data or other options; the text names
            the difference.
        TargetError: the target cannot be met; the text names the floor.
        CalibrationError: the data do not fit the model, or a target needs data and there are none.
        WaterfillError: a tensor cannot be compressed, such as one with NaN, or the estimated memory is more than
            `memory`.

    Example:
        >>> result = waterfill.compress(model, data, rate=3.0)  # doctest: +SKIP
        >>> result.save("model.wf")  # doctest: +SKIP
    """
    target = target_of(
        metric, has_data=data is not None,
        rate=rate, size_bytes=size_bytes, distortion=distortion, tolerance=tolerance,
    )  # fmt: skip
    tuning = _tuning(tune, has_data=data is not None)
    quantizer = only_quantizer(quantizers or (_default_quantizer(effort, has_data=data is not None),))
    options = {"fold_norms": fold_norms, "include": include, "exclude": exclude}
    place, facts = device_name(device), {"effort": effort, "quantizer": quantizer}
    with joined_processes() as processes, _results(work, processes, facts | _device_fact(place)) as memo:
        settings = _settings(quantizer, importance, seed, progress, memo, processes)
        settings = replace(_placed(settings, place), memory=memory, plain=plain)
        prepared = prepare(model, data, output, options, settings)
        return _compressed(prepared, settings, target, effort, tuning)


@in_ordinary_surroundings
@one_thread()
def compress_directory(
    source: str | Path,
    out: str | Path,
    data: Iterable[Any] | None = None,
    *,
    rate: float | None = None,
    size_bytes: int | None = None,
    distortion: float | None = None,
    tolerance: float | None = None,
    metric: Metric | None = None,
    importance: Estimator | None = None,
    quantizers: Sequence[Quantizer] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    effort: Effort = "default",
    tune: bool | Tune = False,
    seed: int = 0,
    progress: Progress | None = None,
    work: str | Path | None = None,
    memory: int | None = None,
    device: str | torch.device | None = None,
    force: bool = False,
) -> DirectoryResult:
    """Compress a Hugging Face model directory to another one, which transformers loads after `import waterfill`.

    Under `torchrun` all processes call this: each takes every n-th batch and codes some of the matrices, and the first
    one writes. Statistics are added up exactly, see `waterfill.importance.exact_sum`, so that any number of processes
    makes the same files as one, if each computes its batches with the same number of threads.

    Args:
        source: with `config.json` and safetensors files.
        out: the directory to write.
        data: calibration batches: tokens int64 [samples, positions], or dicts of the arguments of the model, see
            `text_batches`; None to work without data, and without transformers.
        rate: bits of all safetensors files per floating-point value of the model; 4 where no target is given.
        size_bytes: size of all safetensors files.
        distortion: mean distortion on the data: KL divergence in nats per token for logits, squared error of the
            embeddings for encoders. Targets of quality take two or three walks through the model.
        tolerance: largest loss of the metric.
        metric: what a tolerance is about, called with the loaded compressed model and `data`, larger for a better
            model; by default top-1 accuracy of the next token on the data.
        importance: an estimator; by default `row_scale()` without data, with data `kronecker()`, which goes block by
            block. Others that need data see the whole model in memory.
        quantizers: quantizer of the matrices, whose rate goes with the water level; by default `Feedback()` with as
            many states as the effort says.
        include: name patterns; when given, only tensors that match one are quantized.
        exclude: name patterns of tensors that are stored without loss.
        effort: as in `compress`.
        tune: distil biases and norms at the end, as in `compress`; takes the whole model in memory.
        seed: of what is drawn.
        progress: called with (stage, done, total).
        work: folder to keep what is finished in: the same call goes on there after it was killed, and makes the same
            files. Each of several processes has a folder in it.
        memory: bytes of memory that may be used, about; see `compression.memory.estimate_memory`.
        device: where blocks run, and statistics and factors of matrices are computed, such as `"cuda"`: a block, what
            is outside of the blocks, and hidden states as far as there is room. None for the processor.
        force: replace `out`.

    Returns:
        What is known about the directory, with a report of every tensor.

    Raises:
        UsageError: an argument is out of its range, a device is not there, or the work folder is of another
            compression.
        TargetError: the target cannot be met; the text names the floor.
        CalibrationError: the data do not fit the model, or a target needs data and there are none.
        UnsupportedModelError: transformers does not know the architecture, or it has no blocks one after the other.
        WaterfillError: the estimated memory is more than `memory`, the output cannot be written, or a process is gone.

    Example:
        >>> data = waterfill.text_batches("text.txt", "llama")  # doctest: +SKIP
        >>> waterfill.compress_directory("llama", "llama-small", data, rate=3.0)  # doctest: +SKIP
    """
    target = target_of(
        metric, has_data=data is not None,
        rate=rate, size_bytes=size_bytes, distortion=distortion, tolerance=tolerance,
    ) or DEFAULT_TARGET  # fmt: skip
    tuning = _tuning(tune, has_data=data is not None)
    quantizer = _moving_quantizer(quantizers or (_default_quantizer(effort, has_data=data is not None),))
    given = None if data is None else as_batches(data, progress)
    facts = {"quantizer": quantizer, "include": include, "exclude": exclude, "seed": seed, "importance": importance}
    place = device_name(device)
    facts |= {"data": given is not None} | _device_fact(place)
    with (
        joined_processes() as processes,
        _results(work, processes, facts) as memo,
        Staging(Path(out), Path(source), force, processes) as staging,
    ):
        settings = _placed(_settings(quantizer, importance, seed, progress, memo, processes), place)
        batches = None if given is None else _text_batches(given, settings)
        checkpoint = Checkpoint(source)
        directory_memory(checkpoint, batches).check(str(checkpoint.directory), memory)
        where = torch.device(place or "cpu")
        memo.claim(lambda options: of_tensors(checkpoint.items(), batches or (), (), options, where))
        tensors = _source(checkpoint, include, exclude, batches)
        if target.is_size:
            target.size(tensors.floating_values)  # refuses a rate of no values before any work
        walk = directory_walk(tensors, settings, batches)
        run = DirectorySearch(walk, target, staging, batches, keep=tuning is not None)
        found = run.run()
        untuned = None if tuning is None else found.walked.distortion
        if tuning is not None:
            found = tuned_directory(run, found, tuning)
        result = _directory_result(run, found, Path(out), untuned)
        staging.take(found, result)
        return result


def directory_walk(source: CheckpointSource, settings: Settings, data: Sequence[Any] | None) -> DirectoryWalk:
    """The way through a model directory: without data by the weights alone, else block by block.

    Raises:
        CalibrationError: the importance needs data and there are none.
    """
    if data is not None:
        return BlockWalk(source, settings, data)
    return StoredWalk(source, settings, without_module(settings))


def _text_batches(given: Sequence[Any], settings: Settings) -> Sequence[Any]:
    """Batches for a model of text, the same in all processes; without those of no samples."""
    return masked_text(without_empty(of_first_process(given, settings.processes)), settings.notes.add)


def _source(
    checkpoint: Checkpoint, include: Sequence[str], exclude: Sequence[str], batches: Sequence[Any] | None
) -> CheckpointSource:
    ties = batches is None or bool(checkpoint.config.get("tie_word_embeddings", True))  # as the model has
    return CheckpointSource.of(checkpoint, include, exclude, ties=ties)


def _settings(
    quantizer: Quantizer,
    importance: Estimator | None,
    seed: int,
    progress: Progress | None,
    memo: Memo,
    processes: Processes,
) -> Settings:
    if not 0 <= seed < 2**63:
        raise UsageError(f"Seed {seed} is out of range; expected 0 to 2^63 - 1.")
    return Settings(quantizer, importance, seed, progress if processes.is_first else None, memo, processes)


def _placed(settings: Settings, device: str | None) -> Settings:
    """The settings with a device, on which large matrices are searched as well if it can do that."""
    quantizer = settings.quantizer
    if has_kernels(device) and isinstance(quantizer, Feedback | Trellis):
        quantizer = replace(quantizer, device=device)
    return replace(settings, quantizer=quantizer, device=device)


def _device_fact(device: str | None) -> dict[str, Any]:
    """What results in a work folder depend on where a device was asked for; nothing where none was."""
    return {} if device is None else {"device": torch.device(device).type}


@contextmanager
def _results(work: str | Path | None, processes: Processes, options: dict[str, Any]) -> Iterator[Memo]:
    """Results that are kept; each of several processes has a folder of its own."""
    alone = work is None or processes.count == 1
    folder = work if alone else Path(str(work)) / f"process-{processes.rank}-of-{processes.count}"
    with work_folder(folder, options) as memo:
        yield memo


def _tuning(tune: bool | Tune, *, has_data: bool) -> Tune | None:
    if tune and not has_data:
        raise CalibrationError("Tuning goes by data, but there are none; pass data, or leave it out.")
    return (Tune() if tune is True else tune) or None


def _default_quantizer(effort: Effort, *, has_data: bool) -> Quantizer:
    """Feedback; without data it does not filter, for what random inputs have in common is not what real ones have."""
    check_effort(effort)
    return Feedback(STATES[effort]) if has_data else Feedback(STATES[effort], regulariser=0)


def _moving_quantizer(quantizers: Sequence[Quantizer]) -> Quantizer:
    """A quantizer whose rate goes with the water level."""
    if len(quantizers) != 1 or traits_of(quantizers[0]).fixed:
        raise UsageError(
            f"Got {', '.join(map(repr, quantizers))} as quantizers; expected one whose rate goes with the level, "
            "such as Feedback() or Trellis()."
        )
    return quantizers[0]


def _compressed(
    prepared: PreparedModel, settings: Settings, target: Target | None, effort: Effort, tune: Tune | None
) -> CompressionResult:
    traits, sources = traits_of(settings.quantizer), SourceModels()
    several = traits.tempered and not traits.fixed and not isinstance(prepared.estimator, DataFree)
    powers = POWERS[effort] if several else (1.0,)
    walks = [InMemoryWalk(prepared, settings, sources, power, tune) for power in powers]
    if traits.fixed:
        return _result(fixed_candidate(walks[0], target), target)
    target = target or DEFAULT_TARGET
    return _result(search(walks, target, curves=len(powers) > 1), target)


def _result(found: FileCandidate, target: Target | None) -> CompressionResult:
    walk = found.walk
    return CompressionResult(
        data=found.packed.data,
        water_level=found.water_level,
        distortion=found.distortion,
        target={} if target is None else target.asked,
        held_out_distortion=found.held_out,
        untuned_distortion=found.untuned,
        importance=walk.prepared.estimator.name,
        importance_power=walk.power,
        importance_error=price_error(walk.prepared.forms.values()),
        limit_measure=walk.measure,
        notes=walk.settings.notes.texts,
        **found.report.outcome(walk.inventory.entries),
    )


def _directory_result(
    run: DirectorySearch, found: DirectoryCandidate, out: Path, untuned: float | None
) -> DirectoryResult:
    walked, walk = found.walked, run.walk
    return DirectoryResult(
        directory=out,
        written_bytes=found.size_bytes,
        water_level=walked.water_level,
        distortion=walked.distortion,
        target=run.target.asked,
        held_out_distortion=walked.held_out,
        untuned_distortion=untuned,
        importance=walk.importance,
        importance_power=walk.statistics.power,
        limit_measure=run.measure,
        notes=walk.settings.notes.texts,
        **walked.report.outcome(walk.source.entries),
    )
