"""One case of `walks.py` in this process: `python walk_cases.py prepare|compress|test CASE SOURCES OUT`, then JSON.

Only the public interface of waterfill is used, so that every source tree that has it can be measured.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from numba.core import event
from torch import Tensor, nn

import hf_models
import minilm
import waterfill
from hf_scale_steps import memory
from waterfill import zoo

Row = dict[str, Any]
Pair = tuple[nn.Module, nn.Module]

TOP1, KL, PERPLEXITY = "top-1 %", "KL (nats)", "perplexity"
ERROR, COSINE = "relative squared error", "cosine"
CORES = 2
TEST_WINDOWS, SENTENCES, TEST_SENTENCES = 64, 128, 500
SMALL_NET, SMALL_BATCH = 64, 32
"""Width and batch of the network that is compressed before the clock starts."""


class Source(Protocol):
    """Where a network is, and how it is compressed and read back."""

    def prepare(self, sources: Path) -> None:
        """Write what has to be there before a process can compress the network."""

    def load(self, sources: Path) -> Any:
        """Make ready what is compressed; its seconds do not count."""

    def compress(self, ready: Any, data: Any, out: Path, target: Mapping[str, float]) -> Any:
        """Write the compressed network under `out`, and return the result of the library."""

    def pair(self, sources: Path, out: Path) -> Pair:
        """Load the original and the compressed network."""


@dataclass(frozen=True)
class Module:
    """A network of the zoo, compressed in memory.

    Attributes:
        name: in the zoo.
    """

    name: str

    def prepare(self, sources: Path) -> None:
        """Nothing: the weights are among the data files."""

    def load(self, sources: Path) -> nn.Module:  # noqa: ARG002 (the protocol)
        return zoo.pretrained(self.name)

    def compress(self, ready: nn.Module, data: Any, out: Path, target: Mapping[str, float]) -> Any:
        options: Any = target
        result = waterfill.compress(ready, data, **options)
        result.save(out / "model.wf")
        return result

    def pair(self, sources: Path, out: Path) -> Pair:
        copy = waterfill.load(out / "model.wf", into=zoo.pretrained(self.name))
        return self.load(sources), copy.eval()


@dataclass(frozen=True)
class Directory:
    """A Hugging Face model directory, compressed block by block.

    Attributes:
        name: of the folder.
        make: writes the directory.
        auto: class of transformers that loads it.
        architecture: class of transformers that this one finds.
    """

    name: str
    make: Callable[[Path], Path]
    auto: str
    architecture: str

    def prepare(self, sources: Path) -> None:
        if not (sources / self.name / "config.json").exists():
            self.make(sources / self.name)

    def load(self, sources: Path) -> Path:
        import transformers

        getattr(transformers, self.architecture)  # importing it takes seconds
        return sources / self.name

    def compress(self, ready: Path, data: Any, out: Path, target: Mapping[str, float]) -> Any:
        options: Any = target
        return waterfill.compress_directory(ready, out / "model", data, force=True, **options)

    def pair(self, sources: Path, out: Path) -> Pair:
        return self._model(sources / self.name), self._model(out / "model")

    def _model(self, folder: Path) -> nn.Module:
        import transformers

        model: nn.Module = getattr(transformers, self.auto).from_pretrained(folder, dtype=torch.float32)
        return model.eval()


@dataclass(frozen=True)
class Case:
    """What is compressed to which target, and what the file is tested on.

    Attributes:
        title: for people.
        source: the network.
        target: options of the call.
        calibration: batches to compress with; None for none.
        test: other batches.
        qualities: columns; the first one is the loss, the smaller the better.
    """

    title: str
    source: Source
    target: Mapping[str, float]
    calibration: Callable[[], Iterable[Any]] | None
    test: Callable[[], Iterable[Any]]
    qualities: tuple[str, ...]


def sentence_batches(count: int, part: str) -> list[dict[str, Tensor]]:
    """Tokens of sentences of WikiText-2; those of a batch are equally long, without padding."""
    tokens = minilm.batches(count, part=part)
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in tokens]


def calibration_tokens() -> list[Tensor]:
    """The 48 windows of stories without their targets."""
    return [tokens for tokens, _ in zoo.stories_calibration()]


story_windows = partial(zoo.stories_test, samples=TEST_WINDOWS)
STORIES = Directory("stories260k", hf_models.stories, "AutoModelForCausalLM", "LlamaForCausalLM")
MINILM = Directory("minilm", hf_models.sentences, "AutoModel", "BertModel")

CASES = {
    "resnet20": Case(
        "ResNet-20, rate 2, 1,024 images",
        Module("resnet20"),
        {"rate": 2.0},
        zoo.cifar10_calibration,
        zoo.cifar10_test,
        (KL, TOP1),
    ),
    "stories": Case(
        "stories260K, module, rate 3, 48 windows",
        Module("stories260k"),
        {"rate": 3.0},
        zoo.stories_calibration,
        story_windows,
        (KL, PERPLEXITY),
    ),
    "stories-directory": Case(
        "stories260K, directory, rate 3, 48 windows",
        STORIES,
        {"rate": 3.0},
        calibration_tokens,
        story_windows,
        (KL, PERPLEXITY),
    ),
    "stories-no-data": Case(
        "stories260K, directory, rate 4, no data", STORIES, {"rate": 4.0}, None, story_windows, (KL, PERPLEXITY)
    ),
    "minilm": Case(
        "all-MiniLM-L6-v2, directory, rate 3, 128 sentences",
        MINILM,
        {"rate": 3.0},
        partial(sentence_batches, SENTENCES, "valid"),
        partial(sentence_batches, TEST_SENTENCES, "test"),
        (ERROR, COSINE),
    ),
    "lenet5": Case(
        "LeNet-5, tolerance 0.005, 1,024 images",
        Module("lenet5"),
        {"tolerance": 0.005},
        zoo.mnist_calibration,
        zoo.mnist_test,
        (KL, TOP1),
    ),
}


@dataclass
class CompileClock(event.Listener):
    """Sums the CPU seconds of kernels that numba compiles because its cache does not have them.

    Attributes:
        seconds: the sum over all threads.
        thread: of each thread, how deep it is in compilations, and when the outermost began.
    """

    seconds: float = 0.0
    thread: threading.local = field(default_factory=threading.local)

    def on_start(self, event: Any) -> None:  # noqa: ARG002 (numba calls it so)
        depth = getattr(self.thread, "depth", 0)
        if not depth:
            self.thread.start = time.thread_time()
        self.thread.depth = depth + 1

    def on_end(self, event: Any) -> None:  # noqa: ARG002 (numba calls it so)
        self.thread.depth -= 1
        if not self.thread.depth:
            self.seconds += time.thread_time() - self.thread.start


def prepare(case: Case, sources: Path, out: Path) -> Row:  # noqa: ARG001 (all steps have the same arguments)
    """Write the model directory that the case reads."""
    case.source.prepare(sources)
    return {}


def compress(case: Case, sources: Path, out: Path) -> Row:
    """Compress, and say what it took from the call to the written file, without the start of the process.

    Kernels that had to be compiled are in none of the CPU seconds, but in the wall seconds.
    """
    clock = CompileClock()
    with event.install_listener("numba:compile", clock):
        data = None if case.calibration is None else list(case.calibration())
        ready = case.source.load(sources)
        warm_up()
        ready_memory, ready_compiling = memory("VmHWM"), clock.seconds
        cpu, wall = cpu_seconds(), time.perf_counter()
        result = case.source.compress(ready, data, out, case.target)
        cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    (out / "report.json").write_text(result.to_json())
    return {
        "title": case.title,
        "bytes": result.size_bytes,
        "rate": result.rate,
        "sha256": _digest(out),
        "call_cpu": cpu - (clock.seconds - ready_compiling),
        "call_wall": wall,
        "compiling": clock.seconds,
        "start_memory": ready_memory,
        "peak_memory": memory("VmHWM"),
    }


def test(case: Case, sources: Path, out: Path) -> Row:
    """Measure the network that the file decodes to against the original, on test data."""
    original, copy = case.source.pair(sources, out)
    found = waterfill.evaluate(copy, list(case.test()), reference=original)
    measures = {
        TOP1: None if found.accuracy is None else 100 * found.accuracy,
        KL: found.kl,
        PERPLEXITY: None if found.cross_entropy is None else math.exp(found.cross_entropy),
        ERROR: found.relative_squared_error,
        COSINE: found.cosine,
    }
    return {"loss": measures[case.qualities[0]], "quality": {name: measures[name] for name in case.qualities}}


STEPS: dict[str, Callable[[Case, Path, Path], Row]] = {"prepare": prepare, "compress": compress, "test": test}


def warm_up() -> None:
    """Compress a small network, so that everything is imported and the kernels are loaded."""
    torch.manual_seed(0)
    batch = torch.randn(SMALL_BATCH, SMALL_NET), torch.arange(SMALL_BATCH)
    waterfill.compress(nn.Linear(SMALL_NET, SMALL_NET), [batch], rate=4, effort="fast")


def cpu_seconds() -> float:
    """User and system seconds of this process and of those that it started and that ended."""
    return sum(os.times()[:4])


def _digest(out: Path) -> str:
    """One hash of all files with weights."""
    files = sorted(path for path in out.rglob("*") if path.suffix in (".wf", ".safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def main() -> None:
    step, key, sources, out = sys.argv[1:]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    print(json.dumps(STEPS[step](CASES[key], Path(sources), Path(out))))


if __name__ == "__main__":
    main()
