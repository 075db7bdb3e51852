"""A checkpoint of 1.1 billion weights: memory and seconds to compress, to decompress, to load and to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hf_random
from commits import commit
from hf_page import RESIDENT, SCALE
from hf_ways import weight_bytes

Row = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A row of the table.

    Attributes:
        title: what is done.
        step: its name in `hf_scale_steps`.
        source: directory that is read.
        out: directory that is written; empty for none.
    """

    title: str
    step: str
    source: str
    out: str = ""


ORIGINAL, SMALL, KNOWING, PLAIN = "billion", "billion-small", "billion-calibrated", "billion-plain"
FAST = "billion-fast"
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads of PyTorch that wait do not take a core from those that decode."""

STEPS = (
    Step("load the original with transformers, run once", "load", ORIGINAL),
    Step("compress without data", "compress", ORIGINAL, SMALL),
    Step("decompress to a directory", "decompress", SMALL, PLAIN),
    Step("load the compressed directory with transformers, run once", "load", SMALL),
)
CALIBRATED = Step("compress, calibrated on 8 x 256 random tokens", "calibrated", ORIGINAL, KNOWING)
RUNS = (
    Step("all weights decoded at once", "generate", FAST),
    Step("blocks stay compressed", "resident", FAST),
)


def measure(work: Path, save: Callable[[str, Row], None], known: dict[str, list[Row]], calibrated: bool) -> None:
    """Take all steps that are not done.

    Args:
        work: where directories are.
        save: called with the title of the section and a row.
        known: rows by the title of the section.
        calibrated: also compress with data.
    """
    _original(work)
    for step in (*STEPS, *([CALIBRATED] if calibrated else [])):
        if step.title not in [row["step"] for row in known.get(SCALE, [])]:
            save(SCALE, _speed(step, taken(step, work), work))


def run(work: Path, save: Callable[[str, Row], None], known: dict[str, list[Row]]) -> None:
    """Generate from the compressed directory in all ways that are not done; arguments as of `measure`."""
    _original(work)
    if not (work / FAST / "config.json").exists():
        taken(Step("compress without data", "fast", ORIGINAL, FAST), work)
    for step in RUNS:
        if step.title not in [row["step"] for row in known.get(RESIDENT, [])]:
            save(RESIDENT, _run(step, taken(step, work)))


def _original(work: Path) -> None:
    if not (work / ORIGINAL / "model.safetensors.index.json").exists():
        hf_random.directory(work / ORIGINAL, hf_random.BILLION)


def taken(step: Step, work: Path) -> Row:
    """What a step took, in a process of its own."""
    script = Path(__file__).with_name("hf_scale_steps.py")
    command = [sys.executable, script, step.step, work / step.source, work / step.out]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | PASSIVE)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def weights() -> int:
    """How many weights the checkpoint has."""
    return hf_random.values(hf_random.BILLION)


def _speed(step: Step, found: Row, work: Path) -> Row:
    seconds, written = found["seconds"], weight_bytes(work / step.out) if step.out else 0
    return {
        "step": step.title,
        **_memory(found),
        "seconds": round(seconds, 1),
        "Mweight/s": weights() / seconds / 1e6,
        "bit/weight read": round(8 * weight_bytes(work / step.source) / weights(), 3),
        "bit/weight written": round(8 * written / weights(), 3) if written else "",
    }


def _run(step: Step, found: Row) -> Row:
    said = {key: value for key, value in found.items() if key not in ("seconds", "peak", "own", "tokens")}
    made = {"tokens": " ".join(map(str, found["tokens"])), "commit": commit()}
    return {"step": step.title, **_memory(found)} | said | made


def _memory(found: Row) -> Row:
    return {"peak memory (GB)": found["peak"] / 1e9, "without mapped files (GB)": found["own"] / 1e9}
