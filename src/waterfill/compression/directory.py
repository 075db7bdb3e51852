"""Compress a model directory block by block, in as much memory as one block takes.

```
batches -> pass_through -> Survey   what errors cost everywhere, and how many bits that takes: one water level
tables before the blocks, block after block, the last layer:
    matrices stage by stage on what is compressed already -> a payload -> the directory
```
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from waterfill.bundle import BundleWriter, Checkpoint
from waterfill.compression.checkpoint_source import Work
from waterfill.compression.coding import Coding
from waterfill.compression.memory import check_memory
from waterfill.compression.presets import DEFAULT_RATE, STATES, Effort, check_effort
from waterfill.compression.steps import with_data, without_data
from waterfill.errors import TargetError, UsageError
from waterfill.processes import Ranks, ranks
from waterfill.protocols import Progress, Quantizer
from waterfill.quantize import Feedback
from waterfill.results import DirectoryResult
from waterfill.resume import Memo, of_tensors, work_folder


def compress_directory(
    source: str | Path,
    out: str | Path,
    data: Iterable[Any] | None = None,
    *,
    rate: float | None = None,
    size_bytes: int | None = None,
    quantizers: Sequence[Quantizer] = (),
    effort: Effort = "default",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
    work: str | Path | None = None,
    memory: int | None = None,
    force: bool = False,
) -> DirectoryResult:
    """Compress a Hugging Face model directory to another one, which transformers loads after `import waterfill`.

    Args:
        source: with `config.json` and safetensors files.
        out: the directory to write.
        data: calibration batches: tokens int64 [samples, positions], or dicts of the arguments of the model, see
            `text_batches`; None to work without data, and without transformers.
        rate: bits of all safetensors files per floating-point value of the model; 4 where no target is given.
        size_bytes: size of all safetensors files.
        quantizers: quantizer of the matrices, whose rate goes with the water level; by default `Feedback()` with as
            many states as the effort says.
        effort: as in `compress`.
        include: name patterns; when given, only tensors that match one are quantized.
        exclude: name patterns of tensors that are stored without loss.
        seed: of what is drawn.
        progress: called with (stage, done, total).
        work: folder to keep what is finished in: the same call goes on there after it was killed, and makes the same
            files. Each of several processes has a folder in it.
        memory: bytes of memory that may be used, about; see `estimate_memory`.
        force: replace `out`.

    Returns:
        What is known about the directory, with a report of every tensor.

    Under `torchrun` all processes call this: each takes every n-th batch and codes some of the matrices, and the first
    one writes. Statistics are added up exactly, see `waterfill.importance.exact_sum`, so that any number of processes
    makes the same files as one, if each computes its batches with the same number of threads.

    Raises:
        UsageError: an argument is out of its range, or the work folder is of another compression.
        TargetError: the size is below the floor; the text names it.
        CalibrationError: the data do not fit the model.
        UnsupportedModelError: transformers does not know the architecture, or it has no blocks one after the other.
        WaterfillError: the estimated memory is more than `memory`, the output cannot be written, or a process is gone.

    Example:
        >>> data = waterfill.text_batches("text.txt", "llama")  # doctest: +SKIP
        >>> waterfill.compress_directory("llama", "llama-small", data, rate=3.0)  # doctest: +SKIP
    """
    check_effort(effort)
    if not 0 <= seed < 2**63:
        raise UsageError(f"Seed {seed} is out of range; expected 0 to 2^63 - 1.")
    target, quantizer = _target(rate, size_bytes), _quantizer(quantizers or (Feedback(STATES[effort]),))
    batches = None if data is None else list(data)
    options = {"quantizer": quantizer, "include": include, "exclude": exclude, "seed": seed, "data": data is not None}
    with ranks() as team, _folder(work, team, options) as memo, _writer(out, source, force, team) as writer:
        checkpoint = Checkpoint(source)
        check_memory(checkpoint, batches, memory)
        device = torch.device("cpu")
        memo.claim(lambda options: of_tensors(checkpoint.items(), batches or (), (), options, device))
        ties = batches is None or bool(checkpoint.config.get("tie_word_embeddings", True))  # as the model has
        todo = Work.of(checkpoint, quantizer, team, seed, progress, (include, exclude), memo, ties=ties)
        if not todo.floating_values and "rate" in target:
            raise TargetError(
                "The directory has no floating-point values to which a rate applies; ask for size_bytes instead."
            )
        steps = without_data(todo) if batches is None else with_data(todo, batches)
        return Coding(writer, target, steps.work).run(steps, Path(out))


def _folder(work: str | Path | None, team: Ranks, options: Mapping[str, Any]) -> AbstractContextManager[Memo]:
    alone = work is None or team.count == 1
    return work_folder(work if alone else Path(str(work)) / f"process-{team.rank}-of-{team.count}", options)


@contextmanager
def _writer(out: str | Path, source: str | Path, force: bool, team: Ranks) -> Iterator[BundleWriter | None]:
    if team.writes:
        with BundleWriter(out, source, force) as writer:
            yield writer
    else:
        yield None


def _quantizer(quantizers: Sequence[Quantizer]) -> Quantizer:
    if len(quantizers) != 1 or getattr(quantizers[0], "fixed", False):
        raise UsageError(
            f"Got {', '.join(map(repr, quantizers))} as quantizers; expected one whose rate goes with the level, "
            "such as Feedback() or Trellis()."
        )
    return quantizers[0]


def _target(rate: float | None, size_bytes: int | None) -> dict[str, float]:
    given = {name: float(value) for name, value in (("rate", rate), ("size_bytes", size_bytes)) if value is not None}
    if len(given) > 1:
        raise UsageError("Got the targets rate and size_bytes; expected one: choose what matters.")
    for name, value in given.items():
        if not 0 < value < float("inf") or (name == "rate" and value > 32):
            raise UsageError(f"Target {name}={value} is out of range; expected a number above zero, a rate at most 32.")
    return given or {"rate": DEFAULT_RATE}
