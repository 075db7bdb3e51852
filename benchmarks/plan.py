"""What large language models take: seconds, memory and traffic, from what one block of the 8 B shape was measured to.

    python benchmarks/plan.py                 measures one block (ten minutes, on one thread), then writes the page
    python benchmarks/plan.py --write         writes it from what was measured

A stage of another model takes as many times its least seconds (`stage_floors`) as it does of the measured block.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import results
import stage_profile as stages
from results import Section
from stage_floors import Layer, Machine, floors
from walks import THREADS

Row = dict[str, Any]

CASE = "block-8b"
TOKENS = 8 * 256
"""Of the measured block."""

BY_TOKENS = (stages.PASSES, stages.SUMS)
"""Stages that processes share by batches; the others they share by matrices."""

ON_DEVICE = (*BY_TOKENS, stages.TARGETS, stages.FILTER, stages.UPDATE, stages.SPAN)
"""Stages that a device takes over."""

LAWS = {stages.LIMITS: stages.TARGETS}
"""Stages that go by the work of another one: limits with cross terms are factors, and products with errors."""

CALIBRATION = 128 * 2048
"""Tokens of the plan."""

SYMBOL, SUM, REAL = 4, 8, 4
"""Bytes of what processes exchange and hold: a level, an entry of a sum, a value in single precision."""

TEXT = """A plan, computed from one measured block of the shape of Llama 8B ({weights:.0f} M random weights, rate 3,
{tokens:,} tokens, one thread): a stage of another model takes as many times its least seconds as it does of that block.
The least seconds are counted operations over rates of the same machine (products {product:.0f} GFLOP/s, Cholesky
{factor:.0f}); limits go by those of corrected targets. Nothing here was run at its size. The process of the measured
block had {peak:.1f} GB at most, where the formula of the plan says {formula:.1f}."""

UNITS = """Passes and sums go by tokens times weights and inputs, the others but the search, fits and coding by products
of inputs, outputs and inputs again; these go by weights."""

ONE = """*Core-hours* are CPU time of cores like the measured one. *Of these on a device* are those of stages that it
takes over (passes, sums, factors, solutions, searches of matrices with 1,024 rows and more): how long it needs for
these is not known before [a GPU is measured](devices.md). *On the host* is what stays with the processor; with as many
cores as a block has matrices the largest one decides."""

MANY = """{tokens:,} tokens, as many cores on each machine as a block has matrices, no device. Batches are shared by
all machines, matrices each go to one, so more machines than seven only share passes and sums. *Memory* of a machine is
one block in single precision with its sums, the largest factors, and the hidden states of its batches before and after
compression. *Traffic* is what a machine sends and receives: sums of whole numbers once for every block, levels of the
matrices that others have quantized."""


@dataclass(frozen=True)
class Shape:
    """A language model of blocks of the Llama kind.

    Attributes:
        name: on the page.
        blocks: how many.
        hidden: width.
        inner: width inside a block.
        keys: width of keys and of values.
        vocabulary: tokens of the two embeddings, which are not tied.
    """

    name: str
    blocks: int
    hidden: int
    inner: int
    keys: int
    vocabulary: int

    def layers(self, tokens: int) -> list[Layer]:
        """The matrices of a block."""
        d, f, k = self.hidden, self.inner, self.keys
        shapes = ((d, d, 0), (k, d, 0), (k, d, 0), (d, d, 1), (f, d, 2), (f, d, 2), (d, f, 3))
        return [Layer(out, inputs, tokens, source) for out, inputs, source in shapes]

    @property
    def block(self) -> int:
        """Weights of a block."""
        return sum(each.weights for each in self.layers(1))

    @property
    def embeddings(self) -> int:
        """Weights outside the blocks."""
        return 2 * self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All of them."""
        return self.blocks * self.block + self.embeddings


EIGHT = Shape("8 B", 32, 4096, 14336, 1024, 128_256)
SEVENTY = Shape("70 B", 80, 8192, 28672, 1024, 128_256)


def measure(sources: Path) -> dict[str, Any]:
    """Seconds of every stage of the measured block, the rates of the machine, and the least seconds."""
    environment = os.environ | dict.fromkeys(THREADS, "1")
    here = Path(__file__).parent

    def run(script: str, *more: str) -> Any:
        command = [sys.executable, here / script, CASE, str(sources), *more]
        return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    profile = run("stage_profile.py", str(sources / "out"))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    seconds = stages.by_stage(profile["stacks"])
    return {"seconds": seconds, "rate": profile["rate"], "peak": peak, **run("stage_floors.py")}


class Costs:
    """What stages take.

    Args:
        found: by `measure`.
    """

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.machine = Machine(**found["machine"])
        self.measured: dict[str, float] = found["seconds"]
        least = self._least(EIGHT.layers(TOKENS))
        self.gaps = {stage: self.measured.get(stage, 0.0) / least[stage] for stage in least if least[stage] > 0}
        self.rest = sum(seconds for stage, seconds in self.measured.items() if stage not in self.gaps)

    def _least(self, layers: Sequence[Layer]) -> dict[str, float]:
        found = floors(layers, self.machine)
        return {stage: found[LAWS.get(stage, stage)] for stage in found}

    def of(self, layers: Sequence[Layer]) -> dict[str, float]:
        """CPU seconds of every stage of some matrices."""
        least = self._least(layers)
        share = sum(each.weights for each in layers) / EIGHT.block
        return {stage: gap * least[stage] for stage, gap in self.gaps.items()} | {stages.OTHER: share * self.rest}

    def embeddings(self, shape: Shape) -> float:
        """CPU seconds of what is coded by its weights alone."""
        by_weights = stages.SPAN, stages.FITS, stages.CODING
        return sum(self.measured.get(stage, 0.0) for stage in by_weights) * shape.embeddings / EIGHT.block


def units(costs: Costs) -> list[Row]:
    """What the stages of the measured block took, and for what."""
    weights, rows = EIGHT.block, []
    for stage, seconds in sorted(costs.measured.items(), key=lambda item: -item[1]):
        row = {"stage": stage, "CPU s": round(seconds, 1), "least s": "", "times the least": "", "a weight, ns": ""}
        if stage in costs.gaps:
            least = seconds / costs.gaps[stage] if costs.gaps[stage] else 0.0
            row |= {"least s": round(least, 2), "times the least": round(costs.gaps[stage], 1)}
        rows.append(row | {"a weight, ns": round(1e9 * seconds / weights, 1)})
    total = sum(costs.measured.values())
    blank = dict.fromkeys(rows[0], "")
    return [*rows, blank | {"stage": "all", "CPU s": round(total, 1), "a weight, ns": round(1e9 * total / weights)}]


def hours(shape: Shape, costs: Costs, tokens: int) -> Row:
    """Core-hours of a model, and what of these stays with the host."""
    seconds = costs.of(shape.layers(tokens))
    there = sum(seconds.get(stage, 0.0) for stage in ON_DEVICE)
    here = sum(seconds.values()) - there
    one = max(_host(costs, [each]) for each in shape.layers(tokens))
    outside = costs.embeddings(shape)
    return {
        "model": shape.name,
        "weights, B": round(shape.weights / 1e9, 2),
        "tokens": f"{tokens:,}",
        "core-hours": round((shape.blocks * sum(seconds.values()) + outside) / 3600, 1),
        "of these on a device": round(shape.blocks * there / 3600, 1),
        "on the host": round((shape.blocks * here + outside) / 3600, 1),
        "hours of the host, a core for every matrix": round((shape.blocks * one + outside / 2) / 3600, 2),
        "memory, GB": round(memory(shape, tokens) / 1e9, 1),
        "on the device, GB": round(on_device(shape, tokens) / 1e9, 1),
    }


def _host(costs: Costs, layers: Sequence[Layer]) -> float:
    """CPU seconds of one matrix that no device takes over."""
    return sum(seconds for stage, seconds in costs.of(layers).items() if stage not in ON_DEVICE)


def memory(shape: Shape, tokens: int, machines: int = 1) -> float:
    """Bytes that a machine holds while a block is compressed."""
    widest = max(each.inputs for each in shape.layers(1))
    states = 2 * tokens / machines * shape.hidden * REAL
    return 3 * shape.block * REAL + sums(shape) + 3 * widest**2 * REAL + states


def on_device(shape: Shape, tokens: int) -> float:
    """The same on a device, which gives decoded values back and has the hidden states where there is room."""
    return memory(shape, tokens) + 16 * max(each.weights for each in shape.layers(1))


def sums(shape: Shape) -> int:
    """Bytes of the sums of products of inputs of a block."""
    return SUM * sum(inputs**2 for inputs in {each.source: each.inputs for each in shape.layers(1)}.values())


def many(shape: Shape, costs: Costs, tokens: int, machines: int) -> Row:
    """A model on several machines."""
    layers = shape.layers(tokens)
    cores = len(layers)
    seconds = costs.of(layers)
    shared = sum(seconds[stage] for stage in BY_TOKENS) / (machines * cores)
    alone = max(sum(s for stage, s in costs.of([each]).items() if stage not in BY_TOKENS) for each in layers)
    wall = shape.blocks * (shared + alone) + costs.embeddings(shape) / (2 * machines)
    traffic = 0.0
    if machines > 1:
        traffic = shape.blocks * (2 * sums(shape) + SYMBOL * shape.block) * (machines - 1) / machines
        traffic += SYMBOL * shape.embeddings * (machines - 1) / machines
    return {
        "model": shape.name,
        "machines": machines,
        "cores": machines * cores,
        "hours": round(wall / 3600, 1),
        "of these passes and sums": round(shape.blocks * shared / 3600, 1),
        "memory of a machine, GB": round(memory(shape, tokens, machines) / 1e9, 1),
        "traffic of a machine, GB": round(traffic / 1e9, 1),
        "seconds of it at 10 Gbit/s": round(traffic * 8 / 1e10),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="measure nothing")
    if parser.parse_args().write:
        found = results.read("plan")["measured"]
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder))
    write(found)


def write(found: dict[str, Any]) -> None:
    """Write the page from what was measured."""
    costs = Costs(found)
    machine = costs.machine
    text = TEXT.format(
        weights=EIGHT.block / 1e6, tokens=TOKENS, product=machine.product / 1e9, factor=machine.factor / 1e9,
        peak=found["peak"] / 1e9, formula=memory(EIGHT, TOKENS) / 1e9,
    )  # fmt: skip
    single = [hours(shape, costs, tokens) for shape in (EIGHT, SEVENTY) for tokens in (TOKENS, CALIBRATION)]
    several = [many(SEVENTY, costs, CALIBRATION, machines) for machines in (1, 2, 4, 8, 16)]
    sections = [
        Section("What a block took", UNITS, units(costs)),
        Section("On one machine", ONE, single),
        Section("On several machines", MANY.format(tokens=CALIBRATION), several),
    ]
    results.write_page("plan", "A plan for 8 and 70 billion weights", text, sections)
    whole = results.read("plan") | {"measured": found}
    results.keep("plan", whole, [each.title for each in sections])


if __name__ == "__main__":
    main()
