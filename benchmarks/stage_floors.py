"""What the stages of a compression cannot go below: `python stage_floors.py CASE SOURCES`, then JSON.

Operations are counted from the shapes of the network and its data, and rates are measured on one core of this machine.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import stage_profile as stages
from walk_cases import CASES
from waterfill.codec import kernels, tables

SIZE = 2048
"""Of the matrices that are multiplied and factored to measure rates."""

REPEATS = 5
PASSES = 4
"""Of the cost of a forward pass: the original forward, twice as much backward, the compressed forward."""

SEARCH = 40e6
"""Weights a second that a vectorized search with branch costs, trace-back and feedback does on a core (a prototype)."""

SAMPLE, ROWS, MOST = 1 << 18, 256, 1 << 16
"""Weights that a source is fitted on, rows that centroids are fitted on, and tokens that a Gram matrix needs."""


@dataclass(frozen=True)
class Layer:
    """A matrix and what goes through it.

    Attributes:
        out: rows.
        inputs: columns.
        tokens: rows of its input, of all batches.
        source: stands for its input; layers with the same one read the same.
    """

    out: int
    inputs: int
    tokens: int
    source: int

    @property
    def weights(self) -> int:
        """How many."""
        return self.out * self.inputs


@dataclass(frozen=True)
class Machine:
    """Rates of one core.

    Attributes:
        product: float32 operations a second of a matrix product.
        factor: of a Cholesky factorization, n^3 / 3 operations.
        copy: bytes read and written a second.
        count: values a second that a histogram takes.
        sort: float32 values a second that are sorted.
        code: symbols a second that are entropy coded.
    """

    product: float
    factor: float
    copy: float
    count: float
    sort: float
    code: float

    @classmethod
    def measured(cls) -> Machine:
        """Measure them on one thread."""
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(SIZE, SIZE, generator=generator)
        spd = a @ a.T / SIZE + torch.eye(SIZE)
        values = a.flatten()[:SAMPLE].numpy()
        symbols = (a.numpy() * 16 + 128).clip(0, 255).astype(np.uint8).reshape(-1)
        return cls(
            product=2 * SIZE**3 / least(lambda: a @ a),
            factor=SIZE**3 / 3 / least(lambda: torch.linalg.cholesky(spd)),
            copy=2 * a.nbytes / least(a.clone),
            count=symbols.size / least(lambda: np.bincount(symbols, minlength=256)),
            sort=values.size / least(lambda: np.sort(values)),
            code=coding_rate(symbols),
        )


def least(work: Callable[[], object]) -> float:
    """Least CPU seconds of several runs."""
    work()
    found = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def coding_rate(symbols: Any) -> float:
    """Symbols a second under one table."""
    classes = np.full(symbols.size, tables.bank_class(8, 48), np.uint16)
    info, inverse, words = tables.encoder_info(), tables.inverses(), np.empty(2 * symbols.size + 8, np.uint16)
    work = lambda: kernels.encode_run(  # noqa: E731
        symbols, classes, info, inverse, np.full(8, 1 << 16, np.uint64), words, words.size
    )
    return float(symbols.size / least(work))


def layers(model: nn.Module, data: Iterable[Any]) -> list[Layer]:
    """The linear layers and convolutions of a network, and how many tokens go through them."""
    found: list[Layer] = []
    seen: list[Tensor] = []  # keeps inputs alive, so that no other tensor has the number of one

    def see(module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        weight: Any = module.weight
        seen.append(given[0])
        tokens = result.numel() // len(weight)
        found.append(Layer(len(weight), weight[0].numel(), tokens, id(given[0])))

    kinds = (nn.Linear, nn.Conv2d)
    handles = [module.register_forward_hook(see) for module in model.modules() if isinstance(module, kinds)]
    batches = [batch if isinstance(batch, Tensor) else batch[0] for batch in data]
    with torch.no_grad():
        model(batches[0])
    for handle in handles:
        handle.remove()
    share = sum(len(each) for each in batches) / len(batches[0])
    return [Layer(each.out, each.inputs, round(each.tokens * share), each.source) for each in found]


def floors(every: Sequence[Layer], machine: Machine) -> dict[str, float]:
    """Least seconds of each stage.

    Args:
        every: layers of the network.
        machine: rates of a core.
    """
    distinct = list({each.source: each for each in every}.values())
    weights = sum(each.weights for each in every)
    squares = [each.out * each.inputs**2 for each in every]
    factored = sum(each.inputs**3 / 3 for each in distinct) / machine.factor
    return {
        stages.PASSES: PASSES * sum(2 * each.weights * each.tokens for each in every) / machine.product,
        stages.SUMS: sum(each.inputs**2 * min(each.tokens, MOST) for each in distinct) / machine.product,
        stages.TARGETS: factored + 2 * sum(squares) / machine.product,
        stages.FILTER: factored,
        stages.SPAN: weights / SEARCH,
        stages.UPDATE: sum(squares) / machine.product,
        stages.FITS: weights / machine.count,
        stages.PRODUCTS: sum(4 * min(ROWS, each.out) * each.inputs**2 for each in every) / machine.product,
        stages.LIMITS: sum(min(SAMPLE, each.weights) for each in every) / machine.sort,
        stages.CODING: weights / machine.code + 8 * weights / machine.copy,
    }


def main() -> None:
    torch.set_num_threads(1)
    case, sources = CASES[sys.argv[1]], Path(sys.argv[2])
    assert case.calibration is not None
    machine = Machine.measured()
    every = layers(case.source.original(sources), case.calibration(sources))
    print(json.dumps({"machine": asdict(machine), "floors": floors(every, machine)}))


if __name__ == "__main__":
    main()
