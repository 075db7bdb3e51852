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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numba.core import event
from torch import Tensor, nn

import hf_models
import hf_random
import minilm
import package_inputs
import package_networks
import smollm
import waterfill
from hf_scale_steps import memory
from walk_sources import Directory, MiniLmFile, Module, Options, Source
from waterfill import zoo

Row = dict[str, Any]
Batches = Callable[[Path], Iterable[Any]]
"""Gives data for the network of a folder."""

TOP1, KL, PERPLEXITY = "top-1 %", "KL (nats)", "perplexity"
ERROR, COSINE = "relative squared error", "cosine"
CORES = 2
TEST_WINDOWS, SENTENCES, TEST_SENTENCES = 64, 128, 500
TEXT_WINDOWS, TEXT_TEST = 32, 8
SEQUENCES, SEQUENCE = 8, 256
"""Random sequences for networks of random weights, and their tokens."""

FRAMES, SERIES, STEPS_OF_SERIES = 1024, 96, 2048
SMALL_NET, SMALL_BATCH = 64, 32
"""Width and batch of the network that is compressed before the clock starts."""


@dataclass(frozen=True)
class Case:
    """What is compressed how, and what the file is tested on.

    Attributes:
        source: the network.
        options: of the call.
        calibration: batches to compress with, of the network under a folder; None for none.
        test: other batches; None where nothing is to be tested.
        qualities: columns; the first one is the loss, the smaller the better.
    """

    source: Source
    options: Options
    calibration: Batches | None
    test: Batches | None = None
    qualities: tuple[str, ...] = ()


# Data


def sentence_batches(count: int, part: str) -> list[dict[str, Tensor]]:
    """Tokens of sentences of WikiText-2; those of a batch are equally long, without padding."""
    tokens = minilm.batches(count, part=part)
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in tokens]


def calibration_tokens(_: Path) -> list[Tensor]:
    """The 48 windows of stories without their targets."""
    return [tokens for tokens, _ in zoo.stories_calibration()]


def pairs(windows: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Tokens and those that follow them."""
    return [(tokens[:, :-1], tokens[:, 1:]) for tokens in windows]


def pitch_frames(test: bool) -> tuple[Tensor, ...]:
    """The first 1,024 frames of speech, or those behind them."""
    frames = package_inputs.frames(480)
    return (frames[FRAMES:] if test else frames[:FRAMES]).split(64)


def series(test: bool) -> tuple[Tensor, ...]:
    """Loudness in 96 bands of speech over 2,048 steps, each between 0 and 1; or over as many steps behind them."""
    steps = slice(STEPS_OF_SERIES, 2 * STEPS_OF_SERIES) if test else slice(STEPS_OF_SERIES)
    bands = package_inputs.mels(SERIES, 400).clamp(min=1e-10).log()[steps].T
    low, high = bands.amin(1, keepdim=True), bands.amax(1, keepdim=True)
    return ((bands - low) / (high - low)).split(32)


# Cases


def _zoo(name: str, options: Options, calibration: Callable[[], Any], test: Callable[[], Any]) -> Case:
    source = Module(partial(zoo.pretrained, name))
    return Case(source, options, lambda _: calibration(), lambda _: test(), (KL, TOP1))


def _random(name: str, shape: hf_random.Shape, rate: float, *, tested: bool = True) -> Case:
    source = Directory(name, partial(hf_random.directory, shape=shape))
    read = partial(hf_random.windows, shape, SEQUENCES, SEQUENCE)
    case = Case(source, {"rate": rate}, lambda _: read(seed=0))
    return replace(case, test=lambda _: pairs(read(seed=1)), qualities=(KL,)) if tested else case


def _smollm(calibration: Batches | None) -> Case:
    return Case(
        Directory("smollm", smollm.directory),
        {"rate": 3.0},
        calibration,
        lambda folder: pairs(smollm.windows(folder / "smollm", TEXT_TEST, "test")),
        (KL, PERPLEXITY),
    )


def _stories(source: Source, rate: float, calibration: Batches | None) -> Case:
    options = {"rate": rate}
    return Case(source, options, calibration, lambda _: zoo.stories_test(samples=TEST_WINDOWS), (KL, PERPLEXITY))


RESNET = partial(_zoo, "resnet20", calibration=zoo.cifar10_calibration, test=zoo.cifar10_test)
STORIES = Directory("stories260k", hf_models.stories)
VALUES = {"output": "values"}
BILLION = partial(hf_random.directory, shape=hf_random.BILLION)

CASES = {
    "resnet20": RESNET({"rate": 2.0}),
    "resnet20-fast": RESNET({"rate": 2.0, "effort": "fast"}),
    "resnet20-3": RESNET({"rate": 3.0}),
    "resnet20-3-busy": RESNET({"rate": 3.0}),
    "lenet300": _zoo("lenet300", {"rate": 2.0}, zoo.mnist_calibration, zoo.mnist_test),
    "lenet5": _zoo("lenet5", {"tolerance": 0.005}, zoo.mnist_calibration, zoo.mnist_test),
    "stories": _stories(Module(partial(zoo.pretrained, "stories260k")), 3.0, lambda _: zoo.stories_calibration()),
    "stories-directory": _stories(STORIES, 3.0, calibration_tokens),
    "stories-no-data": _stories(STORIES, 4.0, None),
    "minilm-no-data": Case(
        MiniLmFile(), {"rate": 3.0}, None, lambda _: minilm.batches(TEST_SENTENCES, part="test"), (ERROR, COSINE)
    ),
    "minilm": Case(
        Directory("minilm", hf_models.sentences, "AutoModel", "BertModel"),
        {"rate": 3.0},
        lambda _: sentence_batches(SENTENCES, "valid"),
        lambda _: sentence_batches(TEST_SENTENCES, "test"),
        (ERROR, COSINE),
    ),
    "pitch": Case(
        Module(package_networks.pitch_tracker),
        {"rate": 3.0} | VALUES,
        lambda _: pitch_frames(test=False),
        lambda _: pitch_frames(test=True),
        (ERROR, COSINE),
    ),
    "forecast": Case(
        Module(package_networks.forecaster),
        {"rate": 3.0} | VALUES,
        lambda _: series(test=False),
        lambda _: series(test=True),
        (ERROR, COSINE),
    ),
    "block-11m": _random("block-11m", hf_random.SMALL_BLOCK, 3.0),
    "block-44m": _random("block-44m", hf_random.BILLION_BLOCK, 3.0),
    "smollm-no-data": _smollm(None),
    "smollm": _smollm(lambda folder: smollm.windows(folder / "smollm", TEXT_WINDOWS, "valid")),
    "billion-no-data": Case(Directory("billion", BILLION), {"rate": 4.0, "effort": "fast"}, None),
    "billion": _random("billion", hf_random.BILLION, 4.0, tested=False),
    "block-8b": _random("block-8b", hf_random.LARGE_BLOCK, 3.0),
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
        data = None if case.calibration is None else list(case.calibration(sources))
        ready = case.source.load(sources)
        warm_up()
        ready_memory, ready_compiling = memory("VmHWM"), clock.seconds
        cpu, wall = cpu_seconds(), time.perf_counter()
        result = case.source.compress(ready, data, out, case.options)
        cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    (out / "report.json").write_text(result.to_json())
    return {
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
    if case.test is None:
        return {"loss": None, "quality": {}}
    original, copy = case.source.pair(sources, out)
    output: Any = "values" if ERROR in case.qualities else "logits"
    found = waterfill.evaluate(copy, list(case.test(sources)), reference=original, output=output)
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
