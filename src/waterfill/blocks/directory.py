"""Compress a model directory block by block, in as much memory as one block takes.

```
batches -> pass_through -> Survey   what errors cost everywhere, and how many bits that takes: one water level
tables before the blocks, block after block, the last layer:
    matrices stage by stage on what is compressed already -> a payload -> the directory
```
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from waterfill.blocks.coding import Coding
from waterfill.blocks.ranks import Ranks, ranks
from waterfill.blocks.steps import with_data, without_data
from waterfill.blocks.work import Work
from waterfill.bundle import BundleWriter, Checkpoint
from waterfill.efforts import DEFAULT_RATE, STATES, Effort, check_effort
from waterfill.errors import UsageError
from waterfill.protocols import Progress
from waterfill.quantize import Feedback
from waterfill.results import DirectoryResult


def compress_directory(
    source: str | Path,
    out: str | Path,
    data: Iterable[Any] | None = None,
    *,
    rate: float | None = None,
    size_bytes: int | None = None,
    effort: Effort = "default",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> DirectoryResult:
    """Compress a Hugging Face model directory to another one, which transformers loads after `import waterfill`.

    Args:
        source: with `config.json` and safetensors files.
        out: the directory to write.
        data: calibration batches: tokens int64 [samples, positions], or dicts of the arguments of the model, see
            `text_batches`; None to work without data, and without transformers.
        rate: bits of all safetensors files per floating-point value of the model; 4 where no target is given.
        size_bytes: size of all safetensors files.
        effort: as in `compress`.
        include: name patterns; when given, only tensors that match one are quantized.
        exclude: name patterns of tensors that are stored without loss.
        seed: of what is drawn.
        force: replace `out`.
        progress: called with (stage, done, total).

    Returns:
        What is known about the directory, with a report of every tensor.
    """
    check_effort(effort)
    target = _target(rate, size_bytes)
    with ranks() as team, _writer(out, source, force, team) as writer:
        work = Work.of(Checkpoint(source), Feedback(STATES[effort]), team, seed, progress, (include, exclude))
        steps = without_data(work) if data is None else with_data(work, data)
        return Coding(work, writer, target).run(steps, Path(out))


@contextmanager
def _writer(out: str | Path, source: str | Path, force: bool, team: Ranks) -> Iterator[BundleWriter | None]:
    if team.writes:
        with BundleWriter(out, source, force) as writer:
            yield writer
    else:
        yield None


def _target(rate: float | None, size_bytes: int | None) -> dict[str, float]:
    given = {name: float(value) for name, value in (("rate", rate), ("size_bytes", size_bytes)) if value is not None}
    if len(given) > 1:
        raise UsageError("Got the targets rate and size_bytes; expected one: choose what matters.")
    for name, value in given.items():
        if not 0 < value < float("inf") or (name == "rate" and value > 32):
            raise UsageError(f"Target {name}={value} is out of range; expected a number above zero, a rate at most 32.")
    return given or {"rate": DEFAULT_RATE}
