"""One step with a large model in this process, and what it took as JSON: `python hf_scale_steps.py STEP FOLDER OUT`."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

import waterfill

RATE, SEQUENCES, LENGTH, NEW = 4.0, 8, 256, 16
"""Bits per value; random sequences to calibrate on, and their tokens; tokens to generate."""

PROMPT, EVERY = 8, 0.02
"""Tokens before those that are generated; seconds between two looks at the memory."""

Row = dict[str, Any]


def compress(folder: Path, out: Path) -> Row:
    """Compress without data."""
    waterfill.compress_directory(folder, out, rate=RATE, force=True)
    return {}


def fast(folder: Path, out: Path) -> Row:
    """Compress without data in the least time."""
    waterfill.compress_directory(folder, out, rate=RATE, effort="fast", force=True)
    return {}


def calibrated(folder: Path, out: Path) -> Row:
    """Compress, calibrated on random tokens."""
    tokens = _tokens(folder, SEQUENCES, LENGTH)
    waterfill.compress_directory(folder, out, list(tokens.split(1)), rate=RATE, force=True)
    return {}


def decompress(folder: Path, out: Path) -> Row:
    """Write the model directory that the compressed one stands for."""
    from waterfill.bundle import Bundle, write_plain

    with Bundle(folder) as bundle:
        write_plain(bundle, out, force=True)
    return {}


def load(folder: Path, _: Path) -> Row:
    """Load as transformers does, original or compressed, and run once, so that all weights were needed."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model(_tokens(folder, 1, PROMPT))
    return {}


def generate(folder: Path, _: Path) -> Row:
    """Load, and generate greedily."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    return _generated(model, folder) | {"held (GB)": sum(each.nbytes for each in model.parameters()) / 1e9}


def resident(folder: Path, _: Path) -> Row:
    """Load with blocks that stay compressed, and generate greedily."""
    from waterfill.resident import held

    model = waterfill.load(folder, resident=True)
    return _generated(model, folder) | {"held (GB)": held(model).total / 1e9}


STEPS: dict[str, Callable[[Path, Path], Row]] = {
    "compress": compress,
    "fast": fast,
    "calibrated": calibrated,
    "decompress": decompress,
    "load": load,
    "generate": generate,
    "resident": resident,
}


def _tokens(folder: Path, count: int, length: int) -> torch.Tensor:
    words = json.loads((folder / "config.json").read_text())["vocab_size"]
    return torch.randint(words, (count, length), generator=torch.Generator().manual_seed(0))


class Clock:
    """When every token came, and the CPU seconds until then; what `generate` calls a streamer."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        """The prompt, then every token."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def end(self) -> None:
        """Nothing more comes."""


def _generated(model: nn.Module, folder: Path) -> Row:
    clock, made = Clock(), cast("Any", model)
    found = made.generate(
        _tokens(folder, 1, PROMPT), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0,
        streamer=clock, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    wall, cpu = (sorted(b - a for a, b in pairwise(each)) for each in (clock.wall[1:], clock.cpu[1:]))
    logits = torch.cat(found.logits).float().numpy().tobytes()
    return {
        "first token (s)": clock.wall[1] - clock.wall[0],
        "token/s": (NEW - 1) / (clock.wall[-1] - clock.wall[1]),
        "token/s, best": 1 / wall[0],
        "CPU s/token": sum(cpu) / len(cpu),
        "digest of logits": hashlib.sha256(logits).hexdigest()[:12],
        "tokens": found.sequences[0, PROMPT:].tolist(),
    }


class Memory(threading.Thread):
    """Watches how much memory of its own the process has, beside pages of files that are mapped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        """Look again and again."""
        while True:
            self.peak = max(self.peak, memory("RssAnon"))
            time.sleep(EVERY)


def memory(key: str) -> int:
    """Bytes that Linux says of this process: `VmHWM`, `RssAnon`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    step, folder, out = sys.argv[1:]
    watch = Memory()
    watch.start()
    start = time.perf_counter()
    row = STEPS[step](Path(folder), Path(out))
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "peak": memory("VmHWM"), "own": max(watch.peak, memory("RssAnon"))}
    print(json.dumps(row | found))


if __name__ == "__main__":
    main()
